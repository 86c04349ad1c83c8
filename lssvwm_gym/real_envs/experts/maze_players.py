"""A player of any world that does not look: what it does depends on its generator alone.

So its recordings show what a wall does, and the same actions can be played in the real world and in a dream of it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

STICKY_SHARE = 0.75  # of the steps that take the last action again


class Sticky:
    """Acts at random, and often again as before; for any Discrete or Box actions.

    Args:
        odds: how often each Discrete action is drawn beside the others; all alike if empty.
        sticky: chance that the last action is taken again.
    """

    name = "sticky"

    def __init__(self, space: gym.Space, odds: tuple[float, ...], sticky: float, rng: np.random.Generator) -> None:
        self._space, self._odds, self._sticky, self._rng = space, odds, sticky, rng
        self._last: Any = None

    def __call__(self, observation: Any, info: dict[str, Any]) -> Any:
        if self._last is None or self._rng.random() >= self._sticky:
            self._last = draw(self._space, self._rng, self._odds)
        return self._last


def draw(space: gym.Space, rng: np.random.Generator, odds: tuple[float, ...]) -> Any:
    """A random action, of Discrete ones by their odds. Raises `ValueError` for odds that are not those of `space`."""
    if not isinstance(space, gym.spaces.Discrete):
        if odds:
            raise ValueError(f"odds are those of Discrete actions, but there is {space}")
        space.seed(int(rng.integers(2**31)))
        return space.sample()
    if odds and len(odds) != space.n:
        raise ValueError(f"{len(odds)} odds for {space.n} actions")
    return int(rng.choice(int(space.n), p=np.array(odds) / sum(odds) if odds else None))
