"""A map of Memory Maze as a policy's memory: drawn from latents at estimated poses, in dreams and in the real maze alike.

`MapReader` says of one latent which cells it shows, which of them are free, and where balls lie. `MapMemory` keeps that on a grid of
cells, and works out from it what a policy is told (`NUMBERS`): the ways to the wanted ball and to the nearest place not seen yet, and what
is around. Which action follows is the policy's to learn. The grid has as many cells as a 9 x 9 maze takes wherever the agent begins.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, under

KIND = "lssvwm_gym maze reader"
COLOURS = 3  # of the balls in 9 x 9 mazes
SIDE = 21  # cells of the map; the first frame's is in the middle
AHEAD, ASIDE = (-1, 6), 6  # cells that a frame may show: from one behind to 6 ahead, 6 to either side
ROWS, COLUMNS = AHEAD[1] - AHEAD[0] + 1, 2 * ASIDE + 1
MOST = 6.0  # log odds of one reading
SURE = 0.7  # log odds from which a cell counts as known
FOUND = 0.5  # and a ball as found
WALL_COST = 50.0  # free cells' worth of walking through what seems a wall; through what nobody has seen it is 3
FAR = 1e4
LONGEST = 44  # cells of a way that is looked for
TURN_COST = 1.25  # cells that could be walked in the time of a quarter turn
PERSISTENCE = 2.0  # cells by which another unseen place must be nearer before the goal is changed
PATIENCE, PATIENCE_AT_BALL = 40, 10  # steps with one goal, or in a ball's cell, before the map is doubted
STILL = (0.06, 0.07)  # cells and radians below which a step has not moved: twice in a row, and the cell ahead is a wall
TOKENS, POSE = 16, 4  # of a latent, and numbers behind it in an observation
BALL, GOAL = slice(COLOURS + 1, COLOURS + 12), slice(COLOURS + 12, COLOURS + 23)  # of what is told: the ways to the ball and to the goal
NUMBERS = COLOURS + 2 * 11 + 1 + 4 * 3 + 5  # that a policy is told


class MapReading(NamedTuple):
    """What one frame shows, as logits, of cells in rows ahead and columns to the left."""

    visible: Tensor  # (B, rows, columns) that a cell is in view
    middle: Tensor  # (B, rows, columns) that its middle is, where a ball would lie
    free: Tensor  # (B, rows, columns) that it is free, if it is in view
    balls: Tensor  # (B, colours, rows, columns) that a ball of a colour lies there in view
    wanted: Tensor  # (B, colours) that this colour is wanted


class GridPose(NamedTuple):
    """A pose on the grid, as cells and quarter turns, and what is left of it."""

    cell: Tensor  # (B, 2) int64
    quarter: Tensor  # (B,) int64 0..3, turns to the left from the grid's x axis to the way that is ahead
    rest: Tensor  # (B, 4) from the middle of the cell, ahead and to the left; cosine and sine of the heading from that way


class MazeMap(NamedTuple):
    """What is remembered of a maze."""

    free: Tensor  # (B, side, side) log odds that a cell is free, by x and y
    balls: Tensor  # (B, colours, side, side) log odds that a ball of a colour lies there
    pose: Tensor  # (B, 4) of the last frame
    goal: Tensor  # (B,) the unseen cell that was being looked for, as a number; at first a corner's, which is none
    waited: Tensor  # (B,) steps since that is the goal
    still: Tensor  # (B,) steps in a row that have not moved
    ahead: Tensor  # (B,) the cell that was to be entered next


SIZES = {"free": (SIDE, SIDE), "balls": (COLOURS, SIDE, SIDE), "pose": (POSE,), "goal": (), "waited": (), "still": (), "ahead": ()}
MEMORY = sum(math.prod(size) for size in SIZES.values())


class MapReader(nn.Module):
    """Reads one latent: a small convolutional network over its tokens, then layers that are told where in its cell the agent stands."""

    def __init__(self, tokens: int = TOKENS, channels: int = 32, width: int = 96, hidden: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.side = math.isqrt(tokens)
        self.token, self.position = nn.Linear(channels, width), nn.Parameter(torch.zeros(tokens, width))
        self.convolutions = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.frame = nn.Linear(tokens * width, hidden)
        self.place = nn.Sequential(nn.Linear(6, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.cells = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(hidden, ROWS * COLUMNS * (3 + COLOURS) + COLOURS),
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)

    def forward(self, latent: Tensor, rest: Tensor) -> MapReading:
        """latent (B, tokens, channels) and `GridPose.rest` (B, 4)."""
        tokens = F.silu(self.token(latent) + self.position).transpose(1, 2).unflatten(2, (self.side, self.side))
        seen = self.dropout(F.silu(tokens + self.convolutions(tokens)).flatten(1))
        place = torch.cat([rest, rest[:, :2].square()], 1)
        out = self.cells(self.frame(seen) + self.place(place))
        cells = out[:, COLOURS:].view(-1, 3 + COLOURS, ROWS, COLUMNS)
        return MapReading(cells[:, 0], cells[:, 1], cells[:, 2], cells[:, 3:], out[:, :COLOURS])


class MapMemory(nn.Module):
    """The map along an episode; nothing of it is learned but the reader."""

    def __init__(self, latent: int = 512) -> None:
        """`latent`: numbers of one."""
        super().__init__()
        self.reader = MapReader(channels=latent // TOKENS)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Never: the reader was taught before."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Observations "latent+pose" (B, n) to what a policy is told, (B, NUMBERS), and the memory (B, MEMORY), zeros at the beginning."""
        latent, pose = observation[:, :-POSE], observation[:, -POSE:]
        here = grid_pose(pose)
        reading = self.reader(latent.unflatten(1, (self.reader.side**2, -1)), here.rest)
        known = drawn(unpacked(memory), reading, here, pose)
        numbers, known = planned(known, reading.wanted.argmax(1), here, pose)
        return numbers, packed(known)


