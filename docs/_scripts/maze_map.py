"""A policy in the real maze beside the map that it draws: `python -m docs._scripts.maze_map`, docs/media/maze_map.gif.

The maze is that of the first seed of `experiments.check_transfer`; nothing is chosen. Needs `pip install -e '.[agents,memory-maze]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.maze_map import COLOURS, FOUND, OBSERVATION, SURE, unpacked
from agents.policies import choose, policy_for
from experiments.maze_reader import BALLS
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservation
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.models.map_memory import SIDE

CELL, ZOOM = 12, 4  # pixels of a cell, and of one of a frame
FREE, WALL, UNKNOWN, AGENT = (225, 225, 220), (50, 50, 60), (120, 120, 125), (250, 160, 30)


@dataclass(frozen=True)
class Args:
    """Whom to film, and where."""

    policy: Path = Path("agents/policies/memory_maze_map.safetensors")
    seed: int = 1_000_000
    steps: int = 240
    every: int = 3  # steps between two frames of the film
    out: Path = Path("docs/media/maze_map.gif")


@torch.no_grad()
def main(args: Args) -> None:
    dream = open_dream("memory-maze", "fast", "cpu")
    policy, generator = policy_for(args.policy, dream), torch.Generator().manual_seed(args.seed)
    env = WorldModelObservation(gymnasium.make("lssvwm_gym:MemoryMaze9x9-Real-v0", max_episode_steps=args.steps), dream, OBSERVATION)
    seen, _ = env.reset(seed=args.seed)
    memory, film, earned = torch.zeros(1, policy.memory_size), [], 0.0
    for step in range(args.steps):
        log_probability, _, memory = policy(torch.from_numpy(seen)[None], memory)
        if step % args.every == 0:
            known = unpacked(memory)
            film.append(np.concatenate([enlarged(env.frame, ZOOM), drawing(known.free, known.balls, known.pose, ZOOM * len(env.frame))], 1))
        seen, reward, *_ = env.step(np.int64(choose(log_probability, generator)[0]))
        earned += float(reward)
    env.close()
    write_movie(args.out, np.stack(film), fps=8)
    print(f"{args.out}: {earned:.0f} balls in {args.steps} steps, {args.out.stat().st_size / 1e6:.1f} MB")


def drawing(known: Tensor, balls: Tensor, pose: Tensor, size: int, colours: Tensor | None = None) -> np.ndarray:
    """What is known of a maze, (size, size, 3): light where it is free, dark where a wall is, balls and the agent as squares.

    Log odds (1, side, side) of free cells and (1, kinds, side, side) of balls, and the agent's pose (1, 4). Walls have `colours`
    (3, side, side) where these are known.
    """
    free = known[0].numpy()
    cells = np.full((SIDE, SIDE, 3), UNKNOWN, np.uint8)
    cells[free > SURE], cells[free < -SURE] = FREE, WALL
    if colours is not None:
        painted = 255 * colours.permute(1, 2, 0).clamp(0, 1).numpy()
        cells = np.where(painted.any(2, keepdims=True) & (free < -SURE)[..., None], painted, cells).astype(np.uint8)
    picture = cells.repeat(CELL, 0).repeat(CELL, 1)
    for colour in range(COLOURS):
        for x, y in np.argwhere(balls[0, colour].numpy() > FOUND):
            _square(picture, x + 0.5, y + 0.5, 4, tuple(int(255 * part) for part in BALLS[colour]))
    x, y, cos, sin = pose[0].tolist()
    x, y = x + SIDE // 2 + 0.5, y + SIDE // 2 + 0.5
    _square(picture, x, y, 3, AGENT)
    for away in (0.3, 0.5, 0.7):
        _square(picture, x + away * cos, y + away * sin, 1, AGENT)
    whole, edge = np.full((size, size, 3), UNKNOWN, np.uint8), (size - len(picture)) // 2
    whole[edge : edge + len(picture), edge : edge + len(picture)] = picture.transpose(1, 0, 2)[::-1]  # y goes up
    return whole


def _square(picture: np.ndarray, x: float, y: float, half: int, colour: tuple[int, ...]) -> None:
    column, row = round(x * CELL), round(y * CELL)
    picture[max(column - half, 0) : column + half, max(row - half, 0) : row + half] = colour


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
