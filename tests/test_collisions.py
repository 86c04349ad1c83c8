"""Walls that a map knows hold whatever a network says; where none is near nothing blocks."""

import math

import torch
from test_map_memory import at

from lssvwm_gym.models.collisions import RADIUS, held, held_back
from lssvwm_gym.models.map_memory import SIDE

MIDDLE = SIDE // 2
CELL = 1.5


def room(*walls: tuple[int, int]) -> torch.Tensor:
    """A map whose cells are free but for these, seen from its middle."""
    free = torch.full((1, SIDE, SIDE), 8.0)
    for x, y in walls:
        free[0, MIDDLE + x, MIDDLE + y] = -8.0
    return free


def stands(free: torch.Tensor, start: tuple[float, float], end: tuple[float, float]) -> list[float]:
    return held(free, torch.tensor([start]), torch.tensor([end]))[0].tolist()


def close(a: list[float], b: tuple[float, float]) -> bool:
    return math.dist(a, b) < 1e-5


def test_a_wall_stops_a_step_and_lets_it_slide():
    assert close(stands(room(), (0.2, 0.1), (0.6, 0.3)), (0.6, 0.3))
    assert close(stands(room((1, 0)), (0.2, 0.1), (0.6, 0.3)), (0.5 - RADIUS, 0.3))
    assert close(stands(room((1, 0)), (0.2, 0.1), (0.45, 0.1)), (0.5 - RADIUS, 0.1))  # a disc, not a point
    assert close(stands(room((1, 0), (0, 1)), (0.3, 0.3), (0.7, 0.8)), (0.5 - RADIUS, 0.5 - RADIUS))
    assert close(stands(room((2, 0)), (0.4, 0.0), (1.45, 0.0)), (1.5 - RADIUS, 0.0))  # of the next cell, too
    assert close(stands(room((-1, 0)), (-0.2, 0.0), (-0.6, -0.2)), (RADIUS - 0.5, -0.2))


def test_corners_are_walked_around():
    x, y = stands(room((1, 1)), (0.3, 0.42), (0.44, 0.45))
    assert math.hypot(0.5 - x, 0.5 - y) > RADIUS - 1e-4
    assert x < 0.44
    x, y = stands(room((1, 1)), (0.3, 0.3), (0.7, 0.7))
    assert math.hypot(0.5 - x, 0.5 - y) > RADIUS - 1e-4


def test_no_walk_enters_a_wall():
    generator = torch.Generator().manual_seed(0)
    free = torch.where(torch.rand(64, SIDE, SIDE, generator=generator) < 0.6, 8.0, -8.0)
    free[:, MIDDLE, MIDDLE] = 8.0
    place = torch.zeros(64, 2)
    cells = torch.stack(torch.meshgrid(*2 * [torch.arange(SIDE) - MIDDLE], indexing="ij"), -1).view(1, -1, 2)
    went = 0.0
    for _ in range(200):
        aim = place + 0.35 * (2 * torch.rand(64, 2, generator=generator) - 1)
        after = held(free, place, aim)
        went += (after - place).norm(dim=1).mean().item()
        place = after
        gap = ((place[:, None] - cells).abs() - 0.5).clamp(min=0).norm(dim=2)  # to each cell
        assert gap.masked_fill(free.flatten(1) > 0, 9.0).min() > RADIUS - 1e-3
    assert went > 10


def test_a_motion_goes_as_far_as_walls_let_it():
    """Whichever way one looks, in units of length; what is hardly known blocks nothing."""
    motion = torch.tensor([[0.3, 0.0, 0.2]])

    def goes(free: torch.Tensor, degrees: float, x: float = 0.3) -> torch.Tensor:
        return held_back(free, at(x, 0, degrees), motion, CELL)[0]

    assert torch.allclose(goes(room(), 0.0), motion[0], atol=1e-6)
    assert torch.allclose(goes(0.05 * room((1, 0)), 0.0), motion[0], atol=1e-6)
    assert torch.allclose(goes(room((1, 0)), 0.0), torch.tensor([CELL * (0.5 - RADIUS - 0.3), 0.0, 0.2]), atol=1e-5)
    assert torch.allclose(goes(room((0, 1)), 90.0, 0.0), motion[0], atol=1e-6)
    assert torch.allclose(goes(room((-1, 0)), 180.0), motion[0], atol=1e-6)
