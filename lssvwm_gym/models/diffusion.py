"""Noise levels, the loss and the samplers: free functions over any denoiser.

A noise level runs from 0 (clean) to 1 (pure noise) on the straight line between latent and noise (rectified flow,
arXiv 2209.03003); the denoiser estimates the clean latent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevels:
    """How noise levels of a training clip are drawn: diffusion forcing with long contexts (arXiv 2505.20171, section 3.3)."""

    clean: float = 0.5  # chance that a frame outside of a clean prefix is clean
    pure: float = 0.35  # chance that a noisy frame is pure noise
    prefix: float = 0.5  # share of clips that begin with a clean prefix, longer than half the clip
    recall: float = 0.6  # share of those whose other frames are all nearly pure noise, so that only memory helps
    recall_from: float = 0.85  # the lowest noise level of such frames


def draw_noise_levels(rows: int, frames: int, levels: NoiseLevels, generator: torch.Generator) -> Tensor:
    """One noise level a frame, (B, T) float32 in 0..1; 0 is exactly clean."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    noise = torch.where(uniform(rows, frames) < levels.pure, 1.0, uniform(rows, frames).clamp(min=1e-3))
    noise = noise * (uniform(rows, frames) >= levels.clean)
    has_prefix = uniform(rows, 1) < levels.prefix
    recalls = has_prefix & (uniform(rows, 1) < levels.recall)
    in_prefix = torch.arange(frames, device=generator.device) < (0.5 + 0.45 * uniform(rows, 1)) * frames
    noise = torch.where(recalls, levels.recall_from + (1 - levels.recall_from) * uniform(rows, frames), noise)
    return noise * ~(has_prefix & in_prefix)


def add_noise(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Mix latents (..., N, C) with noise of their shape at levels (...)."""
    level = level[..., None, None]
    return (1 - level) * clean + level * noise


def denoising_loss(estimate: Tensor, clean: Tensor, level: Tensor, metric: Tensor) -> Tensor:
    """Square error over frames that were noisy, measured in a metric (N * C, N * C); (B, T, N, C), levels (B, T)."""
    noisy, error = (level > 0).float(), (estimate.float() - clean).flatten(2)
    square = (torch.einsum("bti,ij->btj", error, metric) * error).mean(-1)  # (B, T)
    return (square * noisy).sum() / noisy.sum().clamp(min=1)


def sample(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Walk from noise (B, ...) to a clean sample in `steps` Euler steps; one step is the mean of what is possible.

    `denoise(x, level)` takes levels (B,) and returns the estimate of the clean sample. Also returns how far the last
    estimate is from the first one, (B,), their mean square difference: how much was left open. It is 0 for one step.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, not {steps}")
    x = first = noise
    for step in range(steps):
        level, following = 1 - step / steps, 1 - (step + 1) / steps
        estimate = denoise(x, torch.full((x.shape[0],), level, device=x.device))
        first = estimate if step == 0 else first
        x = estimate + (x - estimate) * (following / level)
    return x, (x - first).square().flatten(1).mean(1)
