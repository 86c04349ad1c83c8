"""What a map does not show yet, imagined: a network that knows how such worlds are laid out fills it in, before any picture is dreamed.

The flow head is told of walls and objects that nobody has seen yet, paints them, and the map's reader finds them in the picture: so what
is imagined stands on the world's lattice, and is the same from wherever it is seen. The layout is drawn cell by cell, from what is known
outwards, some cells a pass, each by what the map says and what was drawn before it (autoregressive diffusion, arXiv 2110.02037), and some
cells once more by all others; then each kind of object that the map lacks, one after the other; then colours of walls, as the cells were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.io.tensors import load_part, load_strictly
from lssvwm_gym.models.map_memory import FIRM, SIDE, SURE, GridPose, channels_of, numbered, turned

KIND = "lssvwm_gym maze layouts"
PASSES = 20  # in which the cells of a layout are drawn, fewer of them in the first ones
AGAIN = (0.3, 0.3, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1)  # shares of the cells that are then drawn again
SHARPER = 1.5  # by which the logits are larger then
CHANCES = 2 * 2 * SIDE * SIDE * (1 + len(AGAIN))  # numbers that draw a layout, objects aside
COLOURS = 12  # of walls, that are told apart
PAINTED, LAID = 3.0, 4.0  # rays from which the colour of a wall is known, and as how many of them an imagined one counts
FARTHEST, SPREAD = 12, 3.0  # cells from what is known that are told apart, and by which the order is left to chance
REACH, CUT_OFF = 40, 0.5  # steps within which cells count as reached; the share of those about others that are drawn again
LAYOUT, SETTLED = 6.0, 9.0  # log odds of what was drawn, and of cells once all are: surer than what frames are read to show
DILATIONS = (1, 2, 4, 1, 2, 4, 1)  # of the network's convolutions
AROUND = 13  # numbers that `around` tells
Draws = Callable[[Tensor, Tensor, float], Tensor]  # by what is drawn so far, numbers from 0 to 1, and how much larger logits are


class LayoutModel(nn.Module):
    """Says of each cell of a map how likely it is free, of each kind of object where it is likely to lie, and of walls which colours."""

    def __init__(self, objects: int, width: int) -> None:
        super().__init__()
        self.objects = objects
        self.palette: Tensor = nn.Buffer(torch.rand(COLOURS, 3))  # the colours that walls have
        self.cells = nn.Conv2d(1 + objects + COLOURS + 5, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=step, dilation=step) for step in DILATIONS)
        self.out = nn.Conv2d(width, 1 + objects + COLOURS, 1)

    def forward(self, cells: Tensor, paint: Tensor, whole: bool = False) -> Tensor:
        """Log odds (B, 1 + kinds, side, side) of a map's cells, 0 where nothing is known, and 1 for the known colour of a wall, of
        (B, colours, side, side), to logits (B, 1 + kinds + colours, side, side).

        While cells are drawn, how far the maze reaches already is told, too; not for objects in a `whole` one: they lie anywhere in it.
        """
        extents = _extents(cells[:, 0] > FIRM) * (0.0 if whole else 1.0)
        x = self.cells(torch.cat([(cells / LAYOUT).clamp(-1, 1), paint, torch.ones_like(cells[:, :1]), extents], 1))
        for layer in self.layers:
            x = x + layer(F.silu(x))
        out: Tensor = self.out(F.silu(x))
        return out

    def painted(self, colour: Tensor) -> Tensor:
        """Colours of walls (B, 3, side, side), zeros where there is none, as the nearest of the palette: 1, of (B, colours, side, side)."""
        away = (hue(colour)[:, None] - hue(self.palette[:, :, None, None])).square().sum(2)
        nearest = F.one_hot(away.argmin(1), len(self.palette)).permute(0, 3, 1, 2)
        return nearest.to(colour.dtype) * (colour.sum(1, keepdim=True) > 0)


def hue(colour: Tensor) -> Tensor:
    """Colours (B, 3, ...) as vectors of which light and shade change little."""
    length = colour.norm(dim=1, keepdim=True)
    return torch.cat([colour / length.clamp(min=1e-3), 0.3 * length], 1)


def colours_of(maps: Tensor) -> Tensor:
    """Colours of walls on maps (B, `channels_of`, side, side), means of a cell's sides: (B, 3, side, side), zeros where none is known."""
    sides = maps[:, -16:].unflatten(1, (4, 4))  # red, green, blue and rays, of four sides
    rays = sides[:, 3].sum(1, keepdim=True)
    mean = (sides[:, :3] * sides[:, 3:]).sum(2) / rays.clamp(min=1e-3)
    return mean * ((rays > PAINTED) & (maps[:, :1] < 0))


