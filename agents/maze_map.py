"""What a policy is told of the map that the world model draws of a Memory Maze, in dreams and in the real maze alike.

The map is the world model's (`lssvwm_gym.models.map_memory`), an observation like any other: `map+wanted+pose`. `told` works out from it
what a policy decides on (`NUMBERS`): the ways to the wanted ball and to the nearest place not seen yet, and what is around. Which action
follows is the policy's to learn. Its memory is the goal that it goes for, and what it doubts of the map because it met something else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.models.map_memory import SIDE, GridPose, grid_pose, numbered, seen_from, turned

OBSERVATION = "map+wanted+pose"
COLOURS = 3  # of the balls in 9 x 9 mazes
SURE = 0.7  # log odds from which a cell counts as known
FOUND = 0.5  # and a ball as found
WALL_COST = 50.0  # free cells' worth of walking through what seems a wall; through what nobody has seen it is 3
FAR = 1e4
LONGEST = 44  # cells of a way that is looked for
LOOKED = 20.0  # cells that may be walked to look where the log odds of a ball are larger by one
TURN_COST = 1.25  # cells that could be walked in the time of a quarter turn
PERSISTENCE = 2.0  # cells by which another unseen place must be nearer before the goal is changed
PATIENCE, PATIENCE_AT_BALL = 40, 10  # steps with one goal, or in a ball's cell, before the map is doubted
STILL = (0.06, 0.07)  # cells and radians below which a step has not moved: twice in a row, and the cell ahead is a wall
FADES = 0.99  # of a doubt, in a step
SHAPE = (1 + COLOURS) * SIDE**2, COLOURS, 4  # numbers of the map, of what is wanted, and of the pose in an observation
BALL, GOAL = slice(COLOURS + 1, COLOURS + 12), slice(COLOURS + 12, COLOURS + 23)  # of what is told: the ways to the ball and to the goal
NUMBERS = COLOURS + 2 * 11 + 1 + 4 * 3 + 5  # that a policy is told


class MazeMap(NamedTuple):
    """What a policy makes of the map, and what it remembers."""

    free: Tensor  # (B, side, side) log odds that a cell is free, by x and y
    balls: Tensor  # (B, colours, side, side) log odds that a ball of a colour lies there
    doubt: Tensor  # (B, 1 + colours, side, side) by how much these two differ from the world model's map
    pose: Tensor  # (B, 4) of the last frame
    goal: Tensor  # (B,) the unseen cell that was being looked for, as a number; at first a corner's, which is none
    waited: Tensor  # (B,) steps since that is the goal
    still: Tensor  # (B,) steps in a row that have not moved
    ahead: Tensor  # (B,) the cell that was to be entered next


SIZES = {
    **{"free": (SIDE, SIDE), "balls": (COLOURS, SIDE, SIDE), "doubt": (1 + COLOURS, SIDE, SIDE)},
    **{"pose": (4,), "goal": (), "waited": (), "still": (), "ahead": ()},
}
MEMORY = sum(math.prod(size) for size in SIZES.values())


@torch.no_grad()
def told(observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Observations (B, n) to what a policy is told, (B, NUMBERS), and the memory (B, MEMORY), zeros at the beginning."""
    cells, wanted, pose = observation.float().split(SHAPE, 1)
    here, cells = grid_pose(pose), cells.view(-1, 1 + COLOURS, SIDE, SIDE)
    numbers, known = planned(doubted(unpacked(memory), cells, here), wanted.argmax(1), here)
    changed = torch.cat([known.free[:, None], known.balls], 1) - cells
    return numbers, packed(known._replace(doubt=FADES * changed))


def doubted(known: MazeMap, cells: Tensor, here: GridPose) -> MazeMap:
    """The map of now, log odds (B, 1 + colours, side, side), less what is doubted of it; a cell that can't be entered is a wall."""
    pose, own = here.pose, numbered(here.cell)[0]
    known = known._replace(free=cells[:, 0] + known.doubt[:, 0], balls=cells[:, 1:] + known.doubt[:, 1:])
    here_free = torch.full_like(pose[:, :1], SURE)  # where the agent is
    free = known.free.flatten(1).scatter_reduce(1, own[:, None], here_free, "amax")
    moved = (pose[:, :2] - known.pose[:, :2]).norm(dim=1)
    turn = (pose[:, 2:] * known.pose[:, 2:]).sum(1).clamp(-1, 1).acos()
    begun = known.pose.square().sum(1) > 0
    still = torch.where(begun & (moved < STILL[0]) & (turn < STILL[1]), known.still + 1, 0)
    blocked = (still >= 2) & (known.ahead != own)
    free = _add(free, known.ahead.long(), -3.0 * blocked)
    return known._replace(free=free.clamp(-8, 8).view_as(known.free), pose=pose, still=torch.where(blocked, 0, still))


