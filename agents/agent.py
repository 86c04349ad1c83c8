"""Agents: whoever acts in dreams and in the real world is asked for actions in the same way, policies from files among them.

lssvwm-gym play memory-maze --policy agents.agent:from_file:runs/ppo/memory-maze/policy.safetensors
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.policies import Policy, policy_for
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import observed


class Agent(Protocol):
    """Acts in some episodes side by side, from their first frame to their last."""

    observation: str  # what it sees: image, latent, features or latent+features

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        """Actions (B,) int64 for observations (B, ...); `info` is the real world's, of its one episode."""


class PolicyAgent:
    """A policy of `agents.policies`."""

    def __init__(self, policy: Policy, dream: Dream, seed: int, greedy: bool) -> None:
        self.observation, self._policy, self._greedy = policy.config.observation, policy, greedy
        self._generator = torch.Generator(dream.device).manual_seed(seed)

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        return self._policy.act(observation, self._generator, self._greedy).cpu().numpy()


def agent_in(path: Path, dream: Dream, seed: int, greedy: bool) -> PolicyAgent:
    """The policy in a file; `greedy` takes its most probable action.

    Raises `ValueError` for one that acts in another world or sees something else.
    """
    if not (path := path.expanduser()).is_file():
        raise ValueError(f"{path}: no such file")
    return PolicyAgent(_policy_in(path, dream, path.stat().st_mtime_ns), dream, seed, greedy)  # one that is learning is loaded anew


@functools.lru_cache(maxsize=16)
def _policy_in(path: Path, dream: Dream, written: int) -> Policy:
    return policy_for(path, dream)


class GameAgent:
    """An agent that chooses the actions of a game of `lssvwm_gym.play`, and sees it as it saw the dreams it learned in."""

    def __init__(self, dream: Dream, agent: Agent) -> None:
        self._dream, self._agent = dream, agent

    def __call__(self, snapshot: Any) -> int:
        return int(self._agent.act(observed(self._dream, snapshot.state.dream, self._agent.observation), None)[0])


def from_file(dream: Dream, argument: str | None, seed: int) -> GameAgent:
    """The policy in a file, .safetensors, for a game. Raises `ValueError` for one that acts in another world or is none."""
    if argument is None:
        raise ValueError("agents.agent:from_file needs the policy's file behind it: agents.agent:from_file:policy.safetensors")
    return GameAgent(dream, agent_in(Path(argument), dream, seed, greedy=False))