def _extents(free: Tensor) -> Tensor:
    """How far each cell is from the four edges of what is free, bool (B, side, side): (B, 4, side, side), in tens of cells."""
    number, sides = torch.arange(SIDE, device=free.device), []
    for axis, shape in ((2, (-1, SIDE, 1)), (1, (-1, 1, SIDE))):
        some = free.any(axis)
        first, last = torch.where(some, number, SIDE).amin(1)[:, None], torch.where(some, number, -1).amax(1)[:, None]
        sides += [((number - first) / 10).view(shape), ((last - number) / 10).view(shape)]
    return torch.stack([side.expand(len(free), SIDE, SIDE) for side in sides], 1).clamp(-1.5, 1.5)


def outwards(cells: Tensor, chance: Tensor) -> Tensor:
    """When each cell of a map is drawn, those nearest to known ones first: from 0 to 1, (B, side * side), as is `chance`, a part of it."""
    near, away = (cells[:, :1].abs() > FIRM).float(), torch.zeros_like(cells[:, :1])
    for _ in range(FARTHEST):
        away, near = away + 1 - near, F.max_pool2d(near, 3, 1, 1)
    return (away.flatten(1) + SPREAD * chance).argsort(1).argsort(1) / chance.shape[1]


def read_layout_model(path: str | Path) -> LayoutModel:
    """What `experiments.maze_layout` wrote. Raises `TensorFileError` for a file that holds none, or is broken."""
    tensors = load_part(path, KIND, "maze_layout", "out.weight")
    said, width = tensors["out.weight"].shape[:2]
    return load_strictly(LayoutModel(said - 1 - COLOURS, width), tensors, path).eval()


def imagined_layout(model: LayoutModel, maps: Tensor, chance: Tensor) -> Tensor:
    """A whole map of which maps (B, `channels_of`, side, side) could show a part, of the same size.

    `chance` (B, `CHANCES` + kinds) of numbers from 0 to 1 draws it: the order of the cells, which are free, where objects lie, and which
    colours walls have.
    """
    area, kinds = SIDE * SIDE, model.objects
    parts = chance[:, : -kinds or None].view(len(maps), 4, 1 + len(AGAIN), 1, SIDE, SIDE).unbind(1)
    given, paint = maps[:, : 1 + kinds], model.painted(colours_of(maps))
    when = (PASSES * outwards(given, parts[0][:, 0].flatten(1)).sqrt()).floor().view(-1, 1, SIDE, SIDE)

    def whether_free(now: Tensor, draw: Tensor, sharper: float) -> Tensor:
        likely = (sharper * model(torch.cat([now, given[:, 1:]], 1), paint)[:, :1]).sigmoid()
        return torch.where(draw < likely, LAYOUT, -LAYOUT)

    free = LAYOUT * _drawn(whether_free, given[:, :1], given[:, :1].abs() > FIRM, when, parts[0], parts[1], connected=True).sign()
    known, apart = torch.cat([free, given[:, 1:]], 1), ~reached(free[:, 0] > 0)
    for kind in range(1, 1 + kinds):
        likely = model(known, paint, whole=True)[:, kind].masked_fill(apart, -30.0).flatten(1).softmax(1).cumsum(1)
        at = (likely < chance[:, kind - 1 - kinds, None]).sum(1).clamp(max=area - 1)
        lies = torch.where(_firm(given[:, kind]), given[:, kind], LAYOUT * F.one_hot(at, area).view_as(given[:, kind]).to(given.dtype))
        known = torch.cat([known[:, :kind], lies[:, None], known[:, kind + 1 :]], 1)

    def which_colour(now: Tensor, draw: Tensor, sharper: float) -> Tensor:
        likely = (sharper * model(known, now)[:, 1 + kinds :]).softmax(1).cumsum(1)[:, :-1]
        drawn = F.one_hot((likely < draw).sum(1), len(model.palette)).permute(0, 3, 1, 2)
        return drawn.to(now.dtype) * (known[:, :1] < 0)

    paint = _drawn(which_colour, paint, paint.amax(1, keepdim=True) > 0, when, parts[2], parts[3])
    colour = torch.einsum("bphw,pc->bchw", paint, model.palette)
    settled = torch.where(free * given[:, :1] > LAYOUT * FIRM, given[:, :1], SETTLED * free.sign())
    return torch.cat([settled, known[:, 1:], coloured(colour, maps[:, 1 + kinds :])], 1)


