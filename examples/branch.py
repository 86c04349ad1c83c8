"""One moment, eight futures: branch a dream and see what each choice would lead to.

python examples/branch.py        writes demo/branches.png: a row a future, a column a moment
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import tyro
from PIL import Image

import lssvwm_gym
from lssvwm_gym.io.video import enlarged

FUTURES = ("forward", "left", "right", "forward_left", "forward_right", "noop", "left then forward", "right then forward")


@dataclass(frozen=True)
class Branching:
    """Where to branch, and how far to look ahead."""

    env: str = "LSSVWM-MemoryMaze-v0"
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    out: Path = Path("demo/branches.png")
    before: int = 20  # steps forward to the moment of choice
    ahead: int = 16  # steps of every future
    every: int = 2  # steps between two pictures
    seed: int = 0


def main(run: Branching) -> None:
    env = gymnasium.make(run.env, weights=run.weights, render_mode="rgb_array")
    now, _ = env.reset(seed=run.seed)
    names = lssvwm_gym.WORLDS["memory-maze"].actions
    for _ in range(run.before):
        now, *_ = env.step(names.index("forward"))
    futures = env.unwrapped.branch(len(FUTURES), same_noise=True)  # type: ignore[attr-defined]
    pictures = [np.stack([now] * len(FUTURES))]
    for step in range(run.ahead):
        frames, *_ = futures.step(np.array([names.index(action_at(step, future, run.ahead)) for future in FUTURES]))
        if (step + 1) % run.every == 0:
            pictures.append(frames)
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in np.stack(pictures, 1)])
    run.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged(sheet, 2)).save(run.out)
    print(f"{run.out}: from top to bottom {', '.join(future.replace('_', ' ') for future in FUTURES)}")


def action_at(step: int, future: str, steps: int) -> str:
    """The name of a future's action: its first for the first half of the steps, its last for the second."""
    actions = future.split(" then ")
    return actions[0] if step < steps / 2 else actions[-1]


if __name__ == "__main__":
    main(tyro.cli(Branching, description=__doc__))
