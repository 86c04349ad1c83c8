"""A map of the world's lattice as a memory: which cells are free and where objects lie, read from latents at estimated poses.

The spatial memory interpolates between views, which blurs what is small; a map keeps a ball where it lies. `MapReader` says of one latent
what it shows, cell by cell; `drawn` keeps that in world coordinates; `shown` says what the map shows from a pose, along rays through the
columns of the picture, for the flow head to paint. The reader is trained on recordings that tell their layout; the rest is geometry.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.io.tensors import load_part, load_strictly
from lssvwm_gym.models.conditioning import head
from lssvwm_gym.models.geometry import PLANE, placed
from lssvwm_gym.models.state import constant

KIND = "lssvwm_gym maze reader"
SIDE = 21  # cells of the map; the first frame's is in the middle
AHEAD, ASIDE = (-1, 6), 6  # cells that a frame may show: from one behind to 6 ahead, 6 to either side
ROWS, COLUMNS = AHEAD[1] - AHEAD[0] + 1, 2 * ASIDE + 1
MOST = 6.0  # log odds of one reading
ALONE, KEPT = 1.5, 4.0  # by which a reading counts more where nothing is known, and what is known counts more than one
UNSEEN = 0.3  # weight of the log odds that no object lies somewhere: from afar, or from where it lies, it is overlooked
HALF_VIEW = 0.8391  # tangent of half the camera's angle, 40 degrees
RAYS = 6  # a column of tokens
BESIDE = 2  # rays of its neighbours that a column is told of, either side
STRIDE, SIGHT = 0.1, 6.5  # cells between two points of a ray, and its length
RAY, OBJECT, OBJECT_ON_RAY = 11, 6, 2  # numbers of each
REACHES, LASTING = (0.2, 0.4, 0.8), 5.0  # cells within which objects count as touched; logit that what is wanted stays so
RADIUS = 0.25  # cells, of an object
MOST_RAYS = 20.0  # that count of what was seen of a colour
SHOWS = 10.0  # cells, a usual frame
FIRM, SURE = 2.0, 6.5  # log odds of what is known, and of what is known by more than a frame or two


class MapReading(NamedTuple):
    """What one frame shows, as logits, of cells in rows ahead and columns to the left."""

    visible: Tensor  # (B, rows, columns) that a cell is in view
    middle: Tensor  # (B, rows, columns) that its middle is, where an object would lie
    free: Tensor  # (B, rows, columns) that it is free, if it is in view
    objects: Tensor  # (B, kinds, rows, columns) that an object of a kind lies there in view
    wanted: Tensor  # (B, kinds) that this kind is wanted
    colours: Tensor  # (B, rays, 3) of walls, 0 to 1: no logits


class GridPose(NamedTuple):
    """A pose on the grid, as cells and quarter turns, and what is left of it."""

    pose: Tensor  # (B, 4) itself
    cell: Tensor  # (B, 2) int64
    quarter: Tensor  # (B,) int64 0..3, turns to the left from the grid's x axis to the way that is ahead
    rest: Tensor  # (B, 4) from the middle of the cell, ahead and to the left; cosine and sine of the heading from that way


class MapReader(nn.Module):
    """Reads one latent: a small convolutional network over its tokens, then layers that are told where in its cell the agent stands."""

    def __init__(
        self, tokens: int = 16, channels: int = 32, objects: int = 3, width: int = 64, hidden: int = 256, dropout: float = 0.0
    ) -> None:
        """`objects`: how many kinds of them there are."""
        super().__init__()
        self.side, self.objects = math.isqrt(tokens), objects
        self.token, self.position = nn.Linear(channels, width), nn.Parameter(torch.zeros(tokens, width))
        self.convolutions = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.frame = nn.Linear(tokens * width, hidden)
        self.place = nn.Sequential(nn.Linear(6, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.cells = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(hidden, ROWS * COLUMNS * (3 + objects) + objects),
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.colours = nn.Linear(tokens * channels, self.side * RAYS * 3)

    def forward(self, latent: Tensor, rest: Tensor) -> MapReading:
        """latent (B, tokens, channels) and `GridPose.rest` (B, 4)."""
        tokens = F.silu(self.token(latent) + self.position).transpose(1, 2).unflatten(2, (self.side, self.side))
        seen = self.dropout(F.silu(tokens + self.convolutions(tokens)).flatten(1))
        place = torch.cat([rest, rest[:, :2].square()], 1)
        out = self.cells(self.frame(seen) + self.place(place))
        cells = out[:, self.objects :].view(-1, 3 + self.objects, ROWS, COLUMNS)
        colours = self.colours(latent.flatten(1)).unflatten(1, (-1, 3))
        return MapReading(cells[:, 0], cells[:, 1], cells[:, 2], cells[:, 3:], out[:, : self.objects], colours)


def read_map_reader(path: str | Path) -> MapReader:
    """The reader in a file of `experiments.maze_reader`. Raises `TensorFileError` for a file that holds none, or is broken."""
    sized = "token.weight", "frame.weight", "cells.4.bias", "position"
    tensors = load_part(path, KIND, "maze_reader", *sized)
    (width, channels), (hidden, _), (last,), _ = (tensors[name].shape for name in sized)
    reader = MapReader(len(tensors["position"]), channels, (last - 3 * ROWS * COLUMNS) // (ROWS * COLUMNS + 1), width, hidden)
    return load_strictly(reader, tensors, path).eval()


def grid_pose(pose: Tensor) -> GridPose:
    """Of poses (B, 4) in the world's lattice, whose cells have whole numbers as their middles."""
    heading = torch.atan2(pose[:, 3], pose[:, 2])
    quarter = (heading / (math.pi / 2)).round()
    rest, cell = heading - quarter * (math.pi / 2), pose[:, :2].round()
    place = turned(pose[:, :2] - cell, -quarter)
    return GridPose(pose, cell.long(), quarter.long() % 4, torch.stack([place[:, 0], place[:, 1], rest.cos(), rest.sin()], 1))