def reached(free: Tensor) -> Tensor:
    """Which of free cells, bool (B, side, side), can be walked to from the middle."""
    there, free = torch.zeros_like(free, dtype=torch.float32), free.float()
    there[:, SIDE // 2, SIDE // 2] = 1
    for _ in range(REACH):
        there = free * torch.maximum(F.max_pool2d(there, (3, 1), 1, (1, 0)), F.max_pool2d(there, (1, 3), 1, (0, 1)))
    return there > 0


def _drawn(draws: Draws, given: Tensor, shown: Tensor, when: Tensor, order: Tensor, draw: Tensor, connected: bool = False) -> Tensor:
    """What is drawn (B, n, side, side) where nothing is `shown`, cell by cell as `when` says, and some cells again.

    If it is to be `connected`, also those about free cells that can't be reached, unless they are known for sure: of what few frames
    show some is misread.
    """
    now = given
    for number in range(PASSES):
        now = torch.where((when == number) & ~shown, draws(now, draw[:, 0], 1.0), now)
    for number, share in enumerate(AGAIN, 1):
        again = (order[:, number] < share) & ~shown
        if connected:
            apart = ((now[:, 0] > 0) & ~reached(now[:, 0] > 0)).float()
            again |= (order[:, number] < CUT_OFF) & (F.max_pool2d(apart, 5, 1, 2) > 0)[:, None] & (given.abs() <= SURE)
        now = torch.where(again, draws(torch.where(again, given, now), draw[:, number], SHARPER), now)
    return now


def coloured(colour: Tensor, sides: Tensor) -> Tensor:
    """What maps know of the sides of cells (B, 16, side, side), and where they know nothing colours of cells (B, 3, side, side), if any."""
    sides, laid = sides.unflatten(1, (4, 4)), F.pad(colour, (0, 0, 0, 0, 0, 1), value=LAID)[:, :, None]
    return torch.where((sides[:, 3:] < 1) & (colour.sum(1)[:, None, None] > 0), laid, sides).flatten(1, 2)


def believed(maps: Tensor, layout: Tensor) -> Tensor:
    """Maps (B, `channels_of`, side, side) as a layout of that size says, where it says something.

    It has all that was known when it was drawn: a dreamed frame that is misread, or has lost an object, does not change the world.
    """
    free, lies, sides = layout.split((1, layout.shape[1] - channels_of(0), 16), 1)
    painted = (sides.unflatten(1, (4, 4))[:, 3:] > 0).expand(-1, 4, -1, -1, -1).flatten(1, 2)
    said = torch.cat([free != 0, _firm(lies).expand_as(lies), painted], 1)
    return torch.where(said, layout, maps)


def around(maps: Tensor, here: GridPose) -> Tensor:
    """What a map tells of where something stands, (B, `AROUND`): whether that cell and those beside are free, and where in it that is."""
    beside = torch.cartesian_prod(*2 * [torch.arange(-1, 2, device=maps.device)])
    number, inside = numbered(here.cell[:, None] + turned(beside.expand(len(maps), -1, -1), here.quarter))
    free = maps[:, 0].flatten(1).gather(1, number) * inside
    return torch.cat([(free / SURE).clamp(-1, 1), here.rest], 1)


def is_sure(around: Tensor) -> Tensor:
    """Whether a map knows of all nine cells which are free, bool (B,)."""
    return (around[:, :-4].abs() == 1).all(1)


def _firm(objects: Tensor) -> Tensor:
    """Whether a map knows where an object lies, of (..., side, side): bool (..., 1, 1)."""
    return objects.amax((-2, -1), keepdim=True) > FIRM
