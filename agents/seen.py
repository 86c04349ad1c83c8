"""What a policy sees: of a dream, and, through the same model, of the real world.

pixels            the frame, uint8 (height, width, 3)
latent            the frame's latent, float32 (tokens * channels,)
features          the world model's summary of the frame and of its past, float32 (256,)
latent+features   both

env = SeenThroughModel(gymnasium.make("MemoryMaze9x9-Real-v0"), open_dream("memory-maze"), "features")
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lssvwm_gym.envs.dream import Dream
from lssvwm_gym.models.dreaming import DreamState, follow, remember
from lssvwm_gym.models.pose import relative_to

OBSERVATIONS = ("pixels", "latent", "features", "latent+features")


def observed(dream: Dream, state: DreamState, observation: str) -> Tensor:
    """What the state's last frame looks like, (B, ...); see the table above."""
    if observation == "pixels":
        return dream.weights.autoencoder.decode(state.latent)
    parts = {"latent": state.latent.flatten(1), "features": state.features}
    return torch.cat([parts[part] for part in observation.split("+")], -1)


def observed_shape(dream: Dream, observation: str) -> tuple[int, ...]:
    """Shape of one row's observation. Raises `ValueError` for one that doesn't exist."""
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation must be one of {', '.join(OBSERVATIONS)}, not {observation!r}")
    return tuple(observed(dream, dream.empty(torch.zeros(1, dtype=torch.int64)), observation).shape[1:])


class SeenThroughModel(gymnasium.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """A real environment whose observations are those of a dream.

    Each frame is encoded and committed to a state of the world model, as a dream does with a past that it remembers. The
    model reckons its own pose from the actions and from what it sees; with `told_poses` it is told by `info["agent_pos"]`
    and `info["agent_dir"]`, which no policy of the real world could know.

    Raises:
        ValueError: the environment's frames or actions are not the dreamed world's, or the observation doesn't exist.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.int64], dream: Dream, observation: str, told_poses: bool = False) -> None:
        super().__init__(env)
        _check_fit(env, dream)
        shape = observed_shape(dream, observation)
        pixels = observation == "pixels"
        self.observation_space = Box(0, 255, shape, np.uint8) if pixels else Box(-np.inf, np.inf, shape, np.float32)
        self.dream, self.observation, self.told_poses = dream, observation, told_poses
        self.frame = np.zeros((0, 0, 3), np.uint8)  # the last real one, (height, width, 3)
        self._state: DreamState | None = None
        self._origin: Tensor | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        frame, info = self.env.reset(seed=seed, options=options)
        self._state, self._origin = self.dream.empty(torch.zeros(1, dtype=torch.int64)), None
        return self._see(frame, self.dream.weights.world_model.config.actions, info), info  # no action led here: "unknown"

    def step(self, action: np.int64) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._see(frame, int(action), info), reward, terminated, truncated, info

    @torch.no_grad()
    def _see(self, frame: np.ndarray, action: int, info: dict[str, Any]) -> np.ndarray:
        self.frame = frame
        if self.observation == "pixels":
            return frame
        assert self._state is not None
        device, model = self.dream.device, self.dream.weights.world_model
        pixels = torch.from_numpy(np.ascontiguousarray(frame)[None]).to(device)
        latent = self.dream.weights.autoencoder.encode(pixels).half().float()  # rounded like a remembered past
        led = torch.tensor([action], device=device)
        if self.told_poses:
            self._state = remember(model, self._state, latent[:, None], led[:, None], self._told(info)[:, None])
        else:
            self._state = follow(model, self._state, latent, led)
        return observed(self.dream, self._state, self.observation)[0].cpu().numpy()

    def _told(self, info: dict[str, Any]) -> Tensor:
        pose = torch.tensor(np.concatenate([info["agent_pos"], info["agent_dir"]])[None], dtype=torch.float32, device=self.dream.device)
        if self._state is None or pose.shape != self._state.pose.shape:
            raise ValueError(f"{self.dream.world.name} can't be told poses: agent_pos and agent_dir are {pose.shape[1]} numbers together")
        self._origin = pose if self._origin is None else self._origin
        return relative_to(pose, self._origin)


def _check_fit(env: gymnasium.Env[np.ndarray, np.int64], dream: Dream) -> None:
    side, actions = dream.world.image_size, len(dream.world.actions)
    if env.observation_space != Box(0, 255, (side, side, 3), np.uint8):
        raise ValueError(f"frames of {dream.world.name} are uint8 {(side, side, 3)}; the environment's are {env.observation_space}")
    if not isinstance(env.action_space, Discrete) or env.action_space.n != actions:
        raise ValueError(f"{dream.world.name} has {actions} actions; the environment's are {env.action_space}")
