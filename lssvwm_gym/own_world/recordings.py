"""Recordings to dream of instead of an environment: converted where they are of another layout, looked at, some held out to evaluate on.

They stay as they are. `data/train` and `data/test` hold links to them, or to what they were converted to in `converted`, and with those to
learn from a `collecting.json` that says of their world what the layout and the arrays tell.
"""

import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lssvwm_gym.data.collect_gym import SETTINGS, Collection, read_collection
from lssvwm_gym.data.convert.convert import LAYOUTS, convert
from lssvwm_gym.data.convert.recording import SPLITS, keep_settings, note
from lssvwm_gym.data.episode import EpisodeError, episode_paths, opened_video, read_arrays, with_frames
from lssvwm_gym.io.atomic import discard
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.models.geometry import PLANE
from lssvwm_gym.own_world.settings import OwnWorld, command_line
from lssvwm_gym.training.dreamed_samples import GAP

MOST_FRAMES = 100_000  # to learn from; in memory they take 1.2 GB
LEAST = GAP[0] + 2  # frames of an episode that a dream can go on in


class Look(NamedTuple):
    """What an episode is."""

    path: Path  # its npz
    length: int  # frames
    kind: tuple[int, int, int]  # numbers of an action, 0 of a discrete one; of a pose, also where there is none; beside the picture
    actions: int  # discrete ones that are known of
    posed: bool  # whether any pose was recorded
    fps: float


def converted(run: OwnWorld) -> None:
    """Convert what is not yet converted. Raises as `convert`, and `EpisodeError` for a single recording."""
    if run.converting is not None:
        if len(LAYOUTS[run.converting.layout].find(run.converting)[: run.episodes or None]) < 2:
            raise EpisodeError(f"{run.data} holds a single recording; a dream needs one to learn from and another to evaluate on")
        keep_settings(run.converting.out / "recordings.json", {"data": str(run.data), "index": run.index and str(run.index)}, "dream")
        print(command_line("convert", run.converting), flush=True)
        convert(run.converting)


