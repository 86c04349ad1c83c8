"""What distinguishes one dreamed world from another, as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class World:
    """A world that can be dreamed: names, sizes, and where its weights lie. Holds no code and imports none.

    Raises `ValueError` where its parts contradict each other.
    """

    id: str  # of the dream, for gymnasium.make
    name: str  # on the command line
    image_size: int  # pixels a side of the square observation
    actions: tuple[str, ...]  # names of the discrete actions; of the numbers of an action, where it is a Box
    keys: dict[str, int]  # keyboard key to action, as gymnasium.utils.play wants it
    fps: int  # frames a second of world time
    reward_values: tuple[float, ...]  # what the classes of the reward head pay
    max_episode_steps: int
    weights: Path  # folder with config.json, model.safetensors, starts.safetensors
    counts: tuple[str, ...] = ()  # what is counted beside the picture, such as the things in an inventory
    most_counted: int = 0  # bound of the observation space
    milestones: tuple[
        tuple[str, float], ...
    ] = ()  # counts that pay, once an episode, when they first rise above 0, instead of reward_values
    changes: bool = False  # whether the agent can change it, so that a place need not look as it did
    near: float = 0.25  # units of length within which two views of one direction show about the same
    border: int = 0  # pixels at the edge that show no part of the world and are left out of scores
    real_id: str | None = None  # the real environment of the same spaces, for gymnasium.make
    low: tuple[float, ...] = ()  # bounds of actions that are a Box, a number each; none where actions are discrete
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.actions or len(set(self.actions)) < len(self.actions):
            raise ValueError(f"{self.name}: actions need names, each its own, got {self.actions}")
        if self.low or self.high:
            if not len(self.low) == len(self.high) == len(self.actions) or not self._bounded():
                raise ValueError(
                    f"{self.name}: low and high don't bound the {len(self.actions)} numbers of an action: {self.low}, {self.high}"
                )
            if self.keys:
                raise ValueError(f"{self.name}: keys are for discrete actions, but an action is {len(self.actions)} numbers")
        strange = [key for key, action in self.keys.items() if not 0 <= action < len(self.actions)]
        if strange:
            raise ValueError(f"{self.name}: keys {strange[:4]} stand for none of the {len(self.actions)} actions")
        uncounted = [name for name, _ in self.milestones if name not in self.counts]
        if uncounted or len(dict(self.milestones)) < len(self.milestones):
            raise ValueError(f"{self.name}: milestones need counts, each its own, but {uncounted[:4] or 'one is there twice'}")
        if self.counts and self.most_counted < 1:
            raise ValueError(
                f"{self.name}: most_counted is {self.most_counted}, so nothing of {', '.join(self.counts[:4])} is ever counted"
            )
        if 2 * self.border >= self.image_size:
            raise ValueError(f"{self.name}: a border of {self.border} leaves nothing of {self.image_size} pixels")
        if self.near < 0:
            raise ValueError(f"{self.name}: near is {self.near}, below 0")

    def _bounded(self) -> bool:
        """Whether low is below high, as the float32 that an action space has."""
        with np.errstate(over="ignore"):
            return bool((np.array(self.low, np.float32) < np.array(self.high, np.float32)).all())

    @property
    def continuous(self) -> bool:
        """Whether an action is numbers within `low` and `high`."""
        return bool(self.low)


WEIGHTS = Path(__file__).parent.parent / "weights"
