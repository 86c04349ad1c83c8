"""Real environments as a learner of `agents.ppo_torch` knows dreams: the same tensors, from processes and a model that looks on."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

import lssvwm_gym  # noqa: F401  registers the environments
from agents.dreams import Moment
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import NUMBERS, WorldModelObservationVec
from lssvwm_gym.io.tensors import TensorFileError


class RealRows:
    """`rows` real environments, a process each, that go on for ever; one batch of the model sees for all of them.

    Episodes end as the environment's own do, or after `episode_steps`. Their seeds follow from `seed`.

    Raises:
        ValueError: an observation that needs no model, or one that the environment doesn't fit.
    """

    def __init__(self, env: str, dream: Dream, rows: int, observation: str, episode_steps: int, seed: int = 0) -> None:
        if observation not in NUMBERS:
            raise ValueError(f"real environments are seen through the model: observation must be one of {', '.join(NUMBERS)}")
        envs = gymnasium.make_vec(
            env,
            rows,
            vectorization_mode="async",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            max_episode_steps=episode_steps,
        )
        self.kind = f"times {env}"
        self.envs, self.device = WorldModelObservationVec(envs, dream, observation), dream.device
        self.shape, self.actions = self.envs.single_observation_space.shape or (), len(dream.world.actions)
        self.begin_anew(seed)

    def __len__(self) -> int:
        return self.envs.num_envs

    def begin_anew(self, seed: int) -> None:
        """New episodes everywhere."""
        self.earned = np.zeros(len(self))
        self.totals = np.zeros(2)  # return and number of episodes since `take_totals`
        self.observation = self._tensor(self.envs.reset(seed=seed)[0])

    def step(self, action: Tensor) -> Moment:
        """One step everywhere, for actions (B,) int64."""
        seen, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy())
        done = np.flatnonzero(terminated | truncated)
        last = np.stack([info["final_obs"][row] for row in done]) if len(done) else np.zeros((0, *self.shape), np.float32)
        self.earned += reward
        self.totals += self.earned[done].sum(), len(done)
        self.earned[done] = 0
        self.observation = self._tensor(seen)
        ended = np.zeros(len(self), np.float32)
        ended[done] = 1
        rewards, ends = self._tensor(reward.astype(np.float32)), self._tensor(ended)
        return Moment(rewards, ends, self._tensor(done), self._tensor(last), self._tensor(terminated[done].astype(np.float32)))

    def take_totals(self) -> tuple[float, int]:
        """Return and number of the episodes that ended since the last call."""
        (earned, episodes), self.totals = self.totals, np.zeros(2)
        return float(earned), int(episodes)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: a real environment can't be saved."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Raises `TensorFileError`: whatever was saved, it was no real environment."""
        raise TensorFileError("a real environment can't be saved, and so can't go on where it was")

    def close(self) -> None:
        self.envs.close()

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
