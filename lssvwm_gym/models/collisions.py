"""Walls that hold: where a map knows a wall, a step ends in front of it, or slides along it.

What moves is a disc among square cells. A network can be told of walls and still go through one, once in a few hundred steps; geometry
never does, and where it says that nothing is near, nothing blocks.
"""

import torch
from torch import Tensor

from lssvwm_gym.models.geometry import turned
from lssvwm_gym.models.map_memory import SURE, GridPose, numbered

RADIUS = 0.1  # cells, of the disc
TOUCH = 0.02  # cells by which a wall changes a step that it counts for


def collided(free: Tensor, here: GridPose, motions: Tensor, blocked: Tensor, cell: float) -> Tensor:
    """The motion (B, 3) from `here` on maps of which cells are free, log odds (B, side, side), whose cells have sides of `cell`.

    `motions` (B, 2, 3) are those without and with a collision; the second counts where the first would touch a wall and `blocked` (B,)
    bool says so, or where too little is known to tell. Then whatever wall is in the way of either stops it.
    """
    start, angle = here.pose[:, :2], torch.atan2(here.pose[:, 3], here.pose[:, 2])
    end = start[:, None] + turned(motions[..., :2] / cell, angle[:, None])
    (straight, unsure), (with_collision, _) = (held(free, start, one) for one in end.unbind(1))
    touches = (straight - end[:, 0]).norm(dim=1) > TOUCH
    second = blocked & (touches | unsure)
    moved = torch.where(second[:, None], with_collision, straight) - start
    return torch.cat([cell * turned(moved, -angle), torch.where(second, motions[:, 1, 2], motions[:, 0, 2])[:, None]], 1)


def held(free: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Where a step from `start` to `end`, (B, 2) in cells of a map (B, side, side), comes to stand; whether cells beside are unknown."""
    place, first = _beside_walls(free, start.round(), end)
    place, second = _beside_walls(free, place.round(), place)
    return place, first | second


def _beside_walls(free: Tensor, cell: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """A place (B, 2), moved away from the walls around a cell (B, 2); and whether some of them are unknown."""
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
    return cell + torch.where(corner[:, None], side * (0.5 - RADIUS * way), off), (odds.abs() <= SURE).any(1)
