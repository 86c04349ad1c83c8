"""Spatial memory: Gaussian-process regression of latents over poses, as recursive least squares.

What is written at a pose has random Fourier features of the pose as its key. A plain linear-attention (SSD) read is a sum
over all that was written, weighed by similarity: near places blur each other, and a thousand far ones add noise. Here the
query is solved for first, so that the read is the posterior mean of a Gaussian process (kriging): what was written at a
pose comes back there, whatever was written elsewhere, and the variance says how well the place is known. Both are sums
over the past, so the state keeps its size.

    P[t] = (1 + sum of k k^T up to t)^-1        M[t] = sum of value k^T up to t        read at q: M P q, variance q^T P q

Values are the latents themselves, which need no learning. Where the world has changed, a mean of before and after is wrong: a frame
that overwrites moves what is read at its place by a given share of the difference, however often the place was seen before.

Sources: Gaussian-process regression with random features (Rahimi and Recht, 2007) as recursive least squares; MesaNet
(arXiv 2506.05233) solves for the queries of learned keys in the same way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lssvwm_gym.models.geometry import PLANE

LEAST_VARIANCE = 1e-3  # of a place, in units of that of what is written: that of one seen a thousand times


class PoseKeys(nn.Module):
    """Random Fourier features of a pose: their inner product falls off with distance and with difference in heading.

    The square of their length is the prior variance of what is seen, in units of the variance that a memory is off by.
    """

    def __init__(self, features: int, scales: tuple[tuple[float, float], ...], noise: float, spatial: bool = False, seed: int = 0) -> None:
        """`scales` are pairs of a length in the world's units and an angle in radians; `noise` is a variance, the prior's being 1."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        length, angle = torch.tensor(scales).repeat(features, 1)[:features].unbind(1)
        self.frequency = nn.Buffer(torch.randn(features, 2, generator=generator) / length[:, None])
        self.harmonic = nn.Buffer((torch.randn(features, generator=generator) / angle).round())
        self.phase = nn.Buffer(torch.rand(features, generator=generator) * 2 * math.pi)
        self.rise = nn.Buffer(torch.randn(features, 2, generator=generator) / torch.stack([length, angle], 1)) if spatial else None
        self.gain = math.sqrt(2 / features / noise)

    def forward(self, pose: Tensor) -> Tensor:
        """pose (..., 4 or 6) to keys (..., F)."""
        heading = torch.atan2(pose[..., 3], pose[..., 2]).unsqueeze(-1)
        angle = pose[..., :2] @ self.frequency.T + heading * self.harmonic + self.phase
        if self.rise is not None:
            angle = angle + pose[..., PLANE:] @ self.rise.T
        return angle.cos() * self.gain


