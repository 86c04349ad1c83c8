"""A folder of videos, with or without actions: `<name>.mp4`, and beside it perhaps `<name>.npz` or `<name>.csv` with what was done.

An npz holds `action`, whole numbers (T,) or floats (T, A), and may hold `reward` (T,), `agent_pos` (T, 2), `agent_dir` (T, 2) and others;
a csv has a line a frame, of a whole number, or of numbers with commas between. Entry t speaks of frame t: action[t] led there. Where it
was taken there instead, `--outgoing` moves the actions on by one. A video without such a file has one action, which is to go on.

Frames are turned and stretched as the file says that they are to be shown. Where their times are not even, as phones record, frames
without actions are repeated or left out until they are; with actions they stay as they are. A note says either.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lssvwm_gym.data.convert.recording import Found, Recording, beside, files_below, led, note
from lssvwm_gym.data.episode import EpisodeError, opened_video, read_arrays, timed_frames

FPS = 15.0  # where the file doesn't say
OTHERS = (".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v")  # what could be a video, but is not read
LARGEST_CSV = 2**26  # bytes
LONGEST_GAP = 60.0  # seconds between two frames


def find_videos(source: Path) -> list[Found]:
    """Every mp4 in `source` or in any folder below it. Raises `EpisodeError` where there is none."""
    endings = {file.suffix.lower(): file for file in source.rglob("*")} if source.is_dir() else {}
    other = next((endings[ending] for ending in OTHERS if ending in endings), None)
    if other is not None and ".mp4" not in endings:
        raise EpisodeError(f"{other}: only mp4 is read; `ffmpeg -i {other.name} {other.stem}.mp4` makes one of it")
    return files_below(source, (".mp4",))


def read_video_file(found: Found, skip: int = 1, outgoing: bool = False) -> Recording:
    """Open a video and read what lies beside it.

    Raises `EpisodeError` for a broken file, actions that are none, and actions with a `skip`: what several make together nobody says.
    """
    if len(files := [path for ending in (".npz", ".csv") if (path := beside(found.path, ending)).is_file()]) > 1:
        raise EpisodeError(f"{found.path}: {files[0].name} and {files[1].name} lie beside it; which one tells its actions?")
    if files and skip > 1:
        raise EpisodeError(f"{files[0]}: frames can be skipped only where there are no actions")
    arrays, fps = _arrays_of(files[0], outgoing) if files else {}, frames_a_second(found.path)
    frames = even_frames(found.path, fps, resample=not files)
    return Recording(frames, fps, lambda count: _fitting(arrays, count, -(-count // skip), found.path))


def even_frames(path: Path, fps: float, resample: bool = True) -> Iterator[np.ndarray]:
    """The video's frames at even times, `fps` a second: for each of those times the frame that is nearest. Says so where it matters.

    Without `resample` the frames are as they are, and only a note says that their times are not even. Raises `EpisodeError` for what is
    no video, and for one that stands still for `LONGEST_GAP`.
    """
    shown, uneven, begin, last_time, last = 0, 0, 0.0, -1 / fps, np.zeros(0)  # frames given; times from the first frame
    for number, (time, frame) in enumerate(timed_frames(path)):
        begin = (time or 0.0) if number == 0 else begin
        time = last_time + 1 / fps if time is None else time - begin
        if number and not 0 <= time - last_time <= LONGEST_GAP:
            raise EpisodeError(f"{path}: frame {number} is shown {time - last_time:.1f} s after the one before it; cut the video there")
        uneven += number > 0 and abs((time - last_time) * fps - 1) > 0.5
        while number and resample and shown / fps < (last_time + time) / 2:
            yield last
            shown += 1
        if not resample:
            yield frame
        last_time, last = time, frame
    while resample and shown < last_time * fps + 0.5:
        yield last
        shown += 1
    if uneven:
        done = "frames are repeated and left out to make them even" if resample else "its actions are taken for steps of one length"
        note(f"{path}: {uneven} frames are not 1/{fps:.3g} s after the one before; {done}")


def frames_a_second(path: Path) -> float:
    """What the file says; `FPS` where it says nothing sound. Raises `EpisodeError` for what is no video."""
    with opened_video(path) as stream:
        rate = float(stream.average_rate or FPS)
    return rate if 0 < rate <= 1000 else FPS


def _arrays_of(path: Path, outgoing: bool) -> dict[str, np.ndarray]:
    arrays = read_arrays(path) if path.suffix.lower() == ".npz" else {"action": _lines(path)}
    if "action" not in arrays:
        raise EpisodeError(f"{path}: no array named action")
    action = arrays["action"]
    fits = (action.ndim == 1 and action.dtype.kind in "iu") or (action.ndim == 2 and action.dtype.kind == "f" and action.shape[1])
    if not fits or (action.dtype.kind == "f" and not np.isfinite(action).all()) or (action.dtype.kind == "i" and (action < 0).any()):
        raise EpisodeError(f"{path}: actions are whole numbers from 0 (T,) or floats (T, A), not {action.dtype} {action.shape}")
    action = action.astype(np.float32) if action.dtype.kind == "f" else action.astype(np.int64)
    return {**arrays, "action": led(action[:-1]) if outgoing else action}


def _lines(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > LARGEST_CSV:
            raise ValueError(f"more than {LARGEST_CSV} bytes")
        rows = np.loadtxt(path, dtype=np.float64, delimiter=",", ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise EpisodeError(f"{path}: not lines of numbers with commas between ({str(error)[:300]})") from None
    whole = rows.shape[1] == 1 and np.array_equal(rows, np.round(rows)) and np.abs(rows).max(initial=0) < 2**31
    return rows[:, 0].astype(np.int64) if whole else rows


def _fitting(arrays: dict[str, np.ndarray], frames: int, kept: int, path: Path) -> dict[str, np.ndarray]:
    if not arrays:
        return {"action": np.zeros(kept, np.uint8), "reward": np.zeros(kept, np.float32)}
    if len(arrays["action"]) != frames:
        raise EpisodeError(f"{path}: {frames} frames, but {len(arrays['action'])} actions; there is one a frame, the first a placeholder")
    return {"reward": np.zeros(frames, np.float32), **arrays}
