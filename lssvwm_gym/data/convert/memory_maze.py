"""The public offline Memory Maze set (arXiv 2210.13383, section 4.2), as it is read: one npz with everything an episode.

There every array has a time axis, 1001 long: `image` (T, 64, 64, 3) uint8, `action` (T, 6) one-hot, `reward` (T,), `agent_pos`,
`agent_dir`, `target_pos`, `target_vec` (T, 2), `target_color` (T, 3), `targets_pos`, `targets_vec` (T, balls, 2) and
`maze_layout` (T, size, size). Action and reward are the *last* ones, so `action[t]` led to `image[t]`, as it does here.
"""

from pathlib import Path

import numpy as np

from lssvwm_gym.data.convert.recording import Found, Recording
from lssvwm_gym.data.episode import Episode, EpisodeError, read_arrays

ACTIONS = 6
FPS = 4
CONSTANT = ("maze_layout", "targets_pos")  # for a whole episode
DERIVED = ("target_vec", "targets_vec")  # from positions and heading; not kept in an Episode


def public_paths(folder: str | Path) -> list[Path]:
    """The npz files of `folder`, sorted by name. Raises `EpisodeError` if there are none."""
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() == ".npz" and not path.name.startswith("."))
    if not paths:
        raise EpisodeError(f"{folder}: holds no episode of the public set (<name>.npz)")
    return paths


def open_memory_maze(found: Found) -> Recording:
    """Read one npz of the set as a recording; errors as those of `read_public`."""
    episode = read_public(found.path)
    return Recording(episode.frames, FPS, lambda count: {"action": episode.action, "reward": episode.reward, **episode.extras})


def read_public(path: str | Path) -> Episode:
    """Read one npz of the public set.

    Every array it has beside image, action and reward comes along in `extras`: floats as float32, `maze_layout` and
    `targets_pos` without their time axis, and without `target_vec` and `targets_vec`, which follow from the rest.

    Raises `EpisodeError` for no such file, no plain npz, and arrays that are missing or not as the set describes them.
    """
    arrays = read_arrays(path)
    if missing := {"image", "action", "reward"} - arrays.keys():
        raise EpisodeError(f"{path}: not an episode of the public set, it has no array named {', '.join(sorted(missing))}")
    try:
        frames, action, reward = arrays.pop("image"), from_one_hot(arrays.pop("action")), arrays.pop("reward")
        extras = {name: _extra(name, array, len(frames)) for name, array in arrays.items() if name not in DERIVED}
        return Episode(frames, action, reward.astype(np.float32), extras)
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from None


def from_one_hot(action: np.ndarray) -> np.ndarray:
    """(T, 6) one-hot to (T,) uint8; the first row may be empty, as nothing led to the first image. Raises `EpisodeError` for all else."""
    if action.ndim != 2 or action.shape[1] != ACTIONS:
        raise EpisodeError(f"action must be one-hot (T, {ACTIONS}), got shape {action.shape}")
    wrong = np.flatnonzero(((action != 0) & (action != 1)).any(1) | (action.sum(1) != 1))
    wrong = wrong[(wrong > 0) | action[:1].any()]
    if len(wrong):
        raise EpisodeError(f"action[{wrong[0]}] must have a single 1, got {action[wrong[0]].tolist()}")
    return action.argmax(1).astype(np.uint8)


def _extra(name: str, array: np.ndarray, frames: int) -> np.ndarray:
    if array.shape[:1] != (frames,):
        raise EpisodeError(f"{name} must have an entry for each of the {frames} images, got shape {array.shape}")
    if name in CONSTANT:
        if (array != array[:1]).any():
            raise EpisodeError(f"{name} changes within the episode")
        array = array[0]
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