def load_reader(memory: MapMemory, path: str | Path) -> None:
    """Take over the reader in a file of `experiments.maze_reader`, or in that of a policy with a map.

    Raises `TensorFileError` for a file that holds none, or is broken.
    """
    tensors, header = load_tensors(path)
    if header.get("kind") != KIND:
        tensors = under("map.reader", tensors)
    if not tensors:
        raise TensorFileError(f"{path}: no reader of maps; `python -m experiments.maze_reader` writes one")
    load_strictly(memory.reader, tensors, path)


def grid_pose(pose: Tensor) -> GridPose:
    """Of poses (B, 4) in the world's lattice, whose cells have whole numbers as their middles."""
    heading = torch.atan2(pose[:, 3], pose[:, 2])
    quarter = (heading / (math.pi / 2)).round()
    rest, cell = heading - quarter * (math.pi / 2), pose[:, :2].round()
    place = turned(pose[:, :2] - cell, -quarter)
    return GridPose(cell.long(), quarter.long() % 4, torch.stack([place[:, 0], place[:, 1], rest.cos(), rest.sin()], 1))


def turned(cells: Tensor, quarters: Tensor) -> Tensor:
    """Vectors (B, ..., 2) after so many quarter turns to the left, (B,)."""
    quarters = quarters.view(-1, *[1] * (cells.ndim - 2)).remainder(4)
    east, north, west, south = ((quarters == number).to(cells.dtype) for number in range(4))
    cos, sin = east - west, north - south
    x, y = cells.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def in_view(here: GridPose) -> Tensor:
    """The cells (B, rows * columns, 2) of the grid that a reading is about."""
    device = here.cell.device
    ahead, left = torch.arange(AHEAD[0], AHEAD[1] + 1, device=device), torch.arange(-ASIDE, ASIDE + 1, device=device)
    window = torch.stack(torch.meshgrid(ahead, left, indexing="ij"), -1).flatten(0, 1)
    return here.cell[:, None] + turned(window.expand(len(here.cell), -1, -1), here.quarter)


