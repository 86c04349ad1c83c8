"""A scripted explorer of Memory Maze. It cheats: it sees the map and its own place, which `info` tells and no picture shows.

It walks shortest paths to random cells, or to the wanted ball, turns around on arrival, and now and then slips into a
burst of one random action. So it visits most of the maze and comes back often, which is what a memory needs to learn.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

TURN = 18.4  # degrees that one more step of turning adds
TURN_ON_SPOT = 50.0  # degrees of error from which it stops to turn
ARRIVED = 0.3  # cells from the goal
BALL_SHARE = (0.2, 0.8)  # of the goals, by episode
LOOK_STEPS = (8, 24)  # 20 steps are a full turn
PATIENCE = 40  # steps without coming nearer before it picks another goal

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)


class MazeExplorer:
    """One episode's walk, decided by `info` of `MemoryMazeEnv` and by `rng`, which draws shares of balls and noise, and every goal."""

    noise_share = (0.0, 0.05)  # of the steps that begin a burst, by episode
    burst_steps = (1, 5)
    burst_actions: Sequence[int] = range(6)  # each as likely

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._ball_share = rng.uniform(*BALL_SHARE)
        self._noise_share = rng.uniform(*self.noise_share)
        self._queue: deque[int] = deque()  # actions decided on already: a look around, a burst
        self._goal: tuple[int, int] | None = None
        self._wanted = np.full(2, np.nan)  # where the wanted ball was when the goal was picked
        self._steps_to_go = np.zeros(0)  # (size, size) from each cell to the goal
        self._nearest, self._waited = np.inf, 0

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> int:
        """The next action, 0..5, for what `info` says about this moment; `frame` is not looked at."""
        if not self._queue and self._rng.random() < self._noise_share:
            action = self.burst_actions[int(self._rng.integers(len(self.burst_actions)))]
            self._queue.extend([action] * int(self._rng.integers(self.burst_steps[0], self.burst_steps[1] + 1)))
        if not self._queue and self._goal_is_done(info):
            self._pick_goal(info)
        if self._queue:
            return self._queue.popleft()
        return steer(info["agent_pos"], info["agent_dir"], waypoint(self._steps_to_go, info["agent_pos"]))

    def _goal_is_done(self, info: dict[str, Any]) -> bool:
        if self._goal is None:
            return True
        if not np.array_equal(self._wanted, info["target_pos"]):  # the ball was touched
            self._look_around()
            return True
        distance = float(np.linalg.norm(centre(self._goal) - info["agent_pos"]))
        remaining = distance + self._steps_to_go[row_column(info["agent_pos"])]
        self._waited = 0 if remaining < self._nearest - 0.05 else self._waited + 1
        self._nearest = min(self._nearest, remaining)
        if distance < ARRIVED:
            self._look_around()
        return distance < ARRIVED or self._waited > PATIENCE

    def _look_around(self) -> None:
        side = int(self._rng.choice([LEFT, RIGHT]))
        self._queue.extend([side] * int(self._rng.integers(LOOK_STEPS[0], LOOK_STEPS[1] + 1)))

    def _pick_goal(self, info: dict[str, Any]) -> None:
        here, ball = row_column(info["agent_pos"]), row_column(info["target_pos"])
        to_ball = self._rng.random() < self._ball_share and ball != here
        self._goal = ball if to_ball else self._random_cell(steps_to(info["maze_layout"], here))
        self._wanted = info["target_pos"]
        self._steps_to_go = steps_to(info["maze_layout"], self._goal)
        self._nearest, self._waited = np.inf, 0

    def _random_cell(self, steps_from_here: np.ndarray) -> tuple[int, int]:
        """One that can be reached, the farther the likelier."""
        weights = np.where(np.isfinite(steps_from_here), steps_from_here, 0).ravel()
        return divmod(int(self._rng.choice(len(weights), p=weights / weights.sum())), steps_from_here.shape[1])


def steer(position: np.ndarray, heading: np.ndarray, goal: np.ndarray) -> int:
    """The action, 1..5, that brings an agent at `position` (2,) with unit `heading` (2,) towards `goal` (2,)."""
    way = goal - position
    error = np.degrees(np.arctan2(heading[0] * way[1] - heading[1] * way[0], heading @ way))  # positive to the left
    if abs(error) < TURN / 2:
        return FORWARD
    if abs(error) < TURN_ON_SPOT:
        return FORWARD_LEFT if error > 0 else FORWARD_RIGHT
    return LEFT if error > 0 else RIGHT


def steps_to(layout: np.ndarray, goal: tuple[int, int]) -> np.ndarray:
    """Steps on the shortest path from every free cell of `layout` (rows, columns) to `goal`: float, inf where there is none."""
    steps = np.full(layout.shape, np.inf)
    steps[goal] = 0
    queue = deque([goal])
    while queue:
        row, column = queue.popleft()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= cell[0] < layout.shape[0] and 0 <= cell[1] < layout.shape[1]
            if inside and layout[cell] and np.isinf(steps[cell]):
                steps[cell] = steps[row, column] + 1
                queue.append(cell)
    return steps


def waypoint(steps_to_go: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Centre (2,) of the goal's cell if `position` is in it, else of the next cell on the way, for steps from each cell to the goal."""
    row, column = row_column(position)
    around = [(row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    inside = [cell for cell in around if 0 <= min(cell) and max(cell) < len(steps_to_go)]
    return centre(min(inside, key=lambda cell: steps_to_go[cell]))


def row_column(position: np.ndarray) -> tuple[int, int]:
    """The cell of a position (2,)."""
    return int(position[1]), int(position[0])


def centre(cell: tuple[int, int]) -> np.ndarray:
    """The position (2,) of a cell's middle."""
    return np.array([cell[1] + 0.5, cell[0] + 0.5])
