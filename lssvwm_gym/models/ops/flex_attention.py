"""Frame-local attention by PyTorch's FlexAttention: one fused kernel on CUDA that skips what no query of a block sees.

`FrameAttention` folds frames into dense products instead, which is the same attention; `inference.backend` chooses between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


class VisibleFrames(NamedTuple):
    """Which frames see which: T query frames, and as keys the W frames before them and they themselves."""

    seen: Tensor  # (T, W + T) bool
    distance: Tensor  # (T, W + T) int64, index of the bias: how far back the key frame is, from the furthest ahead in a chunk on
    mask: BlockMask  # of their tokens


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int, chunk: int, read_only: tuple[bool, ...] | None) -> Tensor:
    """What frames see of the window before their chunk and of their own chunk; a read-only frame sees its own.

    q (B, T, H, N, P), scaled; k and v (B, W + T, H, N, P), the window's frames first; bias (H, distances, N, N) by distance,
    query and key; read_only: a bool a frame, only where the chunk is 1. Returns (B, T, N, H, P).
    """
    tokens, frames = q.shape[3], q.shape[1]
    visible_frames = visible_frames_of(read_only or (False,) * frames, window, chunk, tokens, bias.shape[1], q.device)

    def with_bias(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        plane = visible_frames.distance[query // tokens, key // tokens]
        return score + bias[head, plane, query % tokens, key % tokens].to(score.dtype)

    dtype = torch.get_autocast_dtype(q.device.type) if torch.is_autocast_enabled(q.device.type) else q.dtype
    q, k, v = (x.transpose(1, 2).flatten(2, 3).to(dtype) for x in (q, k, v))  # (B, H, frames * N, P)
    y = _attention(q.device.type)(q, k, v, with_bias, visible_frames.mask, scale=1.0)
    return y.unflatten(2, (frames, tokens)).permute(0, 2, 3, 1, 4)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept must serve training, too
def visible_frames_of(
    read_only: tuple[bool, ...], window: int, chunk: int, tokens: int, distances: int, device: torch.device
) -> VisibleFrames:
    """Who sees whom, by the number of committed frames before each frame's chunk."""
    frames, own = len(read_only), torch.arange(len(read_only)) // chunk
    committed = ~torch.tensor(read_only)
    before = (committed.cumsum(0) - committed.long())[own * chunk]  # (T,), committed frames before the chunk
    at = before + torch.arange(frames) % chunk
    key_at = torch.cat([torch.arange(-window, 0), at])
    key_kept = torch.cat([torch.ones(window, dtype=torch.bool), committed])
    key_own = torch.cat([torch.full((window,), -1), own])
    past = key_kept & (key_at < before[:, None]) & (key_at >= before[:, None] - window)
    seen = (past | (key_own == own[:, None])).to(device)
    distance = (at[:, None] - key_at + chunk - 1).clamp(0, distances - 1).to(device)

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[query // tokens, key // tokens]

    mask = create_block_mask(visible, None, None, frames * tokens, (window + frames) * tokens, device=device)
    return VisibleFrames(seen, distance, mask)


@functools.cache
def _attention(device: str) -> Callable[..., Any]:
    """Compiled at the first call, but on a CPU, where tests run it as it is written, without gradients."""
    function: Callable[..., Any] = flex_attention
    return function if device == "cpu" else torch.compile(function)
