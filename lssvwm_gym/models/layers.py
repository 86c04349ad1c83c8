"""The two parts of a layer that mix frames: block-wise scan and frame-local attention.

Each takes any number of frames and its own state, and returns the outputs and the state after the last frame. Frames
marked in `peeks`, a bool a frame, see what was committed before them and themselves, and leave no trace: all frames of a
clip can be peeked at, each from its own past, in one call.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lssvwm_gym.models.flex import attend
from lssvwm_gym.models.ssd import Scan, ssd_alone, ssd_read, ssd_scan

Peeks = tuple[bool, ...] | None  # which of a call's frames are peeked at; None: all are committed


class BlockScan(nn.Module):
    """Mamba-2 over (time, tokens of one block), every block with its own state.

    Source: arXiv 2505.20171, section 3.1 (block-wise scan), and mamba-ssm's `Mamba2`, whose parameter names are kept.
    """

    def __init__(
        self, width: int, grid: int, block: tuple[int, int], d_state: int, head_width: int, d_conv: int = 4, expand: int = 2
    ) -> None:
        super().__init__()
        if grid % block[0] or grid % block[1]:
            raise ValueError(f"block {block} doesn't tile a grid of {grid}x{grid} tokens")
        self.grid, self.block, self.d_state, self.d_conv = grid, block, d_state, d_conv
        self.inner = expand * width
        self.heads = self.inner // head_width
        self.blocks = grid * grid // (block[0] * block[1])
        conv_width = self.inner + 2 * d_state
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * d_state + self.heads, bias=False)
        # holds the weights; applied by _short_convolution
        self.conv1d = nn.Conv1d(conv_width, conv_width, d_conv, groups=conv_width) if d_conv > 1 else None
        self.dt_bias = nn.Parameter(_inverse_softplus(torch.logspace(-3, -1, self.heads)))
        self.A_log = nn.Parameter(torch.linspace(1, 8, self.heads).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, width, bias=False)
        self.scan: Scan = ssd_scan  # of what is committed; `backends` may put another here

    def initial_state(self, rows: int) -> tuple[Tensor, Tensor]:
        """Zeros: ssm (B, blocks, H, P, S) and conv (B, blocks, d_conv - 1, conv width)."""
        like = self.in_proj.weight
        ssm = like.new_zeros(rows, self.blocks, self.heads, self.inner // self.heads, self.d_state)
        return ssm, like.new_zeros(rows, self.blocks, self.d_conv - 1, self.inner + 2 * self.d_state)

    def forward(self, x: Tensor, ssm: Tensor, conv: Tensor, peeks: Peeks = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, N, D); returns the same shape and the two states."""
        rows, frames = x.shape[:2]
        x = self._to_blocks(x)
        z, mixed, dt = self.in_proj(x).split([self.inner, self.inner + 2 * self.d_state, self.heads], -1)
        mixed, conv = self._short_convolution(mixed, conv.flatten(0, 1), peeks)
        values, B, C = mixed.split([self.inner, self.d_state, self.d_state], -1)
        values = values.unflatten(-1, (self.heads, -1))
        y, ssm = self._scan(values, F.softplus(dt + self.dt_bias), B.unsqueeze(2), C.unsqueeze(2), ssm.flatten(0, 1), peeks)
        y = y + values * self.D[:, None]
        y = self._to_frames(self.out_proj(self.norm(y.flatten(2) * F.silu(z))), rows, frames)
        return y, ssm.unflatten(0, (rows, -1)), conv.unflatten(0, (rows, -1))

    def _to_blocks(self, x: Tensor) -> Tensor:
        """(B, T, N, D) to (B * blocks, T * tokens of a block, D)."""
        down, across = self.block
        x = x.view(*x.shape[:2], self.grid // down, down, self.grid // across, across, -1).permute(0, 2, 4, 1, 3, 5, 6)
        return x.reshape(-1, x.shape[3] * down * across, x.shape[-1])

    def _to_frames(self, x: Tensor, rows: int, frames: int) -> Tensor:
        """The inverse of `_to_blocks`."""
        down, across = self.block
        x = x.view(rows, self.grid // down, self.grid // across, frames, down, across, -1).permute(0, 3, 1, 4, 2, 5, 6)
        return x.reshape(rows, frames, self.grid**2, -1)

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, state: Tensor, peeks: Peeks) -> tuple[Tensor, Tensor]:
        A = -self.A_log.exp()
        chunk = 32 if x.device.type == "cpu" else 128  # a GPU would rather do more arithmetic than more steps
        if peeks is None:
            return self.scan(x, dt, A, B, C, chunk, initial_state=state)
        size = self.block[0] * self.block[1]
        if all(peeks):
            y, index = ssd_read(C, state).to(x.dtype), None
        else:
            writes = committed_mask(peeks, x.device).repeat_interleave(size).unsqueeze(-1)
            y, state = self.scan(x, dt * writes, A, B, C, chunk, initial_state=state)
            index = peeked_frames(peeks, x.device)
        # peeks have only read so far; now each frame's own tokens, in their order
        past, x, dt, B, C = (_some_frames(tokens, size, index) for tokens in (y, x, dt, B, C))
        own = ssd_alone(x, dt, A, B, C) + past * (dt * A).cumsum(1).exp().unsqueeze(-1)
        if index is None:
            return own.reshape(y.shape), state
        frames = y.unflatten(1, (-1, size)).index_copy(1, index, own.to(y.dtype).unflatten(0, (len(y), -1)))
        return frames.flatten(1, 2), state

    def _short_convolution(self, x: Tensor, past: Tensor, peeks: Peeks) -> tuple[Tensor, Tensor]:
        """Causal depthwise convolution over x (b, l, conv width), continued from the last d_conv - 1 inputs."""
        if self.conv1d is None:
            return F.silu(x), past
        if peeks is None:
            return self._convolved(x, past)
        frames = x.unflatten(1, (len(peeks), -1))
        kept, noisy = committed_frames(peeks, x.device), peeked_frames(peeks, x.device)
        committed = frames[:, kept].flatten(1, 2)
        start = constant(committed_before(peeks), x.device)[noisy] * frames.shape[2]  # of the inputs a peek continues
        before = torch.cat([past, committed], 1)[:, start[:, None] + torch.arange(self.d_conv - 1, device=x.device)]
        peeked, _ = self._convolved(frames[:, noisy].flatten(0, 1), before.flatten(0, 1))
        committed, past = self._convolved(committed, past)
        y = frames.new_zeros(frames.shape)
        y = y.index_copy(1, kept, committed.unflatten(1, (-1, frames.shape[2])))
        y = y.index_copy(1, noisy, peeked.unflatten(0, (x.shape[0], -1)))
        return y.flatten(1, 2), past

    def _convolved(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        assert self.conv1d is not None
        length = x.shape[1]
        x = torch.cat([past, x], 1)
        taps = self.conv1d.weight.squeeze(1).unbind(-1)
        y = torch.stack([x[:, k : k + length] * tap for k, tap in enumerate(taps)]).sum(0)
        return F.silu(y if self.conv1d.bias is None else y + self.conv1d.bias), x[:, length:]


class FrameAttention(nn.Module):
    """Every frame sees the last `window` frames and its own chunk; all tokens of visible frames are seen.

    A chunk of 1 is the interactive form; the paper's is a chunk of 5 with a window of 5 (section 3.2). Chunks are counted
    from the first frame of a call. Queries of several chunks are multiplied with the stretch of the past that one of them
    sees, and masked. Keys have a mean of zero, queries one of 1: so a constant key, as the frames before the first have in
    the initial state, hides its frame, in every row by its own age, and no mask is needed.
    """

    far = 8  # frames; all that are further away share one bias
    hidden = -30.0  # logit of frames before the first
    kept = 64  # frames; what is seen of longer windows is worked out again for the gradient instead of being kept: gigabytes

    def __init__(self, width: int, tokens: int, heads: int, window: int, chunk: int = 1, chunks_together: int = 8) -> None:
        super().__init__()
        self.heads, self.window, self.chunk, self.chunks_together = heads, window, chunk, chunks_together
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, min(window, self.far) + 2 * chunk - 1, tokens, tokens))  # by distance, query, key
        self.flex = False  # whether FlexAttention computes calls of several chunks; `backends` may say so

    def initial_state(self, rows: int) -> tuple[Tensor, Tensor]:
        """Hidden keys and zeros as values, (B, W, H, N, P)."""
        width, tokens = self.qkv.weight.shape[1], self.bias.shape[-1]
        zeros = self.qkv.weight.new_zeros(rows, self.window, self.heads, tokens, width // self.heads)
        return zeros + self.hidden * self.heads / width, zeros

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, peeks: Peeks = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, N, D); returns the same shape and keys and values of the last W frames."""
        frames = x.shape[1]
        if frames % self.chunk:
            raise ValueError(f"{frames} frames are no multiple of the attention's chunk of {self.chunk}")
        if peeks is not None and self.chunk > 1:
            raise ValueError(f"frames can be peeked at only where attention's chunk is 1, not {self.chunk}")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()  # (B, T, H, N, P)
        q, k = F.layer_norm(q, q.shape[-1:]) / math.sqrt(q.shape[-1]) + 1, F.layer_norm(k, k.shape[-1:])
        past = keys, values
        if peeks is None or not all(peeks):
            kept = slice(None) if peeks is None else committed_frames(peeks, x.device)
            keys, values = torch.cat([keys, k[:, kept]], 1), torch.cat([values, v[:, kept]], 1)
        if self.flex and frames > self.chunk:
            k, v = (torch.cat(both, 1) for both in zip(past, (k, v), strict=True))
            y = attend(q, k, v, self.bias, self.window, self.chunk, peeks)
        elif self.window > self.kept and torch.is_grad_enabled():
            y = checkpoint(self._folded, q, k, v, keys, values, peeks, use_reentrant=False)
        else:
            y = self._folded(q, k, v, keys, values, peeks)
        committed = keys.shape[1] - self.window
        return self.out(y.flatten(-2)), keys[:, committed:], values[:, committed:]

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, peeks: Peeks) -> Tensor:
        """What all frames see, (B, T, N, H, P): q, k, v (B, T, H, N, P), keys and values of the window and what is committed behind it."""
        rows, frames, _, tokens, _ = q.shape
        together, start, before = _groups(peeks or (False,) * (frames // self.chunk), self.chunk, self.chunks_together)
        length = self.window + before[-1]
        q, k, v = (self._chunks(t, together) for t in (q, k, v))  # (B * groups, H, together, chunk * N, P)
        past_keys, past_values = (self._stretches(t, start, length) for t in (keys, values))  # (B * groups, H, length * N, P)
        bias = self._visible_bias(before, length)
        if together == 1:
            past_keys, past_values = torch.cat([past_keys, k.squeeze(2)], 2), torch.cat([past_values, v.squeeze(2)], 2)
            y = F.scaled_dot_product_attention(q.squeeze(2), past_keys, past_values, bias.unsqueeze(0), scale=1.0)
        else:
            seen, own = q.flatten(2, 3) @ past_keys.transpose(-1, -2), q @ k.transpose(-1, -2)
            weights = (torch.cat([seen, own.flatten(2, 3)], -1) + bias).softmax(-1)
            seen, own = weights.split([seen.shape[-1], own.shape[-1]], -1)
            y = seen @ past_values + (own.view(*q.shape[:-1], -1) @ v).flatten(2, 3)  # (B * groups, H, together * chunk * N, P)
        return y.unflatten(2, (-1, tokens)).permute(0, 2, 3, 1, 4).reshape(rows, -1, tokens, self.heads, y.shape[-1])[:, :frames]

    def _chunks(self, x: Tensor, together: int) -> Tensor:
        """(B, T, H, N, P) to (B * groups, H, together, chunk * N, P); the last group is filled with zeros."""
        missing = -x.shape[1] % (together * self.chunk)
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x
        x = x.unflatten(1, (-1, together, self.chunk)).permute(0, 1, 4, 2, 3, 5, 6)
        return x.reshape(-1, *x.shape[2:4], x.shape[4] * x.shape[5], x.shape[6])

    def _stretches(self, x: Tensor, start: tuple[int, ...], length: int) -> Tensor:
        """`length` frames from each start: (B, T, H, N, P) to (B * groups, H, length * N, P); beyond the last are zeros."""
        missing = max(0, start[-1] + length - x.shape[1])
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x
        if len(start) > 1:
            x = x[:, constant(start, x.device)[:, None] + torch.arange(length, device=x.device)].flatten(0, 1)
        return x[:, :length].transpose(1, 2).flatten(2, 3)

    def _visible_bias(self, before: tuple[int, ...], length: int) -> Tensor:
        """Bias by distance, -inf where a frame is not seen: (H, together * chunk * N, (length + chunk) * N)."""
        index = _bias_index(before, length, self.window, self.chunk, *self.bias.shape[1:3], self.bias.device)
        return F.pad(self.bias.flatten(1), (0, 1), value=-torch.inf)[:, index]


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


@functools.lru_cache(maxsize=64)
def _groups(peeks: tuple[bool, ...], chunk: int, together: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """How many chunks make a group; for each group how many frames are committed before it, and for each of its chunks
    how many of the group are committed before that. Groups that differ in the latter are of one chunk."""
    before = tuple(count * chunk for count in committed_before(peeks))
    together = min(together, len(before))
    start, within = before[::together], before[:together]
    if before != tuple(a + b for a in start for b in within)[: len(before)]:
        together, start, within = 1, before, before[:1]
    return together, start, within


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training, too
def _bias_index(before: tuple[int, ...], length: int, window: int, chunk: int, distances: int, tokens: int, device: torch.device) -> Tensor:
    """Where in the flattened biases of a head (distances, N, N), or behind them, is the one for each query and key.

    Queries: a group's chunks. Keys: `length` frames from the first that the first chunk sees, and then the own chunk's.
    """
    query = torch.arange(chunk)[None, :, None]  # of a chunk; axes are chunk, query frame, key frame
    first = torch.tensor(before)[:, None, None]
    past = torch.arange(length)
    distance = torch.cat([window + first + query - past, (query - torch.arange(chunk)).expand(len(before), -1, -1)], -1)
    seen = torch.cat([(past >= first) & (past < first + window), torch.ones(len(before), 1, chunk, dtype=torch.bool)], -1)
    plane = (distance + chunk - 1).clamp(max=distances - 1).where(seen, distances).flatten(0, 1)
    inside = torch.arange(tokens)[:, None] * tokens + torch.arange(tokens)
    index = (plane[:, None, :, None] * tokens**2 + inside[None, :, None, :]).flatten(2).flatten(0, 1)
    return index.clamp(max=distances * tokens**2).to(device)


def _some_frames(tokens: Tensor, size: int, frames: Tensor | None) -> Tensor:
    """Tokens (b, T * size, ...) of some frames (K,) or of all, each a sequence of its own: (b * K, size, ...)."""
    tokens = tokens.unflatten(1, (-1, size))
    return (tokens if frames is None else tokens[:, frames]).flatten(0, 1)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
