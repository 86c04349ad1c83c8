"""Identity: balls and coloured walls keep their colour when they are seen again."""

from __future__ import annotations

from typing import Any

import torch
from einops import reduce
from torch import Tensor

from lssvwm_gym.evaluation.metrics import inner, masked_score
from lssvwm_gym.evaluation.retrieval import recalled_frames, way_back
from lssvwm_gym.evaluation.rollouts import decode_clips
from lssvwm_gym.evaluation.workbench import Bench, DoesNotApply

GRID = 6  # patches a side
COLOURS = 12  # classes
COMMON = 2  # most frequent classes, such as floor and sky, which don't count


def identity(bench: Bench) -> dict[str, Any]:
    """Share of picture patches that keep their class of colour on the way back from own memory, at the first size of retrieval.

    A patch is a cell of a 6 x 6 grid over the picture without its border, its colour the mean of its pixels, its class the
    nearest of 12 colours that k-means finds in the context frames of all clips. Patches count whose true class is not one
    of the two most frequent ones. Beside it the same share for the dreamed frames of a clip in another order (chance) and
    for the autoencoder's reconstruction of the real frames (ceiling). Not for worlds that change.
    """
    if bench.world.changes:
        raise DoesNotApply("what was dug does not look the same again, and a block's colour is no identity")
    way = way_back(bench, bench.run.retrieval[0])
    dreamed = recalled_frames(bench, way)
    colours = _found_colours(patches(way.past.frames, bench.world.border).flatten(0, -2))
    classes = {name: _classes(bench, frames, colours) for name, frames in (("truth", way.back.frames), ("dream", dreamed))}
    classes["autoencoder"] = _classes(bench, decode_clips(bench.weights, way.back.latent), colours)
    order = torch.randperm(dreamed.shape[1], generator=torch.Generator().manual_seed(bench.run.seed))
    classes["shuffled frames"] = classes["dream"][:, order]
    truth = classes.pop("truth")
    common = torch.bincount(truth.flatten(), minlength=COLOURS).topk(COMMON).indices
    counted = ~torch.isin(truth, common)
    kept = {name: masked_score((found == truth).float().flatten(1), counted.flatten(1)) for name, found in classes.items()}
    shares = {f"{name}: share of patches that keep their colour": share for name, share in kept.items() if share is not None}
    return {**shares, "patches": int(counted.sum())}


def patches(frames: Tensor, border: int) -> Tensor:
    """Mean colours in 0..1 of the grid's cells, (B, T, GRID * GRID, 3), of uint8 frames (B, T, height, width, 3)."""
    picture = inner(frames, border)
    high, wide = picture.shape[2] // GRID, picture.shape[3] // GRID
    cells = picture[:, :, : GRID * high, : GRID * wide]
    rows = [reduce(part.float() / 255, "t (y h) (x w) c -> t (y x) c", "mean", y=GRID, x=GRID) for part in cells]
    return torch.stack(rows)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of centres (K, C) for each of points (..., C)."""
    return torch.cdist(points.flatten(0, -2), centres).argmin(-1).view(points.shape[:-1])


def k_means(points: Tensor, count: int, rounds: int = 25) -> Tensor:
    """Centres (count, C) of points (M, C): begun at points far from each other, then moved to the means of those nearest (Lloyd)."""
    centres = points[(points - points.mean(0)).norm(dim=-1).argmax()][None]
    while len(centres) < count:
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(nearest(points, centres), count).to(points.dtype)
        size = member.sum(0).unsqueeze(-1)
        centres = torch.where(size > 0, member.T @ points / size.clamp(min=1), centres)
    return centres


def _found_colours(points: Tensor, most: int = 20_000) -> Tensor:
    return k_means(points[:: -(-len(points) // most)], COLOURS)


def _classes(bench: Bench, frames: Tensor, colours: Tensor) -> Tensor:
    """(B, T, GRID * GRID)"""
    return nearest(patches(frames, bench.world.border), colours)
