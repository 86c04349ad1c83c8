"""Turn a folder of public recordings into episodes: `lssvwm-gym convert --source DIR --out DIR --layout teco-minecraft`.

What is there already stays, so the same command goes on where it was. One broken file doesn't stop the others: all that can be converted
is converted, and then one error names the rest.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lssvwm_gym.data.convert import memory_maze, minari, teco, videos, vpt
from lssvwm_gym.data.convert.human_actions import action_names
from lssvwm_gym.data.convert.recording import Found, Framing, Recording, files_below, keep_settings, write_recording
from lssvwm_gym.data.episode import EpisodeError, is_whole
from lssvwm_gym.io.json_config import check_bounds, in_short
from lssvwm_gym.io.video import VIDEO_CRF, check_crf
from lssvwm_gym.io.worker_pool import Done, Failed, WorkerPoolError, run_jobs
from lssvwm_gym.worlds.memory_maze import MEMORY_MAZE

SETTINGS = "converting.json"  # in the folder of the episodes: how they were made
BELOW = ("teco", "vpt", "videos")  # layouts whose recordings are looked for in all folders below the source
SHOWN = 10  # broken files that an error names
LayoutName = Literal["memory-maze", "teco-minecraft", "teco-dmlab", "vpt", "minari", "videos"]

ONLY_FOR: dict[str, str | tuple[str, ...]] = {  # setting: how the layouts that know it begin
    "frame_skip": ("teco", "vpt", "videos"),
    "outgoing": ("teco", "videos"),
    "cut": "vpt",
    "index": "vpt",
    "images": "minari",
}


@dataclass(frozen=True)
class Converting:
    """Which folder to turn into which layout. See docs/data.md for the layouts."""

    source: Path  # folder of the recordings
    out: Path  # folder for the episodes; those already there are kept, and train, val and test become folders in it
    layout: LayoutName = "memory-maze"  # of the source; vpt: BASALT too
    crf: int = VIDEO_CRF  # of the video, 0 (lossless) .. 51 (worst)
    size: int = 64  # pixels a side of the square frames; 0: as recorded
    crop: bool = False  # take the middle square of a frame first; otherwise all of it is squeezed into the square
    frame_skip: int = 1  # teco-*, vpt, videos: keep every so many frames; the actions between become one
    fps: int = 0  # of the video; 0: the layout's own over frame_skip
    episodes: int = 0  # convert the first so many only; 0: all
    workers: int = 1  # processes
    skip_broken: bool = False  # warn of recordings that can't be converted and go on, instead of failing at the end
    outgoing: bool = False  # teco-*, videos: the source's action t is the one taken at frame t, not the one that led to it
    cut: bool = False  # vpt: where video and lines end at different times, take what both have
    index: Path | None = None  # vpt: JSON with the recordings to take, {"basedir": ..., "relpaths": [...]}
    images: str = ""  # minari: the entry of the observations that is the picture

    def __post_init__(self) -> None:
        check_bounds(self, size=0, frame_skip=1, fps=0, episodes=0, workers=1)
        check_crf(self.crf)
        if self.layout.startswith("teco") and (skip := self.frame_skip) > teco.MAX_SKIP:
            raise ValueError(f"frame_skip is at most {teco.MAX_SKIP} with {self.layout}: {skip} make {3**skip} actions")
        given = (name for name in ONLY_FOR if getattr(self, name) != getattr(Converting, name))
        if wrong := sorted(name for name in given if not self.layout.startswith(ONLY_FOR[name])):
            raise ValueError(f"{', '.join(wrong)} can't be set with the layout {self.layout}")

    @property
    def framing(self) -> Framing:
        """What becomes of the frames."""
        return Framing(self.size, self.crop, self.frame_skip)


@dataclass(frozen=True)
class Layout:
    """How to find the recordings of a public set, and how to open one."""

    find: Callable[[Converting], list[Found]]
    read: Callable[[Found, Converting], Recording]
    known: Callable[[Converting], dict[str, Any]] = lambda c: {}  # names and bounds that it tells, as a `Collection` has them


LAYOUTS = {
    "memory-maze": Layout(
        lambda c: [Found(path.stem, path) for path in memory_maze.public_paths(c.source)],
        lambda found, c: memory_maze.open_memory_maze(found),
        lambda c: {"actions": MEMORY_MAZE.actions},
    ),
    "teco-minecraft": Layout(  # a trajectory of which only the npz is there is found too, and can't be read
        lambda c: files_below(c.source, (".mp4", ".npz")),
        lambda found, c: teco.read_minecraft(found, c.frame_skip, c.outgoing),
        lambda c: {"actions": teco.action_names(teco.MINECRAFT, c.frame_skip)},
    ),
    "teco-dmlab": Layout(
        lambda c: files_below(c.source, (".npz",)),
        lambda found, c: teco.read_dmlab(found, c.frame_skip, c.outgoing),
        lambda c: {"actions": teco.action_names(teco.DMLAB, c.frame_skip)},
    ),
    "vpt": Layout(
        lambda c: vpt.find_vpt(c.source, c.index),
        lambda found, c: vpt.read_vpt(found, c.frame_skip, c.cut),
        lambda c: {"actions": action_names(), "inventory": vpt.ITEMS},
    ),
    "minari": Layout(
        lambda c: minari.find_minari(c.source),
        lambda found, c: minari.read_minari(found, c.images),
        lambda c: minari.known_actions(c.source),
    ),
    "videos": Layout(lambda c: videos.find_videos(c.source), lambda found, c: videos.read_video_file(found, c.frame_skip, c.outgoing)),
}


def convert(converting: Converting) -> int:
    """Convert every recording of a folder, those already converted excepted; the number of new episodes.

    Raises `EpisodeError` where the source holds no recordings, some can't be converted (the message names them; the others are), or `out`
    holds episodes that were made with other settings, `WorkerPoolError` where a worker process ended, or can't write.
    """
    source, out = converting.source, converting.out
    if source.resolve() == out.resolve():
        raise EpisodeError(f"{out}: source and out must be different folders")
    if converting.layout.startswith(BELOW) and out.resolve().is_relative_to(source.resolve()):
        raise EpisodeError(f"{out}: lies in the source, where its episodes would be taken for recordings; choose a folder elsewhere")
    found = LAYOUTS[converting.layout].find(converting)[: converting.episodes or None]
    new = [one for one in found if not is_whole(out / one.name)]
    settings = {name: getattr(converting, name) for name in ("layout", "size", "crop", "frame_skip", "outgoing", "images")}
    keep_settings(out / SETTINGS, settings, "convert")
    broken: list[str] = []
    for wrong in tqdm(_work_off(new, converting), total=len(new), unit="episode", desc=f"{len(found) - len(new)} there already"):
        if wrong:
            broken.append(wrong)
            tqdm.write(f"left out: {wrong}", file=sys.stderr)
    if broken and not converting.skip_broken:
        more = f"\nand {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise EpisodeError(
            f"{len(broken)} of {len(found)} recordings can't be converted, the others are; repair or remove them, or leave them out with "
            "--skip-broken:\n" + "\n".join(broken[:SHOWN]) + more
        )
    return len(new) - len(broken)


def _work_off(new: list[Found], converting: Converting) -> Iterator[str]:
    """Convert them in any order; what is wrong with each, "" if nothing."""
    if converting.workers == 1 or len(new) < 2:
        yield from map(Converter(new, converting), range(len(new)))
        return
    with closing(run_jobs(range(len(new)), partial(Converter, new, converting), converting.workers)) as messages:
        for message in messages:
            if isinstance(message, Failed):
                raise WorkerPoolError(f"{new[message.job].path}: {message.why.strip().splitlines()[-1]}")
            if isinstance(message, Done):
                yield message.answer


class Converter:
    """A worker's work: it converts recordings by their numbers."""

    def __init__(self, new: list[Found], converting: Converting) -> None:
        self._new, self._converting = new, converting

    def __call__(self, job: int, report: Callable[[int], None] = lambda amount: None) -> str:
        """What is wrong with the recording, "" if nothing."""
        one, converting = self._new[job], self._converting
        try:
            recording = LAYOUTS[converting.layout].read(one, converting)
            write_recording(converting.out / one.name, recording, converting.framing, converting.fps, converting.crf)
        except EpisodeError as error:
            return str(error)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # of a file that says what nobody foresaw
            return f"{one.path}: can't be converted ({type(error).__name__}: {in_short(error)})"
        return ""

    def close(self) -> None:
        """Nothing is kept open."""
