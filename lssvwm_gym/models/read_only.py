"""Read-only frames of a call: they see what was committed before them and themselves, and leave no trace."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

ReadOnly = tuple[bool, ...] | None  # which of a call's frames are read only, a bool a frame; None: all are committed


def committed_before(read_only: tuple[bool, ...]) -> tuple[int, ...]:
    """How many committed frames come before each frame."""
    return tuple(t - sum(read_only[:t]) for t in range(len(read_only)))


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve training, too
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers on a device, copied there once: a copy makes a GPU wait, and can't be part of a CUDA graph."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def committed_frames(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are not marked."""
    return constant(tuple(t for t, reads in enumerate(read_only) if not reads), device)


def read_only_frames(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are marked."""
    return constant(tuple(t for t, reads in enumerate(read_only) if reads), device)


def committed_mask(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """1 for frames that are not marked, 0 for those that are, a frame each."""
    return constant(tuple(1 - reads for reads in read_only), device)