def numbered(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each cell (..., 2) on the map, (...) int64, those outside on its rim; and which are on it, bool (...)."""
    shifted = cells + SIDE // 2
    inside = ((shifted >= 0) & (shifted < SIDE)).all(-1)
    shifted = shifted.clamp(0, SIDE - 1)
    return shifted[..., 0] * SIDE + shifted[..., 1], inside


def drawn(known: MazeMap, reading: MapReading, here: GridPose, pose: Tensor) -> MazeMap:
    """The map after one more frame: what a sure reading says counts for more than what a vague one said, and the other way round."""
    number, inside = numbered(in_view(here))
    weights = [(2 * seen.flatten(1).sigmoid() - 1).clamp(min=0) * inside for seen in (reading.visible, reading.middle)]
    free = _fused(known.free.flatten(1), reading.free.flatten(1), number, weights[0])
    every, weight = (part[:, None].expand(-1, COLOURS, -1) for part in (number, weights[1]))
    balls = _fused(known.balls.flatten(2), reading.balls.flatten(2), every, weight)
    own = numbered(here.cell)[0]
    free = _add(free, own, torch.ones_like(pose[:, 0]))  # where the agent is it is free
    moved = (pose[:, :2] - known.pose[:, :2]).norm(dim=1)
    turn = (pose[:, 2:] * known.pose[:, 2:]).sum(1).clamp(-1, 1).acos()
    begun = known.pose.square().sum(1) > 0
    still = torch.where(begun & (moved < STILL[0]) & (turn < STILL[1]), known.still + 1, 0)
    blocked = (still >= 2) & (known.ahead != own)
    free = _add(free, known.ahead.long(), -3.0 * blocked)
    return known._replace(
        free=free.clamp(-8, 8).view_as(known.free), balls=balls.view_as(known.balls), pose=pose, still=torch.where(blocked, 0, still)
    )


def planned(known: MazeMap, wanted: Tensor, here: GridPose, pose: Tensor) -> tuple[Tensor, MazeMap]:
    """What a policy is told, and the map with its goal: the ways to the wanted ball (B,) and to the nearest place not seen yet."""
    rows, own = torch.arange(len(pose), device=pose.device), numbered(here.cell)[0]
    score, ball = known.balls[rows, wanted].flatten(1).max(1)
    found = score > FOUND
    cost = torch.where(known.free < -SURE, WALL_COST, 1 + 4 * (1 - known.free.sigmoid()))
    x, y = torch.meshgrid(*2 * [torch.arange(SIDE, device=pose.device) - SIDE // 2], indexing="ij")
    off = turned_by(torch.stack([x, y], -1) - pose[:, None, None, :2], pose)
    turn = torch.atan2(off[..., 1], off[..., 0]).abs()
    price = torch.where(_unseen(known.free), steps_from(cost, own) + TURN_COST * turn / (math.pi / 2), FAR).flatten(1)
    cheapest, nearest = price.min(1)
    before = known.goal.long()
    keeps = price.gather(1, before[:, None])[:, 0] <= (cheapest + PERSISTENCE).clamp(max=FAR / 2)
    goal = torch.where(keeps, before, nearest)
    there = found & (own == ball)  # and it was not touched, or another would be wanted
    waited = torch.where(there | ~found & keeps, known.waited + 1, 0)
    bored = waited > torch.where(there, PATIENCE_AT_BALL, PATIENCE)
    free = _add(known.free.flatten(1), goal, -3.0 * (bored & ~found)).clamp(-8, 8).view_as(known.free)
    free = torch.where(((cheapest > 0.8 * WALL_COST) & ~found)[:, None, None], 0.9 * free, free)  # nothing is left to see: doubt the walls
    balls = known.balls.flatten(2).clone()
    balls[rows, wanted, ball] -= 4.0 * (bored & there)
    beside = _beside(here)
    to_ball, to_goal = (_way(cost, place, here, pose, beside) for place in (ball, goal))
    around, following = known.free.flatten(1).gather(1, beside[1]), torch.where(found, to_ball.following, to_goal.following)
    numbers = torch.cat([
        F.one_hot(wanted, COLOURS).to(pose.dtype), found.to(pose.dtype)[:, None],
        to_ball.numbers * found[:, None], to_goal.numbers, here.rest,
        to_ball.ahead * found[:, None], to_goal.ahead, around / 8, known.still[:, None],
    ], 1)  # fmt: skip
    after = known._replace(free=free, balls=balls.view_as(known.balls), goal=goal.to(pose.dtype), ahead=following.to(pose.dtype))
    return numbers, after._replace(waited=torch.where(bored, 0, waited).to(pose.dtype))


class Way(NamedTuple):
    """The way to one cell."""

    numbers: Tensor  # (B, 11) that a policy is told
    ahead: Tensor  # (B, 4) steps that are saved by going ahead, left, back, right, -1..1
    following: Tensor  # (B,) the number of the cell that comes next


def _beside(here: GridPose) -> tuple[Tensor, Tensor, Tensor]:
    """The cells ahead, left, behind and right, (B, 4, 2), their numbers, (B, 4), and which are on the map, bool (B, 4)."""
    ways = here.cell.new_tensor([[1, 0], [0, 1], [-1, 0], [0, -1]])
    cells = here.cell[:, None] + turned(ways.expand(len(here.cell), -1, -1), here.quarter)
    return cells, *numbered(cells)


def _way(cost: Tensor, goal: Tensor, here: GridPose, pose: Tensor, beside: tuple[Tensor, Tensor, Tensor]) -> Way:
    """The shortest way to a cell (B,): the next cell on it, seen from the agent, and the goal itself."""
    (cells, number, inside), steps, own = beside, steps_from(cost, goal), numbered(here.cell)[0]
    beyond = torch.where(inside, (steps + cost).flatten(1).gather(1, number), FAR)
    length, best = beyond.min(1)
    arrived = own == goal
    next_cell = torch.where(arrived[:, None], here.cell, cells[torch.arange(len(pose), device=pose.device), best])
    place = torch.stack([goal // SIDE, goal % SIDE], 1) - SIDE // 2
    length = torch.where(arrived, 0, length)
    parts = [_direction(cell - pose[:, :2], pose) for cell in (next_cell, place)]
    told = torch.cat([*parts, (length / 20).clamp(max=3)[:, None], arrived[:, None], (length > 0.8 * WALL_COST)[:, None]], 1)
    return Way(told, ((length[:, None] - beyond) / 4).clamp(-1, 1), numbered(next_cell)[0])


def _direction(off: Tensor, pose: Tensor) -> Tensor:
    """Where something is, (B, 2) from the agent, as it sees it: cosine and sine of the angle, the same where it is near, and distance."""
    off = turned_by(off, pose)
    distance = off.norm(dim=1, keepdim=True)
    return torch.cat([off / distance.clamp(min=1e-3), off[:, 1:].sign(), (distance / 4).clamp(max=2)], 1)


def turned_by(off: Tensor, pose: Tensor) -> Tensor:
    """Vectors (B, ..., 2) of the grid as they are seen at poses (B, 4): ahead and to the left."""
    cos, sin = pose[:, 2:].view(-1, *[1] * (off.ndim - 2), 2).unbind(-1)
    return torch.stack([cos * off[..., 0] + sin * off[..., 1], cos * off[..., 1] - sin * off[..., 0]], -1)


def steps_from(cost: Tensor, start: Tensor) -> Tensor:
    """What it costs to come from every cell to `start` (B,), (B, side, side), where entering a cell costs so much; its own not counted."""
    steps = torch.full_like(cost, FAR).flatten(1).scatter(1, start[:, None], 0.0).view_as(cost)
    for _ in range(LONGEST):
        around = F.pad(steps, (1, 1, 1, 1), value=FAR)
        beside = torch.minimum(around[:, :-2, 1:-1], around[:, 2:, 1:-1]).minimum(around[:, 1:-1, :-2]).minimum(around[:, 1:-1, 2:])
        steps = torch.minimum(steps, beside + cost)
    return steps


def _unseen(free: Tensor) -> Tensor:
    """Cells that nothing is known of, beside free ones."""
    known_free = F.pad((free > SURE).to(free.dtype), (1, 1, 1, 1))
    beside = known_free[:, :-2, 1:-1] + known_free[:, 2:, 1:-1] + known_free[:, 1:-1, :-2] + known_free[:, 1:-1, 2:]
    return (free.abs() <= SURE) & (beside > 0)


def _fused(old: Tensor, read: Tensor, number: Tensor, weight: Tensor) -> Tensor:
    """Log odds (..., cells) moved towards a reading (..., K) of cells `number`, by how sure either is."""
    read, before = read.clamp(-MOST, MOST), old.gather(-1, number)
    gain = weight * read.square() / (read.square() + before.square() + 1)
    return old.scatter_add(-1, number, gain * (1.2 * read - before))


def _add(cells: Tensor, number: Tensor, more: Tensor) -> Tensor:
    """To one cell (B,) of each row (B, cells)."""
    return cells.scatter_add(1, number[:, None], more.to(cells.dtype)[:, None])


def packed(known: MazeMap) -> Tensor:
    """A map as numbers, (B, MEMORY)."""
    return torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in known], 1)


def unpacked(memory: Tensor) -> MazeMap:
    parts = memory.split([math.prod(size) for size in SIZES.values()], 1)
    return MazeMap(*(part.reshape(len(memory), *size) for part, size in zip(parts, SIZES.values(), strict=True)))
