"""The sets of TECO (Yan et al., arXiv 2210.02396): Minecraft's marsh and DMLab, 300 steps a trajectory.

Both lie in `train|test/<folder>/`. Minecraft: `<name>.mp4`, 128×128, beside `<name>.npz` with `actions`. DMLab: `<name>.npz` with `video`
(T, 64, 64, 3) uint8 and `actions`. `actions` is (T,) integer with one entry a frame: entry t led to frame t, and entry 0 is that of the
reset. They hold neither rewards nor poses. With a frame skip of k the k actions between two kept frames become one: read as the digits of
a number, the first action first, so that nothing is lost. What the ids mean: docs/data.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lssvwm_gym.data.convert.recording import Found, Recording, beside
from lssvwm_gym.data.episode import EpisodeError, read_arrays, video_frames

MAX_SKIP = 5  # 3 ** 5 = 243 actions


@dataclass(frozen=True)
class Classes:
    """The action classes of one of the sets."""

    first: int  # id
    names: tuple[str, ...]
    placeholder: bool  # whether entry 0 must be 0
    fps: float  # of the set


MINECRAFT = Classes(1, ("forward", "left", "right"), placeholder=True, fps=4.0)  # 20 ticks a second, 5 ticks a step
# 60 frames a second, every fourth; the files don't say, and only playing the video needs it
DMLAB = Classes(0, ("class 0", "class 1", "class 2"), placeholder=False, fps=15.0)


def read_minecraft(found: Found, skip: int = 1, outgoing: bool = False) -> Recording:
    """Open a trajectory by its mp4, as a recording with `action` (T,) uint8 and `reward` (T,) float32, all 0.

    Every `skip`-th frame is kept. With `outgoing` entry t of the file's actions is the one taken at frame t, not the one that led to it.
    Raises `EpisodeError` for no such files, no plain npz, no `actions`, ids that are none, and while frames are read a broken, short video.
    """
    path, arrays = found.path, beside(found.path, ".npz")
    if not path.exists():
        raise EpisodeError(f"{path}: no such file, though {arrays.name} is there; each needs the other")
    taken = _actions(arrays, read_arrays(arrays), MINECRAFT, outgoing)
    return _recording(path, video_frames(path), taken, MINECRAFT, skip, outgoing)


def read_dmlab(found: Found, skip: int = 1, outgoing: bool = False) -> Recording:
    """Open a trajectory by its npz. As `read_minecraft`; it raises `EpisodeError` for a `video` that is missing or no pictures, too."""
    path, arrays = found.path, read_arrays(found.path)
    taken = _actions(path, arrays, DMLAB, outgoing)
    if "video" not in arrays:
        raise EpisodeError(f"{path}: no array named video; it has {', '.join(sorted(arrays)) or 'none'}")
    video = arrays["video"]
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise EpisodeError(f"{path}: video must be uint8 (T, height, width, 3), got {video.dtype} {video.shape}")
    return _recording(path, video, taken, DMLAB, skip, outgoing)


def joined(action: np.ndarray, classes: Classes, skip: int) -> np.ndarray:
    """One action for every `skip`: (T,) with its placeholder to (1 + (T - 1) // skip,) uint8, placeholder 0."""
    groups = action[1 : 1 + (len(action) - 1) // skip * skip].reshape(-1, skip).astype(np.int64) - classes.first  # (K, skip)
    return np.concatenate([[0], classes.first + groups @ len(classes.names) ** np.arange(skip)[::-1]]).astype(np.uint8)


def action_names(classes: Classes, skip: int) -> tuple[str, ...]:
    """Names of the ids of `joined`."""
    return (*("placeholder",)[: classes.first], *map(", ".join, product(classes.names, repeat=skip)))


def _recording(path: Path, frames: Iterable[np.ndarray], taken: np.ndarray, classes: Classes, skip: int, outgoing: bool) -> Recording:
    def arrays(count: int) -> dict[str, np.ndarray]:
        fits = (count, count - 1) if outgoing else (count,)  # at the last frame no action need have been taken
        if len(taken) not in fits:
            raise EpisodeError(f"{path}: {len(taken)} actions for {count} frames; is the file cut short?")
        led = np.concatenate([[0], taken[: count - 1]]) if outgoing else taken
        action = joined(led, classes, skip)
        return {"action": action, "reward": np.zeros(len(action), np.float32)}

    return Recording(frames, classes.fps, arrays)


def _actions(path: Path, arrays: dict[str, np.ndarray], classes: Classes, outgoing: bool) -> np.ndarray:
    if "actions" not in arrays:
        raise EpisodeError(f"{path}: no array named actions; it has {', '.join(sorted(arrays)) or 'none'}")
    taken = arrays["actions"]
    if taken.ndim != 1 or not np.issubdtype(taken.dtype, np.integer) or len(taken) == 0:
        raise EpisodeError(f"{path}: actions must be integers (T,), got {taken.dtype} {taken.shape}")
    if classes.placeholder and not outgoing and taken[0] != 0:
        otherwise = "if actions[t] is the one taken at frame t, convert with --outgoing"
        raise EpisodeError(f"{path}: actions[0] must be the placeholder 0, got {taken[0]}; {otherwise}")
    last = classes.first + len(classes.names) - 1
    real = taken if outgoing else taken[1:]
    if len(wrong := np.flatnonzero((real < classes.first) | (real > last))):
        at = wrong[0] + len(taken) - len(real)
        raise EpisodeError(f"{path}: actions are {classes.first} to {last}, got {taken[at]} at entry {at}")
    return taken
