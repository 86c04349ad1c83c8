"""An environment with health and a position beside its picture, registered as Hearts-v0 when it is imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Text


class Hearts(gym.Env[Any, Any]):
    """Loses 20 of its health at action 1 and dies of it; the last picture is black. It drifts by half a metre a step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012
    observation_space = Dict(
        {"view": Box(0, 255, (20, 20, 3), np.uint8), "health": Box(0, 100, (1,)), "at": Box(-9, 9, (2,)), "says": Text(9)}
    )
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.health, self.time = 100, 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.health, self.time = self.health - 20 * int(action), self.time + 1
        return self._seen(), 1.0, self.health <= 0, False, {}

    def _seen(self) -> dict[str, Any]:
        view = np.full((20, 20, 3), self.health, np.uint8)
        view[: 1 + self.time % 19, :, 0] = 2 * self.health
        at = np.array([self.time / 2, -self.time / 2], np.float32)
        return {"view": view, "health": np.array([self.health], np.float32), "at": at, "says": "ouch"}


gym.register("Hearts-v0", Hearts)