def chosen(run: OwnWorld) -> tuple[list[Look], list[Look]]:
    """The episodes to learn from and those to evaluate on: the recordings' own test folder, or about a twentieth of all, held out.

    Raises `EpisodeError` for no episodes, some that are not whole, of several kinds, or too few that are long enough.
    """
    source = run.converting.out if run.converting else run.data
    assert source is not None
    rng, looks = np.random.default_rng(run.seed), _looks(run, source)
    test = looks.pop("test", []) or looks.pop("val", [])
    learn = looks.pop("", []) + looks.pop("train", [])
    if not learn:
        learn, test = test, []
    if len(names := {look.path.name for look in learn}) < len(learn):
        raise EpisodeError(f"{learn[0].path.parent}: {len(learn) - len(names)} of its episodes have the name of one in train; rename them")
    learn, test = ([part[index] for index in rng.permutation(len(part))] for part in (learn, test))
    own = [look for look in test if look.length >= LEAST]
    long = own or [look for look in learn if look.length >= LEAST]
    test = long[: max(4 if own else 1, len(learn) // 20)]
    held = {look.path for look in test}
    left = [look for look in learn if look.path not in held]
    if not test or not any(look.length >= LEAST for look in left):
        longest = max(look.length for look in [*learn, *test])
        needs = f"a dream needs two of {LEAST} frames and more, one to learn from and one to evaluate on"
        raise EpisodeError(f"{run.data}: {len(learn) + len(own)} episodes, the longest of {longest} frames; {needs}")
    if single := sum(look.length < 2 for look in left):
        note(f"{single} episodes of a single frame are left out")
    left = [look for look in left if look.length > 1]
    frames = np.cumsum([look.length for look in left])
    fitting = len(left) if run.episodes else max(1, int((frames <= MOST_FRAMES).sum()))
    if fitting < len(left):
        note(f"{fitting} of {len(left)} episodes are learned from, {MOST_FRAMES} frames at most")
    return left[:fitting], test


def link_recordings(run: OwnWorld) -> None:
    """Make `data` with links to the `chosen` episodes, and what is known of their world; all or nothing, and once."""
    whole = run.out / "data"
    if whole.exists():
        return
    unfinished = run.out / ".data.part"
    discard(unfinished)
    learn, test = chosen(run)
    for folder, looks in (("train", learn), ("test", test)):
        (unfinished / folder).mkdir(parents=True)
        for look in looks:
            for file in (look.path, look.path.with_suffix(".mp4")):
                _link(file.resolve(), unfinished / folder / file.name, ours=run.converting is not None)
    write_json(unfinished / "train" / SETTINGS, asdict(world_of_recordings(run, [*learn, *test])))
    os.replace(unfinished, whole)


def world_of_recordings(run: OwnWorld, looks: list[Look]) -> Collection:
    """What `collecting.json` says of episodes that are collected here: names and sizes, of which the layout tells some.

    The world has the name of the folder. What nobody names is numbered: `action 0`, `number 0`.
    """
    assert run.data is not None
    known = {} if run.converting is None else LAYOUTS[run.converting.layout].known(run.converting)
    folder, fps = run.data.resolve(), max(1, round(looks[0].fps))
    name = (folder.parent if folder.name in SPLITS else folder).name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "recordings"  # as far as an id may have it
    kept = None if run.converting else read_collection(looks[0].path.parent)
    told = kept or Collection(name, "{}", run.layout or "episodes", run.size, run.crop, fps, steps=0, poses=False, **known)
    size, _, beside = looks[0].kind
    count = 0 if size else max(len(told.actions), *(look.actions for look in looks))
    return replace(
        told,
        size=run.size,
        crop=run.crop,
        fps=run.fps or told.fps,
        steps=max(look.length for look in looks) - 1,
        poses=any(look.posed for look in looks),
        actions=told.actions if len(told.actions) == count else tuple(f"action {number}" for number in range(count)),
        inventory=told.inventory if len(told.inventory) == beside else tuple(f"number {number}" for number in range(beside)),
    )


def _looks(run: OwnWorld, source: Path) -> dict[str, list[Look]]:
    """The episodes of the folder itself (""), and of those in it that keep a split."""
    found = {split: source / split for split in ("", *SPLITS) if any((source / split).glob("*.npz"))}
    looks = {split: [_look(run, path) for path in episode_paths(folder)[: run.episodes or None]] for split, folder in found.items()}
    if not looks:
        what = "holds no episodes (pairs of <name>.mp4 and <name>.npz); other recordings need their --layout"
        raise EpisodeError(f"{source}: {what if source.is_dir() else 'no such folder'}")
    first, *others = [look for part in looks.values() for look in part]
    if other := next((look for look in others if look.kind != first.kind), None):
        raise EpisodeError(
            f"{other.path} and {first.path} are of several worlds: numbers of an action (0: discrete), a pose, and beside the picture "
            f"are {other.kind} and {first.kind}; dream of each kind by itself"
        )
    return looks


def _look(run: OwnWorld, path: Path) -> Look:
    arrays, video = read_arrays(path), path.with_suffix(".mp4")
    with opened_video(video) as stream:
        frames, shape, fps = stream.frames, (stream.height, stream.width), float(stream.average_rate or 1)
    if shape != (run.size, run.size):
        raise EpisodeError(f"{video}: frames are {shape[1]}x{shape[0]} pixels, not {run.size}x{run.size}: --size is that of square frames")
    episode = with_frames(path, arrays, lambda: np.zeros((frames or len(arrays["action"]), 1, 1, 3), np.uint8))
    action, pose = episode.action, episode.pose
    size = action.shape[1] if action.ndim == 2 and action.dtype.kind == "f" else 0
    if not size and (action.ndim != 1 or action.dtype.kind not in "iu" or int(action.min()) < 0):
        raise EpisodeError(f"{path}: actions are whole numbers from 0 (T,) or floats (T, A), not {action.dtype} {action.shape}")
    posed = pose is not None and bool(np.isfinite(pose).all(1).any())
    kind = size, PLANE if pose is None else pose.shape[1], episode.inventory.shape[1]
    return Look(path, len(action), kind, 0 if size else int(action.max()) + 1, posed, fps)


def _link(path: Path, link: Path, ours: bool) -> None:
    """Hard to what was converted here, so that all can be moved together; others' files aren't touched."""
    try:
        link.hardlink_to(path) if ours else link.symlink_to(path)
    except OSError:  # where such links are not to be had
        shutil.copy2(path, link)
