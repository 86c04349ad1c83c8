"""Whoever plays: scripts, policies of `agents.policy` and of Stable-Baselines3, all asked for actions in the same way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.policy import Policy, load_policy
from agents.seen import observed_shape
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import needs_frame
from lssvwm_gym.io.tensors import load_tensors

if TYPE_CHECKING:
    from agents.mpc import Planning

PLANNER, GREEDY = "planner", "greedy"
SB3_KIND = "lssvwm_gym SB3 policy"  # in the header of files of `agents.sb3_policy`
DREAMLESS = {"explorer"}  # players that need what only the real world's info tells
WANDER = {"forward": 0.7, "turn": 0.3, "keep": 0.8}  # chances: of going forward or turning, and of the same once more


class Player(Protocol):
    """One who plays some episodes side by side, from their first frame to their last."""

    observation: str  # what it wants to see, one of `agents.seen.OBSERVATIONS`

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        """Actions (B,) int64 for observations (B, ...); `info` is the real world's, of its one episode."""


def opened_player(name: str, dream: Dream, rows: int, seed: int, planning: Planning | None = None) -> Player:
    """The player of that name, or in that file, for `rows` episodes side by side; `planning` is the planner's.

    `NAME@greedy` takes a file's likeliest action, `NAME@0.3` any action at all in that share of the steps.

    Raises `ValueError` for one that doesn't exist or plays in another world, `ImportError` where what it needs is missing.
    """
    name, manner = _name_and_manner(name)
    if manner not in ("", GREEDY):
        if name == PLANNER:
            raise ValueError("the planner counts on what it does, so it can't slip: there is no planner@")
        return Slipping(opened_player(name, dream, rows, seed, planning), _share(name, manner), len(dream.world.actions), seed)
    if name.endswith(".safetensors"):
        path, written = Path(name), _written(Path(name))
        return FromFile(path, dream, seed, manner == GREEDY) if _is_ours(path, written) else FromSB3(path, dream, manner == GREEDY)
    if manner:
        raise ValueError(f"{name!r} knows no likeliest action: @{GREEDY} is for policies from files")
    if name == PLANNER:
        from agents.mpc import Planner

        return Planner(dream, rows, seed, planning)
    if name in SCRIPTS:
        return SCRIPTS[name](len(dream.world.actions), rows, np.random.default_rng(seed))
    raise ValueError(f"a policy is {', '.join(SCRIPTS)}, {PLANNER}, or a file that ends in .safetensors, not {name!r}")


def _name_and_manner(name: str) -> tuple[str, str]:
    if "@" not in name or name.endswith(".safetensors"):  # an @ in a file's own name
        return name, ""
    name, _, manner = name.rpartition("@")
    return name, manner or "nothing"


def _share(name: str, manner: str) -> float:
    try:
        share = float(manner)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"behind {name}@ comes {GREEDY}, or the share of random actions from 0 to 1, not {manner!r}")
    return share


class Slipping:
    """Another player who takes any action at all in a share of the steps, and so is of another skill."""

    def __init__(self, player: Player, share: float, actions: int, seed: int) -> None:
        self.observation = player.observation
        self._player, self._share, self._actions, self._rng = player, share, actions, np.random.default_rng([seed, 1])

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        meant = self._player.act(seen, info)
        slips = self._rng.random(meant.shape) < self._share
        return np.where(slips, self._rng.integers(self._actions, size=meant.shape), meant)


class Random:
    """Any action, each as likely."""

    observation = "pixels"

    def __init__(self, actions: int, rows: int, rng: np.random.Generator) -> None:
        self._actions, self._rows, self._rng = actions, rows, rng

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        return self._rng.integers(self._actions, size=self._rows)


