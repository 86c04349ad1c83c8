"""Players of Memory Maze beside the explorer and the seeker. Two don't look, so they run into walls as an agent that begins to learn does.

What they do depends on their generator alone. So their recordings show what a wall does, and the same actions can be played
in the maze and in a dream of it.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from lssvwm_gym.real_envs.experts.maze_explorer import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, RIGHT, MazeExplorer
from lssvwm_gym.real_envs.experts.maze_seeker import MazeSeeker

TURN_SHARE = (0.05, 0.25)  # of the steps ahead after which a turn begins, by episode
TURN_STEPS = (1, 10)  # 18 to 184 degrees
TURNS = (LEFT, RIGHT, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT)  # each as likely: two of three on the spot
STICKY_ODDS = (0.5, 4.0, 1.0, 1.0, 1.5, 1.5)  # Dirichlet parameters of how often each action is drawn, by episode
STICKY_SHARE = 0.75  # of the steps that take the last action again
MIX = {"wander": 0.45, "sticky": 0.3, "restless": 0.25}  # of the episodes


class Wanderer:
    """Runs ahead, and now and then turns by a random angle."""

    name = "wander"

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._turn_share = rng, rng.uniform(*TURN_SHARE)
        self._turn, self._left = FORWARD, 0  # steps left of the turn

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> int:
        """The next action, 1..5, whatever there is to see."""
        if not self._left and self._rng.random() < self._turn_share:
            self._turn, self._left = int(self._rng.choice(TURNS)), int(self._rng.integers(TURN_STEPS[0], TURN_STEPS[1] + 1))
        if not self._left:
            return FORWARD
        self._left -= 1
        return self._turn


class Sticky:
    """Acts at random, and with a chance of `sticky` again as before; for any Discrete or Box actions.

    `odds` are how often each Discrete action is drawn beside the others; all alike if empty.
    """

    name = "sticky"

    def __init__(self, space: gym.Space, odds: tuple[float, ...], sticky: float, rng: np.random.Generator) -> None:
        self._space, self._odds, self._sticky, self._rng = space, odds, sticky, rng
        self._last: Any = None

    def __call__(self, observation: Any, info: dict[str, Any]) -> Any:
        if self._last is None or self._rng.random() >= self._sticky:
            self._last = draw(self._space, self._rng, self._odds)
        return self._last


class RestlessExplorer(MazeExplorer):
    """An explorer with long bursts of one random action, which end at walls that it would not touch by itself."""

    name = "restless"
    noise_share = (0.06, 0.06)
    burst_steps = (3, 14)
    burst_actions = (FORWARD, FORWARD, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT)


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


def make_sticky(rng: np.random.Generator) -> Sticky:
    return Sticky(gym.spaces.Discrete(len(STICKY_ODDS)), tuple(rng.dirichlet(STICKY_ODDS)), STICKY_SHARE, rng)


def make_mixed(rng: np.random.Generator) -> Wanderer | Sticky | RestlessExplorer:
    """One of the three in `MIX`, for an episode."""
    name = rng.choice(list(MIX), p=list(MIX.values()))
    return Wanderer(rng) if name == "wander" else make_sticky(rng) if name == "sticky" else RestlessExplorer(rng)


PLAYERS: dict[str, Callable[[np.random.Generator], Any]] = {
    "explorer": MazeExplorer,
    "seeker": MazeSeeker,
    "wander": Wanderer,
    "sticky": make_sticky,
    "mixed": make_mixed,
}
