"""Whoever plays: scripts, policies of `agents.policy` and of Stable-Baselines3, all asked for actions in the same way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.policy import Policy, load_policy
from agents.seen import observed_shape
from lssvwm_gym.envs.dream import Dream

DREAMLESS = {"explorer"}  # players that need what only the real world's info tells
WANDER = {"forward": 0.7, "turn": 0.3, "keep": 0.8}  # chances: of going forward or turning, and of the same once more


class Player(Protocol):
    """One who plays some episodes side by side, from their first frame to their last."""

    observation: str  # what it wants to see, one of `agents.seen.OBSERVATIONS`

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        """Actions (B,) int64 for observations (B, ...); `info` is the real world's, of its one episode."""


def opened_player(name: str, dream: Dream, rows: int, seed: int) -> Player:
    """The player of that name, or in that file, for `rows` episodes side by side.

    Raises `ValueError` for one that doesn't exist or plays in another world, `ImportError` where what it needs is missing.
    """
    if name in SCRIPTS:
        return SCRIPTS[name](len(dream.world.actions), rows, np.random.default_rng(seed))
    if name.endswith(".zip"):
        return FromZip(Path(name), dream)
    if name.endswith(".safetensors"):
        return FromFile(Path(name), dream, seed)
    raise ValueError(f"a policy is {', '.join(SCRIPTS)}, or a file that ends in .safetensors or .zip, not {name!r}")


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
    """`lssvwm_gym.simulators.explorer.Explorer`, which sees the map; one episode, in the real world."""

    observation = "pixels"

    def __init__(self, actions: int, rows: int, rng: np.random.Generator) -> None:
        from lssvwm_gym.simulators.explorer import Explorer

        self._explorer = Explorer(rng)

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        if info is None:
            raise ValueError("the explorer needs the real world's info")
        return np.array([self._explorer(seen[0].numpy(), info)])


SCRIPTS: dict[str, Callable[[int, int, np.random.Generator], Player]] = {"random": Random, "wander": Wander, "explorer": Guided}


class FromFile:
    """A policy of `agents.policy`."""

    def __init__(self, path: Path, dream: Dream, seed: int) -> None:
        self._policy, _ = _loaded_policy(path, str(dream.device), _written(path))
        config = self._policy.config
        if config.world != dream.world.name or config.actions != len(dream.world.actions):
            raise ValueError(f"{path}: plays in {config.world}, not in {dream.world.name}")
        if config.shape != observed_shape(dream, config.observation):
            wanted = observed_shape(dream, config.observation)
            raise ValueError(f"{path}: sees {config.observation} of shape {config.shape}; this model's is {wanted}")
        self.observation = config.observation
        self._generator = torch.Generator(dream.device).manual_seed(seed)

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        return self._policy.act(seen, self._generator).cpu().numpy()


class FromZip:
    """A policy of Stable-Baselines3, which sees the last few frames at once where it learned so."""

    observation = "pixels"

    def __init__(self, path: Path, dream: Dream) -> None:
        self._model = _loaded_zip(path, _written(path))
        side, shape = dream.world.image_size, self._model.observation_space.shape
        channels = min(shape[0], shape[-1])
        if sorted(shape) != sorted((side, side, channels)) or channels % 3:
            raise ValueError(f"{path}: sees pictures of shape {shape}; {dream.world.name} has {(side, side, 3)}")
        self._channels_first, self._frames = shape[0] == channels, channels // 3
        self._past: list[np.ndarray] = []

    def act(self, seen: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        frame = seen.cpu().numpy()
        self._past = [*(self._past or [np.zeros_like(frame)] * self._frames), frame][-self._frames :]
        stacked = np.concatenate(self._past, -1)
        action, _ = self._model.predict(stacked.transpose(0, 3, 1, 2) if self._channels_first else stacked, deterministic=False)
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
def _loaded_zip(path: Path, written: int) -> Any:
    from stable_baselines3 import PPO

    return PPO.load(path, device="cpu")