def turned(cells: Tensor, quarters: Tensor) -> Tensor:
    """Vectors (B, ..., 2) after so many quarter turns to the left, (B,)."""
    quarters = quarters.view(-1, *[1] * (cells.ndim - 2)).remainder(4).long()
    cos, sin = (constant(values, cells.device)[quarters].to(cells.dtype) for values in ((1, 0, -1, 0), (0, 1, 0, -1)))
    x, y = cells.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def seen_from(pose: Tensor, off: Tensor) -> Tensor:
    """Vectors (B, ..., 2) of the grid as they are seen at poses (B, 4): ahead and to the left."""
    cos, sin = pose[:, 2:].view(-1, *[1] * (off.ndim - 2), 2).unbind(-1)
    return torch.stack([cos * off[..., 0] + sin * off[..., 1], cos * off[..., 1] - sin * off[..., 0]], -1)


def in_view(here: GridPose) -> Tensor:
    """The cells (B, rows * columns, 2) of the grid that a reading is about."""
    device = here.cell.device
    ahead, left = torch.arange(AHEAD[0], AHEAD[1] + 1, device=device), torch.arange(-ASIDE, ASIDE + 1, device=device)
    window = torch.stack(torch.meshgrid(ahead, left, indexing="ij"), -1).flatten(0, 1)
    return here.cell[:, None] + turned(window.expand(len(here.cell), -1, -1), here.quarter)


