"""State is a value: NamedTuples of tensors whose first axis is the environment row. Nothing is written in place.

A call commits its frames to the state, but for those that are read only: they see what was committed before them and themselves.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

S = TypeVar("S")
ReadOnly = tuple[bool, ...] | None  # which of a call's frames are read only, a bool a frame; None: all are committed


class LayerState(NamedTuple):
    """What one layer remembers. Before the first frame all is zero but the keys, which are those of hidden frames."""

    ssm: Tensor  # (B, blocks, H, P, S) float32; content heads of the block-wise scan
    conv: Tensor  # (B, blocks, d_conv - 1, conv width); last inputs of the short convolution
    keys: Tensor  # (B, W, H, N, P); of the last W frames
    values: Tensor  # (B, W, H, N, P)


class SpatialMemoryState(NamedTuple):
    """What is remembered by pose (`lssvwm_gym.models.spatial_memory`). Zeros before the first frame."""

    explained: Tensor  # (B, F, F) float32: 1 - P, from 0 (nothing known of a direction of the features) to 1
    latents: Tensor  # (B, N * C, F) float32: M


class WorldState(NamedTuple):
    """What the world model remembers: constant in size, however many frames it has seen."""

    layers: tuple[LayerState, ...]
    spatial_memory: SpatialMemoryState
    age: Tensor  # (B,) int64, committed frames
    last: Tensor  # (B, N, C) the last committed latent, where frames are told by how they differ from it; else (B, 0)


class DreamState(NamedTuple):
    """All that a dream is, a row an environment."""

    world: WorldState
    latent: Tensor  # (B, N, C) the last committed frame
    features: Tensor  # (B, FEATURES) of the last committed frame
    pose: Tensor  # (B, 4 or 6) the estimated pose, seen from where the state began
    motion: Tensor  # (B, 3 or 5) the last motion
    last_action: Tensor  # (B,) int64 or (B, A) that led to the last frame; (B, 0) in a world without layouts
    inventory: Tensor  # (B, V) counts that go with the last frame
    inventory_peak: Tensor  # (B, V) the most of each that was ever counted
    uncertainty: Tensor  # (B,) float, see `lssvwm_gym.models.rollout.Imagined`; 0 where the last frame was given
    posterior_variance: Tensor  # (B,) float, of the spatial memory at the last frame's pose, before it: 1 nothing is known, 0 all
    pose_known: Tensor  # (B,) float, 1 where poses are kept at all
    lattice: Tensor  # (B, 4) where the state began, in the world's lattice but for whole cells and quarter turns; zeros: not seen yet
    map: Tensor  # (B, C, side, side) what is remembered of the world's lattice (`lssvwm_gym.models.map_memory`); (B, 0) without a map
    layout: Tensor  # (B, C, side, side) the whole map as it is imagined to be (`map_layout`), zeros: not yet; (B, 0) without layouts
    wanted: Tensor  # (B, K) 1 for the kind of object on the map that is wanted, else 0
    observed: Tensor  # (B, F, F) float32, what given frames explained of the spatial memory: `explained` after the last of them
    seed: Tensor  # (B,) int64; with the age it determines all noise


def take_rows(state: S, rows: Tensor) -> S:
    """The state of some rows, in that order; rows may repeat (branching)."""
    return tree_map(lambda tensor: tensor[rows], state)


def join_rows(states: Sequence[S]) -> S:
    """The rows of several states as one."""
    return tree_map(lambda *parts: torch.cat(parts), *states)


def put_rows(state: S, rows: Tensor, new: S) -> S:
    """A state whose `rows` are replaced by `new`; all others are untouched."""
    return tree_map(lambda tensor, value: tensor.index_copy(0, rows, value.to(tensor.dtype)), state, new)


def put_rows_in_place(state: S, rows: Tensor, new: S) -> S:
    """`put_rows` for a state that nobody shares: the others' rows are not copied, which takes longer than a few rows are worth."""
    for mine, fresh in zip(tree_leaves(state), tree_leaves(new), strict=True):
        if mine.numel():
            mine.index_copy_(0, rows, fresh.to(mine.dtype))
    return state


def where_rows(mask: Tensor, yes: S, no: S) -> S:
    """Row by row one state or the other; mask (B,) bool."""
    return tree_map(lambda a, b: torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def committed_before(read_only: tuple[bool, ...]) -> tuple[int, ...]:
    """How many committed frames come before each frame."""
    return tuple(t - sum(read_only[:t]) for t in range(len(read_only)))


def constant(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers on a device, copied there once: a copy makes a GPU wait, and can't be part of a CUDA graph."""
    if torch.compiler.is_compiling():  # a compiler keeps them itself, and warns of what is kept elsewhere
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    return _kept(numbers, device)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve training, too
def _kept(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def last_committed(read_only: ReadOnly, frames: int, device: torch.device) -> Tensor:
    """Of each of so many frames the committed one before it: its index plus 1, and 0 where that was before this call."""
    last, before = 0, []
    for t in range(frames):
        before.append(last)
        last = last if read_only is not None and read_only[t] else t + 1
    return constant((*before, last), device)


def committed_frames(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are not marked."""
    return constant(tuple(t for t, reads in enumerate(read_only) if not reads), device)


def read_only_frames(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """Indices of the frames that are marked."""
    return constant(tuple(t for t, reads in enumerate(read_only) if reads), device)


def committed_mask(read_only: tuple[bool, ...], device: torch.device) -> Tensor:
    """1 for frames that are not marked, 0 for those that are, a frame each."""
    return constant(tuple(1 - reads for reads in read_only), device)