def planned(known: MazeMap, wanted: Tensor, here: GridPose) -> tuple[Tensor, MazeMap]:
    """What a policy is told, and the map with its goal: the ways to the wanted ball (B,) and to the nearest place not seen yet."""
    pose = here.pose
    rows, own = torch.arange(len(pose), device=pose.device), numbered(here.cell)[0]
    score, ball = known.balls[rows, wanted].flatten(1).max(1)
    found = score > FOUND
    cost = torch.where(known.free < -SURE, WALL_COST, 1 + 4 * (1 - known.free.sigmoid()))
    x, y = torch.meshgrid(*2 * [torch.arange(SIDE, device=pose.device) - SIDE // 2], indexing="ij")
    turn = _turn(torch.stack([x, y], -1) - pose[:, None, None, :2], pose)
    way = steps_from(cost, own) + TURN_COST * turn
    price = torch.where(_unseen(known.free), way, FAR)
    nothing = price.amin((1, 2), keepdim=True) > 0.8 * WALL_COST  # is left to see: look again, where a ball is the least unlikely
    again = torch.where(known.free > SURE, way - LOOKED * known.balls[rows, wanted], FAR)
    price = torch.where(nothing, again, price).flatten(1)
    cheapest, nearest = price.min(1)
    before = known.goal.long()
    keeps = price.gather(1, before[:, None])[:, 0] <= (cheapest + PERSISTENCE).clamp(max=FAR / 2)
    goal = torch.where(keeps, before, nearest)
    there = found & (own == ball)  # and it was not touched, or another would be wanted
    waited = torch.where(there | ~found & keeps, known.waited + 1, 0)
    bored = waited > torch.where(there, PATIENCE_AT_BALL, PATIENCE)
    free = _add(known.free.flatten(1), goal, -3.0 * (bored & ~found)).clamp(-8, 8).view_as(known.free)
    free = torch.where(((cheapest > 0.8 * WALL_COST) & ~found)[:, None, None], 0.9 * free, free)  # doubt the walls
    balls = known.balls.flatten(2).clone()
    balls[rows, wanted, ball] -= 4.0 * (bored & there)
    beside = _beside(here)
    to_ball, to_goal = (_way(cost, place, here, beside) for place in (ball, goal))
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


def _way(cost: Tensor, goal: Tensor, here: GridPose, beside: tuple[Tensor, Tensor, Tensor]) -> Way:
    """The shortest way to a cell (B,): the next cell on it, seen from the agent, and the goal itself."""
    pose = here.pose
    (cells, number, inside), steps, own = beside, steps_from(cost, goal), numbered(here.cell)[0]
    beyond = torch.where(inside, (steps + cost).flatten(1).gather(1, number), FAR)
    best = (beyond + TURN_COST * _turn(cells - pose[:, None, :2], pose)).argmin(1)  # of two ways alike the one that is being gone
    length = beyond.gather(1, best[:, None])[:, 0]
    arrived = own == goal
    next_cell = torch.where(arrived[:, None], here.cell, cells[torch.arange(len(pose), device=pose.device), best])
    place = torch.stack([goal // SIDE, goal % SIDE], 1) - SIDE // 2
    length = torch.where(arrived, 0, length)
    parts = [_direction(cell - pose[:, :2], pose) for cell in (next_cell, place)]
    told = torch.cat([*parts, (length / 20).clamp(max=3)[:, None], arrived[:, None], (length > 0.8 * WALL_COST)[:, None]], 1)
    return Way(told, ((length[:, None] - beyond) / 4).clamp(-1, 1), numbered(next_cell)[0])


def _direction(off: Tensor, pose: Tensor) -> Tensor:
    """Where something is, (B, 2) from the agent, as it sees it: cosine and sine of the angle, the same where it is near, and distance."""
    off = seen_from(pose, off)
    distance = off.norm(dim=1, keepdim=True)
    return torch.cat([off / distance.clamp(min=1e-3), off[:, 1:].sign(), (distance / 4).clamp(max=2)], 1)


def _turn(off: Tensor, pose: Tensor) -> Tensor:
    """How many quarter turns, either way, vectors (B, ..., 2) of the grid are away from ahead, (B, ...)."""
    off = seen_from(pose, off)
    return torch.atan2(off[..., 1], off[..., 0]).abs() / (math.pi / 2)


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


def _add(cells: Tensor, number: Tensor, more: Tensor) -> Tensor:
    """To one cell (B,) of each row (B, cells)."""
    return cells.scatter_add(1, number[:, None], more.to(cells.dtype)[:, None])


def packed(known: MazeMap) -> Tensor:
    """A map as numbers, (B, MEMORY)."""
    return torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in known], 1)


def unpacked(memory: Tensor) -> MazeMap:
    parts = memory.split([math.prod(size) for size in SIZES.values()], 1)
    return MazeMap(*(part.reshape(len(memory), *size) for part, size in zip(parts, SIZES.values(), strict=True)))
