"""Datasets of Minari (the standard format for offline reinforcement learning, by the makers of Gymnasium) that hold pictures.

A Minari episode of T steps has T + 1 observations and T actions, rewards, terminations and truncations: action t was taken at
observation t, and reward t was received on arriving at observation t + 1. Here both stand at t + 1, at 0 an action and a reward of zeros.

Nothing is downloaded: the dataset lies in a folder, as `minari download` or your own collecting left it. Minari can store pictures as
JPEG; then they come out as such.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lssvwm_gym.data.convert.recording import Found, Recording, led, not_a_picture
from lssvwm_gym.data.episode import EpisodeError
from lssvwm_gym.io.json_config import needed, parsed

if TYPE_CHECKING:
    from minari import MinariDataset

METADATA = "metadata.json"
FPS = 15.0  # datasets don't say; only playing the video needs it
OWN = ("action", "reward", "terminated", "truncated")  # names that observations don't get


def find_minari(source: Path) -> list[Found]:
    """The episodes of the dataset in `source`, the folder with `data/metadata.json` or that `data` itself; named by their numbers.

    Raises `EpisodeError` for no dataset, one that Minari can't read, and one that doesn't describe its spaces.
    """
    folder = _folder(source)
    return [Found(f"{number:06d}", folder, number) for number in range(_dataset(folder).total_episodes)]


def known_actions(source: Path) -> dict[str, Any]:
    """Of the dataset's actions: numbered names of discrete ones, bounds of a Box, flat, with None where there is none."""
    space = _dataset(_folder(source)).action_space
    if isinstance(space, spaces.Box):
        return {name: tuple(float(x) if np.isfinite(x) else None for x in getattr(space, name).ravel()) for name in ("low", "high")}
    return {"actions": tuple(f"action {number}" for number in range(int(getattr(space, "n", 0))))}


def _folder(source: Path) -> Path:
    folder = next((folder for folder in (source / "data", source) if (folder / METADATA).is_file()), None)
    if folder is None:
        raise EpisodeError(f"{source}: holds no Minari dataset (data/metadata.json)")
    return folder


def read_minari(found: Found, images: str = "") -> Recording:
    """Read an episode, all of it at once: Minari knows no other way. `images` names the picture in a Dict, where several entries can be it.

    The recording has `action`, (T + 1,) uint of a Discrete space, counted from 0, or (T + 1, A) float32 of a Box, `reward` (T + 1,)
    float32, `terminated`, `truncated` (T + 1,) bool, and of a Dict of observations every other Box or Discrete entry that is no picture,
    under its own name, or `observed_<name>` if that is one of these. Raises `EpisodeError` for spaces that are none of these, an episode
    that can't be read, and lengths that don't belong together.
    """
    dataset, what = _dataset(found.path), f"{found.path}, episode {found.number}"
    chosen, images = images, picture_name(dataset.observation_space, images, found.path)
    try:
        episode = next(iter(dataset.iterate_episodes([found.number])))
    except (OSError, RuntimeError, KeyError, AssertionError, ValueError, TypeError) as error:
        raise EpisodeError(f"{what}: can't be read ({type(error).__name__}: {error})") from None
    seen = {"": episode.observations} if isinstance(dataset.observation_space, spaces.Box) else dict(episode.observations)
    frames = np.asarray(seen.pop(images))
    if not chosen and (why := not_a_picture(frames)):
        raise EpisodeError(
            f"{what}: observations are uint8 {frames.shape[1:]}, but no pictures: {why}. Record the dataset with a wrapper that shows "
            "pictures, such as MiniGrid's RGBImgPartialObsWrapper, or, in a Dict, name the entry with --images to take it as it is"
        )
    parts = {name: dataset.observation_space[name] for name in seen}
    plain = [name for name, part in parts.items() if isinstance(part, (spaces.Box, spaces.Discrete)) and not _is_picture(part)]
    arrays = {f"observed_{name}" if name in OWN else name: np.asarray(seen[name]) for name in plain} | {
        "action": led(_actions(dataset.action_space, episode.actions, found.path)),
        "reward": led(np.asarray(episode.rewards, np.float32)),
        "terminated": led(np.asarray(episode.terminations, bool)),
        "truncated": led(np.asarray(episode.truncations, bool)),
    }
    return Recording(frames, FPS, lambda count: _checked(arrays, count, what))


def picture_name(space: spaces.Space, images: str, path: Path) -> str:
    """The entry of a Dict that is the picture; "" where the space itself is. Raises `EpisodeError` where that can't be told."""
    if isinstance(space, spaces.Box):
        if images or not _is_picture(space):
            raise EpisodeError(
                f"{path}: observations are {space}; needed are uint8 pictures (height, width, 3), and --images only with a Dict"
            )
        return ""
    if not isinstance(space, spaces.Dict):
        raise EpisodeError(f"{path}: observations are {type(space).__name__}; needed is a Box of uint8 pictures or a Dict with one")
    pictures = [name for name, part in space.spaces.items() if _is_picture(part)]
    if images in pictures:
        return images
    if images or len(pictures) != 1:
        problem = f"no pictures are named {images!r}" if images else "which entry is the picture?"
        there_are = ", ".join(pictures) or "none, no entry is uint8 (height, width, 3)"
        raise EpisodeError(f"{path}: {problem} Choose with --images one of: {there_are}")
    return pictures[0]


def _dataset(folder: Path) -> "MinariDataset":
    minari = needed("minari", "reading Minari datasets needs Minari: pip install 'lssvwm_gym[minari]'")
    try:
        missing = {"observation_space", "action_space"} - parsed((folder / METADATA).read_text(encoding="utf-8")).keys()
        if missing:  # Minari would run the environment to find out
            raise ValueError(f"it doesn't describe its {' and '.join(sorted(missing))}")
        return minari.MinariDataset(folder)
    except (OSError, KeyError, AttributeError, AssertionError, ValueError, TypeError, NotImplementedError) as error:
        raise EpisodeError(f"{folder}: not a dataset that Minari can read ({type(error).__name__}: {error})") from None


def _is_picture(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


def _actions(space: spaces.Space, actions: Any, path: Path) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return (np.asarray(actions) - space.start).astype(np.min_scalar_type(int(space.n) - 1))
    if isinstance(space, spaces.Box):
        return np.asarray(actions, np.float32).reshape(len(actions), -1)
    raise EpisodeError(f"{path}: actions are {type(space).__name__}; an episode has Discrete or Box actions")


def _checked(arrays: dict[str, np.ndarray], frames: int, what: str) -> dict[str, np.ndarray]:
    if wrong := [f"{len(array)} of {name}" for name, array in arrays.items() if len(array) != frames]:
        raise EpisodeError(f"{what}: {frames} pictures, but {', '.join(wrong)}, with what stands before the first step")
    return arrays
