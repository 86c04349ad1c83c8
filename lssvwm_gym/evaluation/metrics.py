"""Scores of pictures, by torchmetrics, and what is left of many of them: mean and standard error over clips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """A mean over clips."""

    mean: float
    error: float  # standard error over clips
    clips: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.error:.2f}"


def score(values: Tensor) -> Score:
    """Mean and standard error of one value a clip (clips,), or of a row of values a clip (clips, frames)."""
    values = values.float().flatten(1).mean(1) if values.ndim > 1 else values.float()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Score(values.mean().item(), error, len(values))


def psnr(frames: Tensor, truth: Tensor, border: int = 0) -> Tensor:
    """PSNR in dB of uint8 frames (B, T, height, width, 3), without `border` pixels at the edge: (B, T)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = _images(frames, border), _images(truth, border)
    each = [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in zip(a, b, strict=True)]
    return torch.stack(each).clamp(max=60).view(frames.shape[:2])


def ssim(frames: Tensor, truth: Tensor, border: int = 0) -> Tensor:
    """SSIM (11x11 Gaussian window, sigma 1.5) of uint8 frames (B, T, height, width, 3): (B, T)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _images(frames, border), _images(truth, border)
    parts = [
        structural_similarity_index_measure(x, y, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none")
        for x, y in zip(a.split(256), b.split(256), strict=True)
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


def _images(frames: Tensor, border: int) -> Tensor:
    """uint8 (B, T, height, width, 3) to float (B * T, 3, height, width) in 0..1 without its border."""
    inner = frames[:, :, border : frames.shape[2] - border, border : frames.shape[3] - border]
    return inner.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
