"""A scripted player of Memory Maze that knows of the map only what it has seen: it goes to the wanted ball, or looks for it.

The explorer walks to balls that it never saw, which nobody who sees pictures alone can learn to do. This one goes to a ball that it
remembers, and else to the nearest place that it has not seen yet. It acts on what it is told at each moment, whoever chose the actions
before, so that it can say what should have been done along anybody's walk (DAgger: Ross, Gordon and Bagnell, arXiv 1011.0686).
"""

from typing import Any

import numpy as np

from lssvwm_gym.real_envs.experts.maze_explorer import row_column, steer, steps_to, waypoint

HALF_VIEW = np.radians(40.0)  # of the camera
SIGHT = 6.0  # cells; a ball further away is a pixel or two
SAMPLES = 24  # points of a line of sight that are asked whether they are free
TURN_COST = 1.25  # cells that could be walked in the time of a quarter turn
PERSISTENCE = 2.0  # cells by which another unseen place must be nearer before the goal is changed


class MazeSeeker:
    """One episode's walk, decided by `info` of `MemoryMazeEnv` of which it only takes what was in view."""

    def __init__(self, rng: np.random.Generator) -> None:
        """`rng` is there because all players have one; nothing is drawn."""
        self._seen = np.zeros((0, 0), bool)  # (rows, columns) free cells that were in view
        self._known = np.zeros(0, bool)  # (balls,) those that were
        self._goal: tuple[int, int] | None = None  # the unseen cell that it is looking at next

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> int:
        """The next action, 1..5, for what `info` says about this moment; `frame` is not looked at."""
        self.look(info)
        position, wanted = info["agent_pos"], info["target_pos"]
        ball = int(np.linalg.norm(info["targets_pos"] - wanted, axis=1).argmin())
        unseen = (info["maze_layout"] > 0) & ~self._seen
        to_ball = bool(self._known[ball]) or not unseen.any()
        if to_ball and row_column(position) == row_column(wanted):
            return steer(position, info["agent_dir"], wanted)
        steps = steps_to(info["maze_layout"], row_column(wanted)) if to_ball else self._steps_to_unseen(info, unseen)
        return steer(position, info["agent_dir"], waypoint(steps, position))

    def look(self, info: dict[str, Any]) -> None:
        """Remember which cells and balls are in view."""
        layout = info["maze_layout"] > 0
        if self._seen.shape != layout.shape:
            self._seen, self._known = np.zeros_like(layout), np.zeros(len(info["targets_pos"]), bool)
        cells = np.argwhere(layout)
        self._seen[tuple(cells[in_view(info, cells[:, ::-1] + 0.5)].T)] = True
        self._seen[row_column(info["agent_pos"])] = True
        self._known |= in_view(info, info["targets_pos"])

    def _steps_to_unseen(self, info: dict[str, Any], unseen: np.ndarray) -> np.ndarray:
        """Steps from every cell to the goal, (rows, columns); the goal is the unseen cell that is reached soonest through seen ones."""
        here, goal = row_column(info["agent_pos"]), self._goal
        cost = np.where(unseen, steps_to(self._seen | unseen & _beside(self._seen), here), np.inf)
        for cell in np.argwhere(np.isfinite(cost) & (cost <= cost.min() + 2 * TURN_COST)):
            to_goal = steps_to(info["maze_layout"], (int(cell[0]), int(cell[1])))
            way = waypoint(to_goal, info["agent_pos"]) - info["agent_pos"]
            turn = np.arccos(np.clip(way @ info["agent_dir"] / max(float(np.linalg.norm(way)), 1e-6), -1, 1))
            cost[tuple(cell)] += TURN_COST * turn / (np.pi / 2)
        best = np.unravel_index(int(cost.argmin()), cost.shape)
        if goal is None or not np.isfinite(cost[goal]) or cost[best] < cost[goal] - PERSISTENCE:
            self._goal = goal = (int(best[0]), int(best[1]))
        return steps_to(info["maze_layout"], goal)


def in_view(info: dict[str, Any], points: np.ndarray) -> np.ndarray:
    """Which points (K, 2) the agent sees, bool (K,): in front of it, near enough, and with nothing but free cells between."""
    free = np.pad(info["maze_layout"] > 0, 1)
    return visible_from(info["agent_pos"][None], info["agent_dir"][None], points, free, HALF_VIEW, SIGHT)[0]


def visible_from(place: np.ndarray, facing: np.ndarray, points: np.ndarray, free: np.ndarray, half_view: float, sight: float) -> np.ndarray:
    """Which points (K, 2) are seen from places (T, 2) facing (T, 2): bool (T, K). `free` has a wall around the maze."""
    way = points - place[:, None]
    distance = np.linalg.norm(way, axis=-1)
    seen = ((way * facing[:, None]).sum(-1) >= np.cos(half_view) * distance) & (distance <= sight)
    moment, point = np.nonzero(seen)
    line = place[moment][:, None] + way[moment, point][:, None] * np.linspace(0, 1, SAMPLES, dtype=way.dtype)[:, None]
    column, row = (np.floor(line).astype(np.int64) + 1).clip(0, len(free) - 1).transpose(2, 0, 1)
    seen[moment, point] = free[row, column].all(1)
    return seen


def _beside(cells: np.ndarray) -> np.ndarray:
    """Cells that have one of these beside them."""
    around = np.pad(cells, 1)
    return around[:-2, 1:-1] | around[2:, 1:-1] | around[1:-1, :-2] | around[1:-1, 2:]
