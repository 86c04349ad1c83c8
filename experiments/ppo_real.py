"""Proximal policy optimisation of `agents.ppo`, with the same settings, in real environments that are observed through the model.

python -m experiments.ppo_real --num-envs 8
python -m experiments.ppo_real --env MemoryMaze11x11-Real-v0 --num-envs 8 --start runs/behavior_cloning/memory-maze/policy.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor

import lssvwm_gym  # noqa: F401 - registers the ids
from agents import ppo
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import NUMBERS, WorldModelObservationVec
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.malloc import keep_freed_memory


@dataclass(frozen=True)
class Args(ppo.Args):
    """What to learn, where, and how."""

    env: str = "MemoryMaze9x9-Real-v0"
    num_envs: int | None = 8  # a process each


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


def main(args: Args) -> None:
    ppo.main(args, lambda checked, dream: RealEnvs(args.env, dream, checked.num_envs or 1, checked.observation, checked.episode_steps))


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    main(tyro.cli(Args, description=__doc__))
