"""What heads predict from the features of a committed frame: the next motion, its correction by odometry, the inventory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding, InventoryEmbedding, head
from lssvwm_gym.models.config import FEATURES, WorldModelConfig


class InventoryHead(nn.Module):
    """Predicts by how much each count changed with a committed frame: logits of the changes -K .. K."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.size, self.most = config.inventory_size, config.max_inventory_change
        self.action = ActionEmbedding(config, FEATURES)
        self.before = InventoryEmbedding(config.inventory_size, FEATURES)
        self.network = head(3 * FEATURES, self.size * (2 * self.most + 1))

    def forward(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """features (..., FEATURES) of a frame, the counts before it (..., V), the action that led to it; logits (..., V, 2K + 1)."""
        logits: Tensor = self.network(torch.cat([features, self.before(before), self.action(action)], -1))
        return logits.unflatten(-1, (self.size, -1))

    def after(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """The counts (..., V) after the likeliest changes, none below 0."""
        return (before + self(features, before, action).argmax(-1) - self.most).clamp(min=0)


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


class CollisionMotionHead(nn.Module):
    """Expects the next motion from what the last frame shows: whether the step is blocked, and the motion in either case.

    The likelier case's motion is expected, for a mean of both is neither.
    """

    def __init__(self, config: WorldModelConfig, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.frame = nn.Linear(config.tokens * config.latent_channels + len(config.motion_scale), hidden)
        self.action = ActionEmbedding(config, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.blocked, self.motions = nn.Linear(hidden, 1), nn.Linear(hidden, 2 * len(config.motion_scale))

    def forward(self, latent: Tensor, motion: Tensor, next_action: Tensor) -> Tensor:
        """latent (..., N, C) and motion of a frame, the action that follows; the motion it leads to, (..., 3 or 5)."""
        blocked, motions = self.cases(latent, motion, next_action)
        return torch.where(blocked.unsqueeze(-1) > 0, motions[..., 1, :], motions[..., 0, :])

    def cases(self, latent: Tensor, motion: Tensor, next_action: Tensor) -> tuple[Tensor, Tensor]:
        """The logit (...) of the step being blocked, and motions (..., 2, 3 or 5): if it isn't, and if it is."""
        seen = torch.cat([latent.flatten(-2), motion / self.motion_scale], -1)
        hidden = self.network(self.frame(seen) + self.action(next_action))
        return self.blocked(hidden)[..., 0], self.motions(hidden).unflatten(-1, (2, -1)) * self.motion_scale


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
