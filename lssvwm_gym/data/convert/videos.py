"""A folder of videos, with or without actions: `<name>.mp4`, and beside it perhaps `<name>.npz` or `<name>.csv` with what was done.

An npz holds `action`, whole numbers (T,) or floats (T, A), and may hold `reward` (T,), `agent_pos` (T, 2), `agent_dir` (T, 2) and others;
a csv has a line a frame, of a whole number, or of numbers with commas between. Entry t speaks of frame t: action[t] led there. Where it
was taken there instead, `--outgoing` moves the actions on by one. A video without such a file has one action, which is to go on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lssvwm_gym.data.convert.recording import Found, Recording, files_below
from lssvwm_gym.data.episode import EpisodeError, read_arrays, video_frames

FPS = 15.0  # where the file doesn't say
OTHERS = (".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v")  # what could be a video, but is not read
LARGEST_CSV = 2**26  # bytes


def find_videos(source: Path) -> list[Found]:
    """Every mp4 in `source` or in any folder below it. Raises `EpisodeError` where there is none."""
    if source.is_dir() and not any(source.rglob("*.mp4")):
        other = next((file for ending in OTHERS for file in source.rglob(f"*{ending}")), None)
        if other is not None:
            raise EpisodeError(f"{other}: only mp4 is read; `ffmpeg -i {other.name} {other.stem}.mp4` makes one of it")
    return files_below(source, (".mp4",))


def read_video_file(found: Found, skip: int = 1, outgoing: bool = False) -> Recording:
    """Open a video and read what lies beside it.

    Raises:
        EpisodeError: a broken file, actions that are none, or actions with a `skip`: what several of them make together nobody says.
    """
    beside = [path for ending in (".npz", ".csv") if (path := found.path.with_suffix(ending)).is_file()]
    if len(beside) > 1:
        raise EpisodeError(f"{found.path}: {beside[0].name} and {beside[1].name} lie beside it; which one tells its actions?")
    if beside and skip > 1:
        raise EpisodeError(f"{beside[0]}: frames can be skipped only where there are no actions")
    told = _told(beside[0], outgoing) if beside else {}
    return Recording(
        video_frames(found.path), frames_a_second(found.path), lambda frames: _arrays(told, frames, -(-frames // skip), found.path)
    )


def frames_a_second(path: Path) -> float:
    """What the file says; `FPS` where it says nothing sound. Raises `EpisodeError` for what is no video."""
    import av

    try:
        with open(path, "rb") as file, av.open(file, format="mp4") as container:
            rate = float(container.streams.video[0].average_rate or FPS)
    except Exception as error:  # whatever a parser of foreign bytes trips over: the file is no such video
        raise EpisodeError(f"{path}: not a readable video ({str(error)[:300] or type(error).__name__})") from None
    return rate if 0 < rate <= 1000 else FPS


def _told(path: Path, outgoing: bool) -> dict[str, np.ndarray]:
    arrays = read_arrays(path) if path.suffix == ".npz" else {"action": _lines(path)}
    if "action" not in arrays:
        raise EpisodeError(f"{path}: no array named action")
    action = arrays["action"]
    fits = (action.ndim == 1 and action.dtype.kind in "iu") or (action.ndim == 2 and action.dtype.kind == "f" and action.shape[1])
    if not fits or (action.dtype.kind == "f" and not np.isfinite(action).all()) or (action.dtype.kind == "i" and (action < 0).any()):
        raise EpisodeError(f"{path}: actions are whole numbers from 0 (T,) or floats (T, A), not {action.dtype} {action.shape}")
    action = action.astype(np.float32) if action.dtype.kind == "f" else action.astype(np.int64)
    return {**arrays, "action": np.concatenate([np.zeros_like(action[:1]), action[:-1]]) if outgoing else action}


def _lines(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > LARGEST_CSV:
            raise ValueError(f"more than {LARGEST_CSV} bytes")
        rows = np.loadtxt(path, dtype=np.float64, delimiter=",", ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise EpisodeError(f"{path}: not lines of numbers with commas between ({str(error)[:300]})") from None
    whole = rows.shape[1] == 1 and np.array_equal(rows, np.round(rows)) and np.abs(rows).max(initial=0) < 2**31
    return rows[:, 0].astype(np.int64) if whole else rows


def _arrays(told: dict[str, np.ndarray], frames: int, kept: int, path: Path) -> dict[str, np.ndarray]:
    if not told:
        return {"action": np.zeros(kept, np.uint8), "reward": np.zeros(kept, np.float32)}
    if len(told["action"]) != frames:
        raise EpisodeError(f"{path}: {frames} frames, but {len(told['action'])} actions; there is one a frame, the first a placeholder")
    return {"reward": np.zeros(frames, np.float32), **told}
