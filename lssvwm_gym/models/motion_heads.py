"""Motion from frame to frame: what an action leads to expect, and its correction by what is seen (visual odometry)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding
from lssvwm_gym.models.config import FEATURES, WorldModelConfig


class MotionHead(nn.Module):
    """Expects the next motion from the committed frame's features, the last motion and the next action."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.action = ActionEmbedding(config, FEATURES)
        self.network = nn.Sequential(
            nn.Linear(2 * FEATURES + len(config.motion_scale), FEATURES),
            nn.SiLU(),
            nn.Linear(FEATURES, FEATURES),
            nn.SiLU(),
            nn.Linear(FEATURES, len(config.motion_scale)),
        )

    def forward(self, features: Tensor, motion: Tensor, next_action: Tensor) -> Tensor:
        """features (..., FEATURES) and motion of a frame, the action that follows; the motion it leads to, (..., 3 or 5)."""
        known = torch.cat([features, motion / self.motion_scale, self.action(next_action)], -1)
        return self.network(known) * self.motion_scale


class OdometryHead(nn.Module):
    """Visual odometry: corrects the motion that the action leads to expect by what two clean frames show."""

    def __init__(self, config: WorldModelConfig, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.frames = nn.Linear(2 * config.tokens * config.latent_channels + 2 * len(config.motion_scale), hidden)
        self.action = ActionEmbedding(config, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, len(config.motion_scale)))
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, before: Tensor, latent: Tensor, action: Tensor, motion: Tensor, last_motion: Tensor) -> Tensor:
        """The motion (..., 3 or 5) from latents `before` to `latent` (..., N, C), where the action leads to expect `motion`."""
        motions = torch.cat([motion, last_motion], -1) / self.motion_scale.repeat(2)
        seen = self.frames(torch.cat([before.flatten(-2), latent.flatten(-2), motions], -1)) + self.action(action)
        return motion + self.network(seen) * self.motion_scale