class Wander:
    """Forward (1), with turns to the left or right (2 to 5) now and then that last some steps. For Memory Maze's actions."""

    observation = "pixels"

    def __init__(self, actions: int, rows: int, rng: np.random.Generator) -> None:
        if actions != 6:
            raise ValueError(f"wander knows the six actions of Memory Maze, not a world of {actions}")
        self._rng, self._last = rng, np.ones(rows, np.int64)

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        rows = len(self._last)
        turns = np.where(self._rng.random(rows) < WANDER["turn"], self._rng.integers(2, 6, rows), 1)
        self._last = np.where(self._rng.random(rows) < WANDER["keep"], self._last, turns)
        return self._last


class Guided:
    """`lssvwm_gym.real_envs.experts.maze_explorer.MazeExplorer`, which sees the map; one episode, in the real world."""

    observation = "pixels"

    def __init__(self, actions: int, rows: int, rng: np.random.Generator) -> None:
        from lssvwm_gym.real_envs.experts.maze_explorer import MazeExplorer

        self._explorer = MazeExplorer(rng)

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        if info is None:
            raise ValueError("the explorer needs the real world's info")
        return np.array([self._explorer(seen[0].numpy(), info)])


SCRIPTS: dict[str, Callable[[int, int, np.random.Generator], Player]] = {"random": Random, "wander": Wander, "explorer": Guided}


class FromFile:
    """A policy of `agents.policy`."""

    def __init__(self, path: Path, dream: Dream, seed: int, greedy: bool = False) -> None:
        self._policy, _ = _loaded_policy(path, str(dream.device), _written(path))
        config = self._policy.config
        if config.world != dream.world.name or config.actions != len(dream.world.actions):
            raise ValueError(f"{path}: plays in {config.world}, not in {dream.world.name}")
        if config.shape != observed_shape(dream, config.observation):
            wanted = observed_shape(dream, config.observation)
            raise ValueError(f"{path}: sees {config.observation} of shape {config.shape}; this model's is {wanted}")
        self.observation, self._greedy = config.observation, greedy
        self._generator = torch.Generator(dream.device).manual_seed(seed)

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        return self._policy.act(seen, self._generator, self._greedy).cpu().numpy()


class FromSB3:
    """A policy of `agents.sb3_policy`, with its own memory where it has one; it sees the last few frames at once where it learned so."""

    def __init__(self, path: Path, dream: Dream, greedy: bool = False) -> None:
        self._policy, config = _loaded_sb3_policy(path, dream, _written(path))
        if config.observation == "all" and dream.world.inventory:
            raise ValueError(f"{path}: sees counts beside pictures, which no player is shown: let it learn from another observation")
        self.observation = "pixels" if needs_frame(config.observation) else config.observation
        self._frames, self._greedy = config.frame_stack, greedy
        self._past: list[np.ndarray] = []
        self._memory: Any = None

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        now, first = seen.cpu().numpy(), np.full(len(seen), not self._past)
        self._past = [*(self._past or [np.zeros_like(now)] * self._frames), now][-self._frames :]
        stacked = np.concatenate(self._past, -1)
        action, self._memory = self._policy.predict(stacked, self._memory, first, deterministic=self._greedy)
        return np.asarray(action, np.int64)


def _written(path: Path) -> int:
    """When the file was last written: a policy that is learning is loaded anew."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path.stat().st_mtime_ns


@functools.lru_cache(maxsize=16)
def _loaded_policy(path: Path, device: str, written: int) -> tuple[Policy, dict[str, Any]]:
    return load_policy(path, device)


@functools.lru_cache(maxsize=16)
def _loaded_sb3_policy(path: Path, dream: Dream, written: int) -> tuple[Any, Any]:
    try:
        from agents.sb3_policy import load_sb3_policy
    except ImportError as error:
        raise ImportError(f"{path}: a policy of Stable-Baselines3 needs pip install 'lssvwm_gym[agents]' ({error})") from None
    return load_sb3_policy(path, dream, str(dream.device))


@functools.lru_cache(maxsize=16)
def _is_ours(path: Path, written: int) -> bool:
    """Whether a file is of `agents.policy`, or else of `agents.sb3_policy`."""
    return load_tensors(path)[1].get("kind") != SB3_KIND