def told_in_view(maps: Tensor, objects: int, here: GridPose) -> Tensor:
    """What maps (B, `channels_of`, side, side) say of the cells that a reading is about, log odds (B, 1 + objects, rows, columns).

    An object that is known to lie somewhere lies nowhere else; of others nothing is known.
    """
    number, inside = numbered(in_view(here))
    lies = maps[:, 1 : 1 + objects]
    lies = torch.where(lies > FIRM, MOST, -MOST) * (lies.amax((2, 3), keepdim=True) > FIRM)
    cells = torch.cat([maps[:, :1], lies], 1).flatten(2).gather(2, number[:, None].expand(-1, 1 + objects, -1))
    return (cells * inside[:, None]).unflatten(2, (ROWS, COLUMNS))


def numbered(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each cell (..., 2) on the map, (...) int64, those outside on its rim; and which are on it, bool (...)."""
    shifted = cells + SIDE // 2
    inside = ((shifted >= 0) & (shifted < SIDE)).all(-1)
    shifted = shifted.clamp(0, SIDE - 1)
    return shifted[..., 0] * SIDE + shifted[..., 1], inside


def drawn(maps: Tensor, reading: MapReading, here: GridPose) -> Tensor:
    """Maps (B, `channels_of`, side, side) after one more frame."""
    kinds = reading.objects.shape[1]
    cells, colours = maps[:, : 1 + kinds], maps[:, 1 + kinds :].unflatten(1, (4, 4)).flatten(2)
    after = fused(cells, reading, here)
    rays = _rays(after[:, 0], here, reading.colours.shape[1])
    return torch.cat([after, _coloured(colours, reading.colours, rays).view_as(maps[:, 1 + kinds :])], 1)


def fused(cells: Tensor, reading: MapReading, here: GridPose) -> Tensor:
    """Log odds (B, 1 + kinds, side, side) that cells are free and objects lie there, moved to a reading by how sure either is.

    A cell that may be out of view is as likely free as not there, whatever the reading says of it if it is in view.
    """
    (number, inside), old, kinds = numbered(in_view(here)), cells.flatten(2), reading.objects.shape[1]
    visible, middle, free = (part.flatten(1).sigmoid()[:, None] for part in (reading.visible, reading.middle, reading.free))
    weight = (2 * torch.cat([visible, middle.expand(-1, kinds, -1)], 1) - 1).clamp(min=0) * inside[:, None]
    free = torch.logit(visible * free + (1 - visible) / 2, 1e-3)
    objects = torch.where(reading.objects < 0, UNSEEN * reading.objects, reading.objects).flatten(2)
    read, number = torch.cat([free, objects], 1).clamp(-MOST, MOST), number[:, None].expand(-1, 1 + kinds, -1)
    before = old.gather(2, number)
    gain = weight * read.square() / (read.square() + KEPT * before.square() + 1)
    new = old.scatter_add(2, number, gain * (ALONE * read - before))
    own = F.one_hot(numbered(here.cell)[0], SIDE * SIDE).to(new.dtype)  # where the agent is it is free
    return torch.cat([(new[:, :1] + own[:, None]).clamp(-8, 8), new[:, 1:]], 1).view_as(cells)


def _coloured(old: Tensor, colours: Tensor, rays: Rays) -> Tensor:
    """What is known of the colours of cells' faces, (B, 4, 4 * cells): means, and of how many rays; after rays with colours (B, R, 3)."""
    weight = rays.hit.unsqueeze(1)
    number = rays.side.unsqueeze(1).expand(-1, 4, -1)
    more = torch.zeros_like(old).scatter_add(2, number, torch.cat([colours.transpose(1, 2) * weight, weight], 1))
    before, count = old[:, 3:].clamp(max=MOST_RAYS), more[:, 3:]
    return torch.cat([(old[:, :3] * before + more[:, :3]) / (before + count).clamp(min=1e-3), before + count], 1)


class Rays(NamedTuple):
    """Where rays through the columns of a picture go, (B, R)."""

    free: Tensor  # cells before a wall
    known: Tensor  # of those, over cells that are known
    depth: Tensor  # `free` along the axis of the picture
    face: Tensor  # (B, R, 2) from the middle of the cell where a ray ends, along the quarter turns of the pose
    side: Tensor  # int64, the number of that cell's side
    hit: Tensor  # how sure it is that it ends there, 0 to 1
    tangent: Tensor  # (R,) of its angle to the left


def _rays(free: Tensor, here: GridPose, rays: int) -> Rays:
    """Over maps (B, side, side), from the left of the picture to the right."""
    pose = here.pose
    tangent = HALF_VIEW * (1 - (2 * torch.arange(rays, device=pose.device) + 1) / rays)
    length = torch.hypot(torch.ones_like(tangent), tangent)
    cos, sin = pose[:, 2, None], pose[:, 3, None]
    way = torch.stack([(cos - sin * tangent) / length, (sin + cos * tangent) / length], -1)  # (B, R, 2)
    steps = torch.arange(1, round(SIGHT / STRIDE) + 1, device=pose.device) * STRIDE
    wall, unknown = _solid(free, pose[:, None, None, :2] + way[:, :, None] * steps[:, None])
    solid, unsure = _largest_so_far(torch.cat([wall, unknown], 1)).chunk(2, 1)
    passes = 1 - solid
    far = STRIDE * passes.sum(2)
    end = pose[:, None, :2] + way * (far + STRIDE)[..., None]
    cell, inside = numbered(end.round().long())
    off = end - end.round()
    face = turned(off, -here.quarter)
    across = off[..., 1].abs() > off[..., 0].abs()
    side = cell + SIDE * SIDE * (across + 2 * (torch.where(across, off[..., 1], off[..., 0]) < 0))
    first = (solid < solid[..., -1:] - 1e-3).sum(2, keepdim=True).clamp(max=solid.shape[2] - 1)
    hit = solid[..., -1] * (1 - unsure.gather(2, first)[..., 0]) * inside
    return Rays(far, STRIDE * (passes * (1 - unsure)).sum(2), far / length, face, side, hit, tangent)


def shown(maps: Tensor, objects: int, here: GridPose, columns: int) -> Tensor:
    """What maps (B, `channels_of`, side, side) show from somewhere, for each column of a picture: (B, columns, `numbers_shown`).

    Of rays through the picture: how far they go before a wall, how far over cells that are known, where on the wall's cell they end, and
    its colour; of each kind of object, where it lies, whether it is in view, and on which rays.
    """
    pose, rays = here.pose, _rays(maps[:, 0], here, columns * RAYS)
    colours = maps[:, 1 + objects :].unflatten(1, (4, 4)).flatten(2).gather(2, rays.side.unsqueeze(1).expand(-1, 4, -1)).transpose(1, 2)
    sure = colours[..., 3] / (1 + colours[..., 3])
    lengths = (rays.free / SIGHT, 0.2 / (rays.depth + 0.2), rays.known / SIGHT, 0.2 / (rays.known + 0.2), rays.hit, sure)
    score, cell = maps[:, 1 : 1 + objects].flatten(2).max(2)  # (B, kinds)
    place = torch.stack([cell // SIDE, cell % SIDE], -1) - SIDE // 2
    off = place - pose[:, None, :2]
    ahead, left = seen_from(pose, off).unbind(-1)
    between = torch.linspace(0.05, 0.95, 24, device=pose.device)[:, None]
    wall, _ = _solid(maps[:, 0], pose[:, None, None, :2] + off[:, :, None] * between)
    there = (score.clamp(min=0) / 2).tanh()
    seen = there * (1 - wall.amax(2)) * (ahead > 0.05)
    near = 0.3 / (ahead.clamp(min=0.05) + 0.3)
    at = (left / ahead.clamp(min=0.05)).clamp(-3, 3)
    lying = torch.stack([there, seen, ahead / 4, left / 4, near, at], -1).flatten(1)
    width = RADIUS / ahead.clamp(min=0.3)
    on_ray = seen[:, None] * torch.exp(-0.5 * ((rays.tangent[:, None] - at[:, None]) / width[:, None]).square())  # (B, R, kinds)
    numbers = torch.cat([torch.stack(lengths, -1), rays.face, colours[..., :3] * sure[..., None], on_ray, on_ray * near[:, None]], -1)
    beside = F.pad(numbers.transpose(1, 2), (BESIDE, BESIDE)).unfold(2, RAYS + 2 * BESIDE, RAYS)  # (B, numbers, columns, rays)
    return torch.cat([beside.transpose(1, 2).flatten(2), lying[:, None].expand(-1, columns, -1)], 2)


def misread(reading: MapReading, told: Tensor) -> Tensor:
    """Cross entropy (B,) of what frames are read to show with what is told of their cells, `told_in_view`, where they show it: a cell's
    in a usual frame, and more where more is seen."""
    visible, middle = (part.detach().sigmoid()[:, None] for part in (reading.visible, reading.middle))
    weight = torch.cat([visible, middle.expand(-1, told.shape[1] - 1, -1, -1)], 1) * (told.abs() > FIRM)
    read = torch.cat([reading.free[:, None], reading.objects], 1)
    return (weight * F.binary_cross_entropy_with_logits(read, (told > FIRM).to(read.dtype), reduction="none")).sum((1, 2, 3)) / SHOWS


class WantedHead(nn.Module):
    """Which kind of object is wanted in the next frame: another one, where the wanted one is touched."""

    def __init__(self, objects: int, hidden: int = 64) -> None:
        super().__init__()
        self.objects = objects
        self.network = head((2 * len(REACHES) + 1) * objects, objects, hidden)

    def forward(self, told: Tensor, wanted: Tensor) -> Tensor:
        """What `shown` says from where that frame is seen, (B, columns, n), and 1 for what is wanted now, (B, kinds): logits for each."""
        there, _, ahead, left, _, _ = told[:, 0, -OBJECT * self.objects :].unflatten(1, (-1, OBJECT)).unbind(2)
        away = 16 * (ahead.square() + left.square())
        near = torch.stack([there * torch.exp(-away / reach**2) for reach in REACHES], 2)  # (B, kinds, reaches)
        logits = self.network(torch.cat([near.flatten(1), (near * wanted[..., None]).flatten(1), wanted], 1)) + LASTING * wanted
        return logits * wanted.amax(1, keepdim=True)  # where nothing is wanted yet, any may be


def _largest_so_far(x: Tensor) -> Tensor:
    """`x.cummax(-1).values` of numbers (..., K) from 0 up, in operations that can be exported."""
    reach = 1
    while reach < x.shape[-1]:
        x, reach = torch.maximum(x, F.pad(x[..., :-reach], (reach, 0))), 2 * reach
    return x


def channels_of(objects: int) -> int:
    """Of a map: whether a cell is free, where objects of each kind lie (log odds), and of its four sides colours and weights."""
    return 1 + objects + 4 * 4


def numbers_shown(objects: int) -> int:
    """How many `shown` says of a column of tokens."""
    return (RAYS + 2 * BESIDE) * (RAY + OBJECT_ON_RAY * objects) + OBJECT * objects


def _solid(free: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """How likely walls stand at points (B, R, K, 2) of a map (B, side, side), and how little is known of it: 0 to 1 each."""
    number, inside = numbered(points.round().long())
    odds = free.flatten(1).gather(1, number.flatten(1)).view_as(number) * inside
    likely = (odds / 4).clamp(-1, 1)
    return (-likely).clamp(min=0), 1 - likely.abs()


def in_lattice(pose: Tensor, lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Poses (B, 4 or 6) of states that began at `lattice` (B, 4), in the world's lattice, (B, 4); and whether that is known, (B,)."""
    found = lattice.square().sum(1) > 0
    plane = pose[:, :PLANE]
    return torch.where(found[:, None], placed(plane, lattice), plane), found
