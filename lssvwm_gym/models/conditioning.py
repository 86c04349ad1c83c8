"""What goes into the world model beside the latents: noise level, action, pose, motion and inventory of each frame."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lssvwm_gym.models.config import FEATURES, WorldModelConfig
from lssvwm_gym.models.geometry import PLANE


class FrameInputs(NamedTuple):
    """What is known of each frame beside its latent. Entry t speaks of frame t; action t led to it."""

    noise: Tensor  # (B, T) float, 0 clean .. 1 pure noise
    action: Tensor  # (B, T) int64, `config.actions` where unknown; or (B, T, A) float, NaN where unknown
    pose: Tensor  # (B, T, 4 or 6) as in `lssvwm_gym.models.geometry`, seen from where the state was empty
    motion: Tensor  # (B, T, 3 or 5) since the frame before
    pose_known: Tensor  # (B, T) float, 1 or 0
    inventory: Tensor  # (B, T, V) float counts before the frame; NaN where unknown


class Conditioning(nn.Module):
    """Noise level, action, pose and motion of each frame as one vector (B, T, D)."""

    noise_frequencies = 16
    pose_frequencies = 5

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.width
        self.motion_scale = nn.Buffer(torch.tensor(config.motion_scale), persistent=False)
        self.noise = head(2 * self.noise_frequencies, width, width)
        self.action = ActionEmbedding(config, width)
        axes = 3 if config.spatial else 2
        self.pose = head(2 * axes * self.pose_frequencies + config.pose_size - 2 + len(config.motion_scale) + 1, width, width)
        self.inventory = InventoryEmbedding(config, width) if config.inventory_size else None

    def forward(self, inputs: FrameInputs, known: Tensor | None = None) -> Tensor:
        """`known`: what `without_noise` gave for these inputs, if it was called before."""
        noise = waves(inputs.noise.unsqueeze(-1), 0.25 * math.pi, self.noise_frequencies, growth=1.5)
        return self.noise(noise) + (self.without_noise(inputs) if known is None else known)

    def without_noise(self, inputs: FrameInputs) -> Tensor:
        """The part that does not depend on the noise level, (B, T, D)."""
        place = torch.cat([inputs.pose[..., :2], inputs.pose[..., PLANE : PLANE + 1]], -1)  # x, y and, in space, height
        position, known = waves(place, 0.35, self.pose_frequencies, growth=2.0), inputs.pose_known.unsqueeze(-1)
        pose = torch.cat([position, inputs.pose[..., 2:], inputs.motion / self.motion_scale, torch.ones_like(known)], -1) * known
        both = self.action(inputs.action) + self.pose(pose)
        return both if self.inventory is None else both + self.inventory(inputs.inventory)


class ActionEmbedding(nn.Module):
    """A learned vector for each discrete action and one for "unknown"; a small MLP for continuous actions."""

    def __init__(self, config: WorldModelConfig, width: int) -> None:
        super().__init__()
        self.discrete = nn.Embedding(config.actions + 1, width) if config.actions else None
        self.continuous = head(config.action_size + 1, width, width) if config.action_size else None

    def forward(self, action: Tensor) -> Tensor:
        if self.discrete is not None:
            return self.discrete(action)
        assert self.continuous is not None
        known = ~action.isnan().any(-1, keepdim=True)
        return self.continuous(torch.cat([action.nan_to_num() * known, known.to(action.dtype)], -1))


class InventoryEmbedding(nn.Module):
    """Counts, or numbers of a known range, as a learned vector: a rule such as "at least three planks" is one of the inputs."""

    thresholds = 8

    def __init__(self, config: WorldModelConfig, width: int) -> None:
        super().__init__()
        self.network = head(config.inventory_size * (self.thresholds + 1) + 1, width, width)
        self.range = nn.Buffer(torch.tensor(config.inventory_range).T, persistent=False) if config.inventory_range else None

    def forward(self, inventory: Tensor) -> Tensor:
        """vector (..., V), NaN where unknown."""
        known = ~inventory.isnan().any(-1, keepdim=True)
        counts = inventory.nan_to_num()
        if self.range is not None:  # as if 8 were the most of each
            counts = (self.thresholds * (counts - self.range[0]) / (self.range[1] - self.range[0])).clamp(0, self.thresholds)
        reached = counts.unsqueeze(-1) > torch.arange(self.thresholds, device=inventory.device)
        amount = counts.log1p() if self.range is None else counts / self.thresholds
        return self.network(torch.cat([reached.flatten(-2).to(counts.dtype), amount, known.to(counts.dtype)], -1) * known)


def head(inputs: int, outputs: int, hidden: int = FEATURES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def waves(x: Tensor, lowest: float, count: int, growth: float) -> Tensor:
    """Sines and cosines of x (..., K) at `count` growing frequencies: (..., 2 * K * count)."""
    frequencies = _frequencies.__wrapped__ if torch.compiler.is_compiling() else _frequencies
    angle = x.unsqueeze(-1) * frequencies(lowest, count, growth, x.device)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training, too
def _frequencies(lowest: float, count: int, growth: float, device: torch.device) -> Tensor:
    return lowest * growth ** torch.arange(count, device=device)
