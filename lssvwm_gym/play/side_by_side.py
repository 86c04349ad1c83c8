"""The real world side by side with the dream, on the same actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from lssvwm_gym.data.episode import Episode
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.play.snapshot import RealView, Snapshot
from lssvwm_gym.real_envs import SimulatorDied
from lssvwm_gym.worlds import WorldSpec

POSE_KEYS: tuple[str, ...] = ("agent_pos", "agent_dir", "pos", "yaw", "pitch")  # of info, as `Episode.pose` reads them


class RealWorld:
    """The real counterpart of a dreamed world. It can't go back in time: it goes along with one snapshot of the game only.

    Raises:
        ValueError: the world has no real counterpart.
        SimulatorUnavailable: it can't run here; the message says what to install.
    """

    def __init__(self, world: WorldSpec, env: gymnasium.Env[Any, Any] | None = None) -> None:
        if env is None and world.real_id is None:
            raise ValueError(f"{world.name} has no real world that could be shown beside it")
        self.env = env if env is not None else gymnasium.make(str(world.real_id))
        self.at: Snapshot | None = None  # the snapshot of the game that shows it as it is
        self._view: RealView | None = None
        self._origin: np.ndarray | None = None

    def reset(self, seed: int) -> RealView:
        self.at = self._origin = None
        observation, info = self.env.reset(seed=seed)
        self._view = self._seen(observation, info, ())
        return self._view

    def step(self, action: int) -> RealView | None:
        """What the action leads to; None if the simulator has died."""
        before = self._view
        assert before is not None
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except SimulatorDied:
            self.at = None
            return None
        self._view = self._seen(observation, info, before.trail, before.earned + float(reward), terminated or truncated)
        return self._view

    def close(self) -> None:
        self.env.close()

    def _seen(
        self, observation: Any, info: dict[str, Any], trail: tuple[np.ndarray, ...], earned: float = 0.0, over: bool = False
    ) -> RealView:
        frame, inventory = (observation["image"], observation["inventory"]) if isinstance(observation, dict) else (observation, None)
        pose = self._pose(frame, info)
        return RealView(frame, inventory, trail if pose is None else (*trail, pose), earned, over)

    def _pose(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray | None:
        told = {name: np.asarray(info[name])[None] for name in POSE_KEYS if name in info}
        poses = Episode(frame[None], np.zeros(1, np.int64), np.zeros(1, np.float32), told).pose
        if poses is None:
            return None
        self._origin = poses[0] if self._origin is None else self._origin
        return relative_to(torch.from_numpy(poses[0]), torch.from_numpy(self._origin)).numpy()
