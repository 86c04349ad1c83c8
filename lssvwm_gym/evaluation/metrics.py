"""Scores of frames and returns: PSNR, SSIM (torchmetrics), mean and standard error over clips, correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FAMILIAR = 0.5  # info["familiarity"] from which a place counts as known
RESAMPLED = 1000  # times, for the interval of a correlation


@dataclass(frozen=True)
class Score:
    """A mean over clips."""

    mean: float
    error: float  # standard error over clips
    clips: int

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 1.5 else 2  # shares and world units are small, decibels are not
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


def score(values: Tensor) -> Score:
    """Mean and standard error of one value a clip (clips,), or of a row of values a clip (clips, frames)."""
    values = values.float().flatten(1).mean(1) if values.ndim > 1 else values.float()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Score(values.mean().item(), error, len(values))


def masked_score(values: Tensor, mask: Tensor) -> Score | None:
    """Score of values (clips, frames) where a bool mask of that shape is set; clips without such frames don't count. None if none has."""
    clips = mask.any(1)
    if not clips.any():
        return None
    weight = mask[clips].double()
    return score((values[clips].double() * weight).sum(1) / weight.sum(1))


def psnr(frames: Tensor, truth: Tensor, border: int = 0) -> Tensor:
    """PSNR in dB of uint8 frames (B, T, height, width, 3), without `border` pixels at the edge: (B, T)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pairs = zip(_images(frames, border), _images(truth, border), strict=True)
    each = [peak_signal_noise_ratio(x, y, data_range=1.0) for a, b in pairs for x, y in zip(a, b, strict=True)]
    return torch.stack(each).clamp(max=60).view(frames.shape[:2])


def ssim(frames: Tensor, truth: Tensor, border: int = 0) -> Tensor:
    """SSIM (11x11 Gaussian window, sigma 1.5) of uint8 frames (B, T, height, width, 3): (B, T)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = [
        structural_similarity_index_measure(x, y, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none")
        for x, y in zip(_images(frames, border), _images(truth, border), strict=True)
    ]
    return torch.cat([torch.as_tensor(part).reshape(-1) for part in parts]).view(frames.shape[:2])


def precision_recall_f1(predicted: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Of boolean tensors of one shape; 0 where nothing was predicted or nothing was there."""
    hits = (predicted & truth).sum().item()
    precision, recall = hits / max(1, predicted.sum().item()), hits / max(1, truth.sum().item())
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two tensors of one shape."""
    from torchmetrics.functional import spearman_corrcoef

    return spearman_corrcoef(a.float().flatten(), b.float().flatten()).item()


def contrast_and_sharpness(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, contrast (standard deviation) and sharpness (mean difference of neighbours) of the pixels, 0..255, of each frame
    (K, height, width, 3) uint8."""
    pixels = frames.astype(np.float32)
    sharpness = (np.abs(np.diff(pixels, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(pixels, axis=2)).mean((1, 2, 3))) / 2
    return {"mean": pixels.mean((1, 2, 3)), "contrast": pixels.std((1, 2, 3)), "sharpness": sharpness}


def correlation_of_returns(policies: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Of the mean returns in dream and real world over policies with returns in both; None where fewer than three differ.

    `linear` is Pearson's, `rank` Spearman's, which asks for the order only; `rank_interval` holds nine tenths of the rank
    correlations of episodes drawn anew from those that were played (the bootstrap of Efron, 1979).
    """

    def correlated(means: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        return None if means.shape[1] < 3 or 0.0 in means.std(1) else round(measure(*means), 6)

    def spearman(a: np.ndarray, b: np.ndarray) -> float:
        return rank_correlation(torch.from_numpy(a), torch.from_numpy(b))

    both = [pair for pair in policies if all(pair)]
    means = np.array([[np.mean(returns) for returns in pair] for pair in both]).reshape(-1, 2).T
    linear, rank, interval = correlated(means, lambda a, b: float(np.corrcoef(a, b)[0, 1])), correlated(means, spearman), None
    if rank is not None:
        rng = np.random.default_rng(0)
        drawn = [np.array([[rng.choice(x, len(x)).mean() for x in pair] for pair in both]).T for _ in range(RESAMPLED)]
        found = [value for value in (correlated(some, spearman) for some in drawn) if value is not None]
        interval = np.quantile(found, (0.05, 0.95)).round(3).tolist() if found else None
    return {"policies": len(both), "linear": linear, "rank": rank, "rank_interval": interval}


def inner(frames: Tensor, border: int) -> Tensor:
    """Frames (..., height, width, 3) without `border` pixels at the edge."""
    return frames[..., border : frames.shape[-3] - border, border : frames.shape[-2] - border, :]


def _images(frames: Tensor, border: int) -> Iterator[Tensor]:
    """uint8 (B, T, height, width, 3) to float (256, 3, height, width) in 0..1 without its border, part by part to bound memory."""
    for part in inner(frames, border).flatten(0, 1).split(256):
        yield part.permute(0, 3, 1, 2).float() / 255
