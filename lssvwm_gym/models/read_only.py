"""Read-only frames of a call: they see what was committed before them and themselves, and leave no trace."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Peeks = tuple[bool, ...] | None  # which of a call's frames are peeked at; None: all are committed


def committed_before(peeks: tuple[bool, ...]) -> tuple[int, ...]:
    """How many committed frames come before each frame."""
    return tuple(t - sum(peeks[:t]) for t in range(len(peeks)))


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve training, too
def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers on a device, copied there once: a copy makes a GPU wait, and can't be part of a CUDA graph."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def committed_frames(peeks: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are not marked."""
    return constant(tuple(t for t, peek in enumerate(peeks) if not peek), device)


def peeked_frames(peeks: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are marked."""
    return constant(tuple(t for t, peek in enumerate(peeks) if peek), device)


def committed_mask(peeks: tuple[bool, ...], device: torch.device) -> Tensor:
    """1 for frames that are not marked, 0 for those that are, a frame each."""
    return constant(tuple(1 - peek for peek in peeks), device)
