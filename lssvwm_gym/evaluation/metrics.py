"""Scores of frames: PSNR, SSIM (torchmetrics), mean and standard error over clips, correlations."""

import math
from collections.abc import Iterator
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
    each = [peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3)) for x, y in pairs]
    return torch.cat(each).clamp(max=60).view(frames.shape[:2])


def ssim(frames: Tensor, truth: Tensor, border: int = 0) -> Tensor:
    """SSIM (11x11 Gaussian window, sigma 1.5) of uint8 frames (B, T, height, width, 3): (B, T)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pairs = zip(_images(frames, border), _images(truth, border), strict=True)
    parts = [structural_similarity_index_measure(x, y, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none") for x, y in pairs]
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


def inner(frames: Tensor, border: int) -> Tensor:
    """Frames (..., height, width, 3) without `border` pixels at the edge."""
    return frames[..., border : frames.shape[-3] - border, border : frames.shape[-2] - border, :]


def _images(frames: Tensor, border: int) -> Iterator[Tensor]:
    """uint8 (B, T, height, width, 3) to float (256, 3, height, width) in 0..1 without its border, part by part to bound memory."""
    for part in inner(frames, border).flatten(0, 1).split(256):
        yield part.permute(0, 3, 1, 2).float() / 255
