"""Agents: whoever acts in dreams and in the real world is asked for actions in the same way, policies from files among them.

lssvwm-gym play memory-maze --policy agents.agent:from_file:runs/ppo/memory-maze/policy.safetensors
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.policies import SB3_KIND, Policy, choose, policy_for
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import needs_frame
from lssvwm_gym.envs.wrappers import observed
from lssvwm_gym.io.tensors import load_tensors


class Agent(Protocol):
    """Acts in some episodes side by side, from their first frame to their last."""

    observation: str  # what it sees: image, latent, features, latent+features, or the last two +inventory

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        """Actions (B,) int64 for observations (B, ...); `info` is the real world's, of its one episode."""


class PolicyAgent:
    def __init__(self, policy: Policy, dream: Dream, seed: int, greedy: bool) -> None:
        self.observation, self._policy, self._greedy = policy.config.observation, policy, greedy
        self._generator = torch.Generator(dream.device).manual_seed(seed)
        self._memory: Tensor | None = None

    @torch.no_grad()
    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        log_probability, _, self._memory = self._policy(observation, self._memory)
        return choose(log_probability, self._generator, self._greedy).cpu().numpy()


class SB3Agent:
    """A policy of `agents.sb3_policies`, with its LSTM where it has one; it sees the last few frames at once where it learned so."""

    def __init__(self, policy: tuple[Any, Any], greedy: bool) -> None:
        """A policy and its config, as `load_sb3_policy` returns them; it draws from torch's global generator, as all of that library."""
        self._policy, config = policy
        self.observation = "image" if needs_frame(config.observation) else config.observation
        self._frames, self._greedy = config.frame_stack, greedy
        self._past: list[np.ndarray] = []
        self._memory: Any = None

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        now, first = observation.cpu().numpy(), np.full(len(observation), not self._past)
        self._past = [*(self._past or [np.zeros_like(now)] * self._frames), now][-self._frames :]
        stacked = np.concatenate(self._past, -1)
        action, self._memory = self._policy.predict(stacked, self._memory, first, deterministic=self._greedy)
        return np.asarray(action, np.int64)


def agent_in(path: Path, dream: Dream, seed: int, greedy: bool) -> Agent:
    """The policy in a file, of `agents.policies` or of Stable-Baselines3; `greedy` takes its most probable action.

    Raises `ValueError` for one that acts in another world or sees something else, `ImportError` where Stable-Baselines3 is missing.
    """
    if not (path := path.expanduser()).is_file():
        raise ValueError(f"{path}: no such file")
    policy = _policy_in(path, dream, path.stat().st_mtime_ns)  # one that is learning is loaded anew
    return PolicyAgent(policy, dream, seed, greedy) if isinstance(policy, Policy) else SB3Agent(policy, greedy)


@functools.lru_cache(maxsize=16)
def _policy_in(path: Path, dream: Dream, written: int) -> Any:
    if load_tensors(path)[1].get("kind") != SB3_KIND:
        return policy_for(path, dream)
    try:
        from agents.sb3_policies import load_sb3_policy

        policy, config = load_sb3_policy(path, dream, str(dream.device))
    except ImportError as error:
        raise ImportError(f"{path}: a policy of Stable-Baselines3 needs pip install 'lssvwm_gym[agents]' ({error})") from None
    if config.observation == "all" and dream.world.inventory:
        raise ValueError(f"{path}: sees counts beside images, which no agent is shown: let it learn from another observation")
    return policy, config


def from_file(dream: Dream, argument: str | None, seed: int) -> Callable[[Any], int]:
    """The policy in a file, .safetensors, for a game of `lssvwm_gym.play`, which it sees as it saw the dreams it learned in.

    Raises `ValueError` for one that acts in another world or is none.
    """
    if argument is None:
        raise ValueError("agents.agent:from_file needs the policy's file behind it: agents.agent:from_file:policy.safetensors")
    agent = agent_in(Path(argument), dream, seed, greedy=False)
    return lambda snapshot: int(agent.act(observed(dream, snapshot.state.dream, agent.observation), None)[0])
