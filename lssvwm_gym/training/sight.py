"""Learning to see one's own motion: pairs of neighbouring frames, and a motion between them that was reckoned wrongly."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.models.latents import LatentEpisode
from lssvwm_gym.models.pose import motion_between
from lssvwm_gym.models.world_model import WorldModel

SURE, CONFUSED = 0.6, 0.25  # shares of motions told nearly right, and told as another pair's; the rest is off by much
TINY, LARGE = 0.02, 0.5  # of the typical motion
PAIRS = 512  # of an update
BLUR = 0.1  # noise on the latents, so that the head sees shapes and not single frames


def learn_to_see(
    model: WorldModel, optimizer: torch.optim.Optimizer, episodes: list[LatentEpisode], updates: int, rng: np.random.Generator
) -> Tensor:
    """Some updates of the sight head, each by a few hundred pairs of frames; returns the mean loss."""
    losses = torch.zeros(max(1, updates))
    for update in range(updates):
        optimizer.zero_grad()
        loss = sight_loss(model, episodes, PAIRS, rng)
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        losses[update] = loss.detach()
    return losses.mean()


def sight_loss(model: WorldModel, episodes: list[LatentEpisode], pairs: int, rng: np.random.Generator) -> Tensor:
    """How far off the seen motions of some random pairs of frames are, in typical motions; zero where no poses are recorded."""
    latents, action, poses = (torch.stack(column) for column in zip(*_drawn(episodes, pairs, rng), strict=True))
    before, latent = latents.unbind(1)
    last, motion = motion_between(poses[:, :2], poses[:, 1:]).unbind(1)
    known = motion.isfinite().all(-1) & last.isfinite().all(-1)
    if not known.any():
        return torch.zeros(())
    before, latent, action, motion, last = (tensor[known] for tensor in (before, latent, action, motion, last))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    scale, head = model.sight_head.motion_scale, model.sight_head
    before, latent = (frame.float() + BLUR * torch.randn(frame.shape, generator=generator) for frame in (before, latent))
    seen = head(before, latent, action, _told(motion, scale, generator), _told(last, scale, generator))
    return F.smooth_l1_loss(seen / scale, motion / scale, beta=TINY)


def _drawn(episodes: list[LatentEpisode], pairs: int, rng: np.random.Generator) -> list[tuple[Tensor, ...]]:
    """Two latents, the action between them, and three poses, for each pair."""
    chosen = [episodes[number] for number in rng.integers(len(episodes), size=pairs).tolist()]
    places = rng.integers(2, [len(episode) for episode in chosen]).tolist()
    return [(e.latent[t - 1 : t + 1], e.action[t], e.pose[t - 2 : t + 1]) for e, t in zip(chosen, places, strict=True)]


def _told(motion: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Motions (K, 3) as they might have been reckoned."""
    kind, noise = torch.rand(len(motion), 1, generator=generator), torch.randn(motion.shape, generator=generator) * scale
    others = motion[torch.randperm(len(motion), generator=generator)]
    return torch.where(kind < SURE, motion + TINY * noise, torch.where(kind < SURE + CONFUSED, others, motion + LARGE * noise))
