"""A recorded episode as the world model sees it: latents instead of frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.data.episode import Episode, read_episode
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.geometry import PLANE


@dataclass(frozen=True)
class LatentEpisode:
    """An episode as the world model sees it."""

    latent: Tensor  # (T, N, C) float16
    action: Tensor  # (T,) int64, or (T, A) float32
    reward: Tensor  # (T,) float32
    pose: Tensor  # (T, 4 or 6) float32, in world units; NaN where not recorded
    vector: Tensor  # (T, V) float32, counts that go with a frame, such as an inventory; V is 0 where there are none

    def __len__(self) -> int:
        return len(self.latent)


def encode_episode(path: Path, autoencoder: Autoencoder) -> LatentEpisode:
    """Read an episode and encode its frames."""
    return encoded(read_episode(path), autoencoder)


@torch.no_grad()
def encoded(episode: Episode, autoencoder: Autoencoder, part: slice = slice(None)) -> LatentEpisode:
    """Encode an episode's frames, or a part of them."""
    device = autoencoder.latent_mean.device
    frames = torch.from_numpy(episode.frames[part]).split(100)
    latent = torch.cat([autoencoder.encode(batch.to(device)) for batch in frames])
    pose = np.full((len(episode), PLANE), np.nan, np.float32) if episode.pose is None else episode.pose
    whole = episode.action.dtype.kind in "iu"
    numbers = (episode.action.astype(np.int64 if whole else np.float32), episode.reward, pose, episode.vector)
    return LatentEpisode(latent.half(), *(torch.from_numpy(array[part]) for array in numbers))
