"""How much an error in the latent shows in the picture: the metric that the denoising loss measures errors in.

Latents hold much that hardly shows (an isotropic error of 0.36 decodes to 27.5 dB, a blurred frame's error of the same
size to 23 dB). J is the decoder's Jacobian; E[J^T J] weighs a latent error as the mean square error of the picture does.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.segment import Segment

STEP = 0.1  # of the finite differences, in latent units


def latent_metric(autoencoder: Autoencoder, episodes: list[Segment], cache: Path, frames: int = 24) -> Tensor:
    """E[J^T J] over frames spread over the episodes, scaled to a mean of 1 on the diagonal: (N * C, N * C) float32."""
    if cache.exists():
        stored, _ = load_tensors(cache)
        if stored.keys() != {"metric"}:
            raise TensorFileError(f"{cache}: not the metric of an autoencoder; delete it, and it is measured again")
        return stored["metric"]
    spread = torch.linspace(0, len(episodes) - 1, frames).round().long().tolist()
    latents = [episodes[number].latent[len(episodes[number]) // 2].float() for number in spread]
    metric = torch.stack([_of_frame(autoencoder, latent) for latent in latents]).mean(0)
    metric = metric / metric.diagonal().mean()
    save_tensors(cache, {"metric": metric}, {"frames": frames})
    return metric


@torch.no_grad()
def _of_frame(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    """J^T J at one frame (N, C), by finite differences."""
    moved = latent + STEP * torch.eye(latent.numel()).view(-1, *latent.shape)
    before = autoencoder.decode_smoothly(latent[None]).flatten()
    jacobian = torch.cat([autoencoder.decode_smoothly(part).flatten(1) for part in moved.split(64)]) - before
    return jacobian @ jacobian.T
