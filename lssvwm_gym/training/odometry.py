"""Visual odometry: the motion between two frames, from both and an estimate that is off."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.data.segments import Episodes
from lssvwm_gym.models.geometry import motion_between
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training.distributed import ALONE, ProcessGroup

PAIRS = 512  # of an update
BLUR = 0.1  # noise on the latents, so that the head sees shapes and not single frames


SURE, CONFUSED = 0.6, 0.25  # shares of estimates that are nearly right, and that are another pair's; the rest is off by much
TINY, LARGE = 0.02, 0.5  # of the typical motion


def train_odometry(
    model: WorldModel,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    updates: int,
    rng: np.random.Generator,
    group: ProcessGroup = ALONE,
) -> Tensor:
    """Some updates of the odometry head, each by a few hundred pairs of frames; returns the mean loss."""
    losses = torch.zeros(max(1, updates), device=episodes.device)
    for update in range(updates):
        optimizer.zero_grad()
        loss = odometry_loss(model, episodes, PAIRS, rng, group)
        loss.backward()
        group.add_gradients(model.odometry_head.parameters())
        optimizer.step()
        losses[update] = loss.detach()
    return group.summed(losses.mean())


def odometry_loss(model: WorldModel, episodes: Episodes, pairs: int, rng: np.random.Generator, group: ProcessGroup = ALONE) -> Tensor:
    """How far off the seen motions of some random pairs of frames are, in typical motions; zero where no poses are recorded.

    Each process takes its share of the pairs; their losses add up to that of all.
    """
    number = rng.integers(len(episodes), size=pairs)
    index = episodes.index(episodes.start[number] + rng.integers(2, np.array(episodes.lengths)[number]))
    whole, generator = episodes.whole, torch.Generator(episodes.device).manual_seed(int(rng.integers(2**62)))
    poses = torch.stack([whole.pose[index - ago] for ago in (2, 1, 0)], 1)
    known = poses.isfinite().flatten(1).all(1, keepdim=True)
    last, motion = motion_between(poses[:, :2], poses[:, 1:]).where(known.unsqueeze(1), 0).unbind(1)
    scale, head = model.odometry_head.motion_scale, model.odometry_head
    shard = group.share(pairs)
    before, latent = (_blurred(whole.latent, index - ago, shard, generator) for ago in (1, 0))
    estimate, estimate_last = (_estimated(true, scale, generator)[shard] for true in (motion, last))
    seen = head(before, latent, whole.action[index[shard]], estimate, estimate_last)
    loss = F.smooth_l1_loss(seen / scale, motion[shard] / scale, beta=TINY, reduction="none")
    return (loss * known[shard]).sum() / (known.sum() * len(scale)).clamp(min=1)


def _blurred(latent: Tensor, index: Tensor, shard: slice, generator: torch.Generator) -> Tensor:
    noise = torch.randn(len(index), *latent.shape[1:], generator=generator, device=latent.device)
    return latent[index[shard]].float() + BLUR * noise[shard]


def _estimated(motion: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Motions (K, 3) as they might have been estimated."""
    kind = torch.rand(len(motion), 1, generator=generator, device=motion.device)
    noise = torch.randn(motion.shape, generator=generator, device=motion.device) * scale
    others = motion[torch.randperm(len(motion), generator=generator, device=motion.device)]
    return torch.where(kind < SURE, motion + TINY * noise, torch.where(kind < SURE + CONFUSED, others, motion + LARGE * noise))
