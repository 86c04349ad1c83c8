"""A game on disk: its state as `DreamEnv.save_state` writes it, and what led there.

NAME.safetensors         the state now; any DreamEnv of the same weights loads it
NAME.begin.safetensors   the state where the moves begin
NAME.json                the moves (action and profile), the return so far and the estimated poses
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np

from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.envs.saved_state import load_state, save_state
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import single
from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.play.snapshot import Move, Snapshot

FORMAT = "lssvwm_gym game 1"


def free_name(folder: Path, stem: str, ending: str) -> Path:
    """The first of stem-001, stem-002, ... that is not there yet; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return next(path for number in itertools.count(1) if not (path := folder / f"{stem}-{number:03d}{ending}").exists())


def latest(folder: Path, stem: str) -> Path | None:
    """The game of this stem that was saved last."""
    games = [path for path in folder.glob(f"{stem}-*.safetensors") if not path.name.endswith(".begin.safetensors")]
    return max(games, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def save_game(path: Path, snapshot: Snapshot, dream: Dream) -> None:
    """Write the three files, the state last. Raises `OSError` where they can't be written."""
    save_state(path.with_suffix(".begin.safetensors"), snapshot.begin, dream)
    story = {
        "format": FORMAT,
        "world": dream.world.name,
        "moves": [list(move) for move in snapshot.moves],
        "return": snapshot.earned,
        "trail": [pose.tolist() for pose in snapshot.trail],
    }
    with renamed_when_whole(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(story), encoding="utf-8")
    save_state(path, snapshot.state, dream)


def load_game(path: Path, dream: Dream) -> Snapshot:
    """The snapshot that was saved; of a state alone, one with no moves before it.

    Raises `TensorFileError` for anything that is not a game, or state, of these weights, with the file's name.
    """
    path = path.with_suffix(".safetensors") if path.suffix == ".json" else path
    state = load_state(path, dream)
    if len(state) != 1:
        raise TensorFileError(f"{path}: a state of {len(state)} dreams side by side; a game is one")
    info = single(dream.info(state.dream))
    trail: tuple[np.ndarray, ...] = (info["estimated_pose"],) if "estimated_pose" in info else ()
    if not (story_path := path.with_suffix(".json")).is_file():
        return Snapshot(state, info, begin=state, trail=trail)
    begin = load_state(path.with_suffix(".begin.safetensors"), dream)
    moves, earned, told = _story(story_path, dream)
    if len(begin) != 1 or state.steps[0] - begin.steps[0] != len(moves):
        raise TensorFileError(f"{story_path}: {len(moves)} moves, which do not lead from the beginning to the state beside it")
    same_size = bool(trail) and bool(told) and all(len(pose) == len(trail[0]) for pose in told)
    return Snapshot(state, info, begin, moves, told if same_size else trail, earned)


def _story(path: Path, dream: Dream) -> tuple[tuple[Move, ...], float, tuple[np.ndarray, ...]]:
    try:
        story = json.loads(path.read_text(encoding="utf-8"))
        if story["format"] != FORMAT or story["world"] != dream.world.name:
            raise ValueError(f"format {story['format']!r}, world {story['world']!r}")
        moves = tuple([Move(action, profile) for action, profile in story["moves"]])
        trail = tuple(np.asarray(pose, np.float32) for pose in story["trail"])
        earned = float(story["return"])
        actions = range(len(dream.world.actions))
        if not all(type(move.action) is int and move.action in actions and move.profile in PROFILES for move in moves):
            raise ValueError("moves that this world doesn't have")
        if not math.isfinite(earned) or not all(pose.ndim == 1 and np.isfinite(pose).all() for pose in trail):
            raise ValueError("numbers that are none")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"{path}: not the story of a game of {dream.world.name} ({error})") from None
    return moves, earned, trail
