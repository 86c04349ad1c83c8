"""Walls that hold: where a map knows a wall, a step ends in front of it, or slides along it.

What moves is a disc among square cells. A network can be told of walls and still go through one, once in a few hundred steps; geometry
never does.
"""

import torch
from torch import Tensor

from lssvwm_gym.models.geometry import turned
from lssvwm_gym.models.map_memory import SURE, GridPose, numbered

RADIUS = 0.1  # cells, of the disc


def held_back(free: Tensor, here: GridPose, motion: Tensor, cell: float) -> Tensor:
    """A motion (B, 3) from `here` on maps of which cells are free, log odds (B, side, side), whose cells have sides of `cell`, as far as
    walls let it; the turn stays."""
    start, angle = here.pose[:, :2], torch.atan2(here.pose[:, 3], here.pose[:, 2])
    end = start + turned(motion[:, :2] / cell, angle)
    moved = held(free, start, end) - end
    return torch.cat([motion[:, :2] + cell * turned(moved, -angle), motion[:, 2:]], 1)


def held(free: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Where a step from `start` to `end`, (B, 2) in cells of a map (B, side, side), comes to stand."""
    place = _beside_walls(free, start.round(), end)
    return _beside_walls(free, place.round(), place)


def _beside_walls(free: Tensor, cell: Tensor, place: Tensor) -> Tensor:
    """A place (B, 2), moved away from the walls around a cell (B, 2)."""
    off = place - cell
    side = torch.where(off < 0, -1.0, 1.0)
    along = side[:, None] * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=free.device)
    number, inside = numbered((cell[:, None] + along).long())
    odds = free.flatten(1).gather(1, number) * inside
    wall = odds < -SURE
    off = torch.where(wall[:, :2], side * off.abs().clamp(max=0.5 - RADIUS), off)
    gap = (0.5 - off.abs()).clamp(min=1e-3)  # to the corner of the cell
    way = gap / gap.norm(dim=1, keepdim=True)
    corner = wall[:, 2] & ~wall[:, :2].any(1) & (gap.norm(dim=1) < RADIUS)
    return cell + torch.where(corner[:, None], side * (0.5 - RADIUS * way), off)
