"""One recording of a public set on its way to becoming an episode: frames that are still in their file, and arrays.

Long videos stream: a frame is decoded, kept or skipped, cropped, resized and encoded before the next one is read.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from lssvwm_gym.data.episode import EpisodeError, write_arrays
from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.json_config import needed, parsed, write_json
from lssvwm_gym.io.video import write_video

T = TypeVar("T")

SPLITS = ("train", "val", "test")  # folders of a public set that stay folders
MIN_SIDE, MIN_PEAK = 16, 16  # pixels a side and brightness, below which an array shows codes and not a picture


@dataclass(frozen=True)
class Found:
    """Where a recording lies, and the name that its episode gets."""

    name: str  # without ending, perhaps with a split before it: train/7-000012
    path: Path  # the file that messages name
    number: int = 0  # in a file that holds many


@dataclass(frozen=True)
class Recording:
    """A recording that has been opened."""

    frames: Iterable[np.ndarray]  # uint8 (height, width, 3), all of them, one after the other
    fps: float  # frames a second of world time
    arrays: Callable[[int], dict[str, np.ndarray]]  # number of frames -> arrays of the kept ones; raises where they don't belong together
    longest: int | None = None  # frames after so many are counted but not kept


@dataclass(frozen=True)
class Framing:
    """What becomes of the frames."""

    size: int = 64  # pixels a side of the square picture; 0: as recorded
    crop: bool = False  # take the middle square first; otherwise the whole picture is squeezed into the square
    skip: int = 1  # keep frames 0, skip, 2 * skip, ...


def write_recording(path: Path, recording: Recording, framing: Framing, fps: int, crf: int) -> None:
    """Write `path` with the endings .mp4 and .npz, each whole or not at all, the npz last.

    `fps` are frames a second of the video, 0 for the recording's own over `framing.skip`; `crf` is the video's, 0 (lossless) .. 51 (worst).
    Raises `EpisodeError` where the source is broken, or its frames and arrays don't belong together.
    """
    numbers = count()
    frames = (frame for frame, _ in zip(recording.frames, numbers, strict=False))
    with renamed_when_whole(path.with_name(path.name + ".mp4")) as unfinished:
        kept = (framed(frame, framing) for frame in islice(frames, 0, recording.longest, framing.skip))
        write_video(unfinished, kept, fps or max(1, round(recording.fps / framing.skip)), crf)
        deque(frames, maxlen=0)  # counts those that are left
        arrays = recording.arrays(next(numbers))
    write_arrays(path.with_name(path.name + ".npz"), arrays)


def framed(frame: np.ndarray, framing: Framing) -> np.ndarray:
    """Crop and resize one uint8 (height, width, 3) frame. A pixel becomes the mean of the area that it covers (box filter)."""
    height, width = frame.shape[:2]
    if framing.crop:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
    if framing.size in (0, frame.shape[0]) and framing.size in (0, frame.shape[1]):
        return frame
    Image = needed("PIL.Image", "resizing frames needs Pillow: pip install 'lssvwm_gym[video]', or convert with --size 0")
    return np.array(Image.fromarray(frame).resize((framing.size, framing.size), Image.Resampling.BOX))  # writable


def files_below(folder: Path, endings: Sequence[str]) -> list[Found]:
    """Every file below `folder` with one of the endings, in any case; files of one stem once (the first ending's), sorted by name.

    Raises `EpisodeError` for no such folder, nothing in it, and two files whose episodes would have the same name.
    """
    if not folder.is_dir():
        raise EpisodeError(f"{folder}: no such folder")
    files = [file for file in folder.rglob("*") if file.suffix.lower() in endings and not file.name.startswith(".")]
    if not files:
        raise EpisodeError(f"{folder}: holds no {' or '.join(endings)}, in no folder below it either")
    stems = {file.with_suffix("").relative_to(folder): file for file in files}
    return named({stem: beside(file, endings[0]) for stem, file in stems.items()})


def beside(path: Path, ending: str) -> Path:
    """The file of the same stem with an ending in any case, else with that ending. Raises `EpisodeError` for two such files."""
    files = sorted(file for file in path.parent.glob(f"{escape(path.stem)}.*") if file.stem == path.stem and file.suffix.lower() == ending)
    if len(files) > 1:
        raise EpisodeError(f"{files[1]}: would become the same episode as {files[0]}; rename one of them")
    return files[0] if files else path.with_suffix(ending)


def led(rows: np.ndarray) -> np.ndarray:
    """(T, ...) of the steps to (T + 1, ...) of the frames that they led to; zeros stand at the first."""
    return np.concatenate([np.zeros_like(rows, shape=(1, *rows.shape[1:])), rows])


def note(message: str) -> None:
    """Say what becomes of a recording that is not as it should be, and go on."""
    tqdm.write(message, file=sys.stderr)


def not_a_picture(frames: np.ndarray) -> str:
    """Why uint8 (..., height, width, 3) can't be a picture but holds codes, such as a map of what lies where; "" for a picture."""
    if min(frames.shape[-3:-1]) < MIN_SIDE:
        return f"{frames.shape[-3]}x{frames.shape[-2]} is too small for a picture"
    return "" if frames.max(initial=0) >= MIN_PEAK else f"nothing in it is brighter than {frames.max(initial=0)} of 255"


def named(files: dict[Path, Path]) -> list[Found]:
    """Give every file a name that is flat but for the split: train/7/a.b -> train/7-a_b.

    Files are by their paths below the source's folder, without ending. Raises `EpisodeError` where two would get the same name.
    """
    taken: dict[str, Path] = {}
    for below, file in files.items():
        split = [below.parts[0]] if len(below.parts) > 1 and below.parts[0] in SPLITS else []
        name = "/".join([*split, "-".join(below.parts[len(split) :]).replace(".", "_")])  # a dot would begin an ending
        if name in taken:
            raise EpisodeError(f"{file}: would become the same episode as {taken[name]}; rename one of them")
        taken[name] = file
    return [Found(name, file) for name, file in sorted(taken.items())]


def read_settings(path: Path, made: Callable[[dict[str, Any]], T], verb: str) -> T | None:
    """What a file says about how the episodes beside it were made; None where there is none. Raises `EpisodeError` for a broken one."""
    if not path.is_file():
        return None
    try:
        return made(dict(parsed(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise EpisodeError(f"{path}: doesn't say how the episodes there were made ({error}); {verb} into another folder") from None


def keep_settings(path: Path, settings: dict[str, Any], verb: str) -> None:
    """Write down how the episodes of a folder are made. Raises `EpisodeError` if those already there were made in another way."""
    before, settings = read_settings(path, dict, verb), json.loads(json.dumps(settings))
    if before is None:
        write_json(path, settings)
    elif other := [f"{name} {before.get(name)}, not {value}" for name, value in settings.items() if before.get(name) != value]:
        raise EpisodeError(f"{path}: the episodes there were made with {', '.join(other)}; {verb} into another folder")
