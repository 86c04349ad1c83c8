"""How fast the real block world is here: `python experiments/luanti_speed.py [EPISODES]`.

Whole episodes of each scripted player and of random actions, with their resets; the start of the client counts, too.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.luanti_chopper import LuantiChopper
from experiments.luanti_expert import BURST_WEIGHTS
from experiments.luanti_explorer import LuantiExplorer
from lssvwm_gym.real_envs.luanti.env import EPISODE_STEPS, LuantiEnv

SHARES = BURST_WEIGHTS / BURST_WEIGHTS.sum()


class RandomActions:
    """Actions without a plan, walking and turning more than crafting."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.start: dict[str, Any] = {}

    def __call__(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> int:
        return int(self._rng.choice(len(SHARES), p=SHARES))


def measure(make_player: Callable[[np.random.Generator], Any], episodes: int) -> tuple[float, float]:
    """Steps a second, and a second of all processes' time on a core."""
    started, busy = time.perf_counter(), _core_seconds()
    env = LuantiEnv(senses=True)
    for seed in range(episodes):
        player = make_player(np.random.default_rng([seed, 1]))
        observation, info = env.reset(seed=seed, options=player.start)
        truncated = False
        while not truncated:
            observation, _, _, truncated, info = env.step(player(observation, info))
    env.close()
    steps = episodes * EPISODE_STEPS
    return steps / (time.perf_counter() - started), steps / (_core_seconds() - busy)


def _core_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]  # of children that have ended
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    for player in (RandomActions, LuantiExplorer, LuantiChopper):
        a_second, a_core_second = measure(player, episodes)
        print(f"{player.__name__:<14} {a_second:6.1f} steps a second, {a_core_second:6.1f} a core second")


if __name__ == "__main__":
    main()
