"""The real world as agents meet it: one episode after the other, or many environments in tensors for `agents.ppo`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.agent import Agent
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import picture_of
from lssvwm_gym.envs.wrappers import NUMBERS, WorldModelObservation, WorldModelObservationVec
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.real_envs.experts.maze_explorer import MazeExplorer


def as_observed(env: gymnasium.Env, dream: Dream, observation: str) -> gymnasium.Env:
    """A real environment, observed through the model but by those who want its images."""
    return env if observation == "image" else WorldModelObservation(env, dream, observation)


def real_episode(
    env: gymnasium.Env, agent: Agent, seed: int, explored: int = 0, show: Callable[[np.ndarray], None] = lambda frame: None
) -> float:
    """An agent's return in one episode; `show` is given its frames (height, width, 3) uint8, the first one too.

    Before the agent takes over, the scripted explorer acts for `explored` steps, the same ones whoever the agent is; they don't count.
    """
    torch.manual_seed(seed)  # some agents draw from it
    observation, info = env.reset(seed=seed)
    explorer = MazeExplorer(np.random.default_rng([seed, explored])) if explored else None
    for _ in range(explored):
        assert explorer is not None
        observation, _, _, _, info = env.step(explorer(picture_of(observation), info))
    earned, over = 0.0, False
    show(_frame(env, observation))
    while not over:
        action = agent.act(torch.from_numpy(picture_of(observation)[None]), info)[0]
        observation, reward, terminated, truncated, info = env.step(action)
        earned, over = earned + float(reward), terminated or truncated
        show(_frame(env, observation))
    return earned


def _frame(env: gymnasium.Env, observation: Any) -> np.ndarray:
    return env.frame if isinstance(env, WorldModelObservation) else picture_of(observation)


class RealEnvs:
    """Real environments, a process each, observed through the model and in tensors, as `DreamVectorEnv(output="torch")` is.

    Raises:
        ValueError: an observation that needs no model, or one that the environment doesn't fit.
    """

    def __init__(self, env: str, dream: Dream, num_envs: int, observation: str, episode_steps: int) -> None:
        if observation not in NUMBERS:
            raise ValueError(f"real environments are seen through the model: observation must be one of {', '.join(NUMBERS)}")
        same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        envs = gymnasium.make_vec(env, num_envs, vectorization_mode="async", vector_kwargs=same_step, max_episode_steps=episode_steps)
        self.envs, self.dream, self.num_envs, self.close = WorldModelObservationVec(envs, dream, observation), dream, num_envs, envs.close
        self.episode_steps = np.zeros(num_envs, np.int64)  # of all rows at a reset

    def reset(self, *, seed: int) -> tuple[Tensor, dict[str, Any]]:
        return self._tensor(self.envs.reset(seed=seed)[0]), {}

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        done, last = np.flatnonzero(terminated | truncated), np.zeros_like(observation)
        for row in done:
            last[row] = info["final_obs"][row]
        parts = map(self._tensor, (observation, reward.astype(np.float32), terminated, truncated))
        return *parts, {"final_obs": self._tensor(last)} if len(done) else {}  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a real environment can't be saved."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> Tensor:
        raise TensorFileError("a real environment can't be saved, and so can't go on where it was")

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.dream.device)
