"""Collect episodes of any Gymnasium environment with a policy that learned in its dream, for a second round of training.

python -m experiments.collect_with_policy --policy P/policy.safetensors --weights W --game.env CartPole-v1 --game.out data/round_2

A world model that learned from a random player has seen only what such a player lives to see. Recordings of the policy show the rest: put
them beside the first ones and train on (`lssvwm-gym train world --start`). A share of the actions is drawn at random, so that the model
sees what else would have happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.utils._pytree import tree_map

from agents.agent import Agent
from experiments.agents_by_name import open_agent
from lssvwm_gym.data.collect import Policy
from lssvwm_gym.data.collect_gym import GymCollecting, GymRecorder, collect_gym
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import action_space, observation_space
from lssvwm_gym.envs.wrappers import StateEstimator
from lssvwm_gym.worlds import chosen_world


@dataclass(frozen=True)
class PolicyCollecting:
    """Who plays what."""

    policy: Path  # .safetensors
    weights: Path  # folder of the dream that it learned in, whose world model it sees through
    game: GymCollecting
    random: float = 0.1  # chance that an action is drawn at random

    def __post_init__(self) -> None:
        if not 0 <= self.random <= 1:
            raise ValueError(f"random is a chance from 0 to 1, got {self.random}")


class RealPlayer:
    """An agent as the player of an episode of a real environment (`data.collect.record`): it sees what the world model makes of frames."""

    def __init__(self, agent: Agent, dream: Dream) -> None:
        frames = observation_space(dream.world, dream.weights.world_model.config)
        self._agent, self._estimator = agent, StateEstimator(dream, 1, agent.observation, frames, action_space(dream.world))
        self._action: np.ndarray | None = None

    def __call__(self, seen: Any, info: dict[str, Any]) -> int:
        batch = tree_map(lambda part: part[None], seen)
        numbers = self._estimator.reset(batch, np.array([0])) if self._action is None else self._estimator.step(batch, self._action)
        self._action = self._agent.act(torch.from_numpy(numbers), info)
        return int(self._action[0])


def open_recorder(run: PolicyCollecting, game: GymCollecting) -> GymRecorder:
    """A worker's work."""
    torch.set_num_threads(1)
    dream = open_dream(chosen_world("", run.weights), "fast", "cpu", run.weights)

    def player(rng: np.random.Generator) -> Policy:
        return RealPlayer(open_agent(f"{run.policy}@{run.random}", dream, 1, int(rng.integers(2**31))), dream)

    return GymRecorder(game, player)


if __name__ == "__main__":
    chosen = tyro.cli(PolicyCollecting, description=__doc__)
    collect_gym(chosen.game, partial(open_recorder, chosen))