class SpatialMemory(nn.Module):
    """Remembers latents as they are: they enter with the tokens and, as far as a gate lets them, the estimate of the clean frame."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.into = nn.Linear(channels + 2, width)
        self.gate = nn.Linear(width, channels)  # by which the tokens of the last layer let through what they trust
        for parameter in (*self.into.parameters(), *self.gate.parameters()):
            nn.init.zeros_(parameter)

    def into_tokens(self, recalled: Tensor, posterior_variance: Tensor) -> Tensor:
        """recalled (B, T, N, C), unknown (B, T), which with its logarithm is two more channels; what to add to the tokens (B, T, N, D)."""
        variance = torch.stack([posterior_variance, posterior_variance.clamp(min=1e-3).log()], -1).to(recalled.dtype)
        return self.into(torch.cat([recalled, variance.unsqueeze(2).expand(-1, -1, recalled.shape[2], -1)], -1))


class MemoryQuery(NamedTuple):
    """How frames read from the memory, and how they write to it."""

    query: Tensor  # (B, T, F) P k, for what the frames before have written
    posterior_variance: Tensor  # (B, T) posterior over prior variance: 1 where nothing is known, near 0 where it has been
    written: Tensor | None  # (B, T, F) the keys of what is written, zero for frames that leave no trace; None: none does
    keys: Tensor  # (B, T, F) of the frames themselves


def query_memory(keys: Tensor, writes: Tensor | None, explained: Tensor, query: Tensor | None = None) -> tuple[MemoryQuery, Tensor]:
    """Solve for the queries of frames that each see what those before them wrote, and then write themselves.

    keys (B, T, F); writes (B, T) 1 or 0, None where no frame writes; known (B, F, F), 1 - P: zeros at first. A query that was
    solved for without writes, (B, T, F), need not be solved for again. Also returns what is known after the last frame. Any
    split gives the same.

    With L L^T = 1 + K P K^T and Z = L^-1 K P, the inverse after the first t frames is P - Z[:t]^T Z[:t].
    """
    query = keys - _answers(keys, explained) if query is None else query
    if writes is None:
        return MemoryQuery(query, _posterior_variance(query, keys), None, keys), explained
    written, solved = keys * writes.unsqueeze(-1), query * writes.unsqueeze(-1)
    identity = 1 if keys.shape[1] == 1 else torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    new = _whitened(written @ solved.transpose(1, 2) + identity, solved)
    if keys.shape[1] > 1:
        query = query - (keys @ new.transpose(1, 2)).tril(-1) @ new
    return MemoryQuery(query, _posterior_variance(query, keys), written, keys), _with_products(explained, new, new)


def variance_at(keys: Tensor, explained: Tensor) -> Tensor:
    """Posterior over prior variance (B, T) at keys (B, T, F), where that much is explained, (B, F, F): 1 nothing is known, 0 all."""
    return _posterior_variance(keys - _answers(keys, explained), keys)


def _whitened(covariance: Tensor, x: Tensor) -> Tensor:
    """L^-1 x, where L L^T is the covariance (B, T, T)."""
    if covariance.shape[1] > 2:  # it can't fail, as no eigenvalue is below 1; to ask whether it did would make a GPU wait
        return torch.linalg.solve_triangular(torch.linalg.cholesky_ex(covariance)[0], x, upper=False)
    scale = covariance[:, :1, :1].rsqrt()
    if covariance.shape[1] == 1:
        return x * scale
    first, lower = x[:, :1] * scale, covariance[:, 1:, :1] * scale
    return torch.cat([first, (x[:, 1:] - lower * first) * (covariance[:, 1:, 1:] - lower.square()).rsqrt()], 1)


def read_write(
    memory_query: MemoryQuery, values: Tensor, memory: Tensor, read: Tensor | None = None, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Read at each frame, then write its values (B, T, V); memory (B, V, F), zeros at first. Returns reads and memory after.

    What a query has read from this memory already, (B, T, V), need not be read again. A frame moves what is read at its pose from there on
    by at least its `share` (B, T) of the difference; by what a mean makes of it where that is more, or where there is no share.
    """
    values = values.to(memory.dtype)
    with torch.autocast(memory.device.type, enabled=False):  # large sums that nearly cancel
        read = _answers(memory_query.query, memory) if read is None else read
        if memory_query.written is None:
            return read, memory
        gain = None if share is None else _amplification(memory_query, share)
        if values.shape[1] > 1:
            among = (memory_query.query @ memory_query.written.transpose(1, 2)).tril(-1)
            if gain is not None:  # what is written depends on what is read, and that on what was written before
                system = torch.eye(values.shape[1], dtype=values.dtype, device=values.device) - (1 - gain) * among
                values = torch.linalg.solve_triangular(system, torch.lerp(read, values, gain), upper=False, unitriangular=True)
            read = read + among @ values
        elif gain is not None:
            values = torch.lerp(read, values, gain)
        return read, _with_products(memory, values, memory_query.written)


def _amplification(memory_query: MemoryQuery, share: Tensor) -> Tensor:
    """How many times the difference of a value and what is read must be written, (B, T, 1), for the read to move by a share of it."""
    variance = (memory_query.query * memory_query.keys).sum(-1).clamp(min=LEAST_VARIANCE)
    return ((share * (1 + variance) / variance).clamp(min=1)).unsqueeze(-1)


def _answers(queries: Tensor, memory: Tensor) -> Tensor:
    """Queries (B, T, F) times memory (B, V, F): (B, T, V)."""
    if queries.shape[1] == 1:  # a CPU is twice as fast with the matrix on the left
        return (memory @ queries.transpose(1, 2)).transpose(1, 2)
    return queries @ memory.transpose(1, 2)


def _with_products(sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sums (B, V, F) and the products of a (B, T, V) and b (B, T, F), summed over T."""
    if a.shape[1] == 1:  # a dream's step: elementwise is up to 15 times faster than a batch of products of one column
        return torch.addcmul(sums, a.transpose(1, 2), b)
    return torch.baddbmm(sums, a.transpose(1, 2), b)


def _posterior_variance(query: Tensor, keys: Tensor) -> Tensor:
    return ((query * keys).sum(-1) / keys.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
