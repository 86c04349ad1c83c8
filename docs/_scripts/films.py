"""The two films of the README: `python -m docs._scripts.films --data DIR/test`, with real episodes of Memory Maze.

One dream is in a maze that it knows, after 600 frames of the first episode of the folder, along what the player did next. The other begins
with nothing and makes its maze up, with a player that goes ahead until something stops it and then turns. The seed is 0; nothing is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import tyro

from docs._scripts.layouts import picture
from examples.demo import Demo, dream_along, labelled, side_by_side
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.models.map_layout import believed

ID = "LSSVWM-MemoryMaze-v0"
FORWARD, LEFT, RIGHT = 1, 2, 3
ROOT = Path(__file__).parent.parent.parent
STOPPED, RESTLESS = 0.05, 0.04  # world units in a step; chance of a turn that nothing asked for


@dataclass(frozen=True)
class Films:
    """What to film."""

    data: Path  # folder of real episodes
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    profile: str = "balanced"
    context_frames: int = 600  # of the maze that is known
    steps: int = 100
    out: Path = ROOT / "docs" / "media"


def main(films: Films) -> None:
    env = gymnasium.make(ID, profile=films.profile, weights=films.weights, observation="image")
    for name, film in (("known_maze", known_maze), ("imagined_maze", imagined_maze)):
        path = films.out / f"{name}.gif"
        write_movie(path, film(env, films), fps=8)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    env.close()


def known_maze(env: gymnasium.Env, films: Films) -> np.ndarray:
    """Real, dreamed, and the map, (T, height, width, 3)."""
    run = Demo(episode=episode_paths(films.data)[0], context_frames=films.context_frames, steps=films.steps, scale=3)
    episode = read_episode(run.episode)
    return side_by_side(env, run, episode, *dream_along(env, run, episode))


def imagined_maze(env: gymnasium.Env, films: Films) -> np.ndarray:
    """A dream without a context beside the layout that it has imagined, (T, height, width, 3)."""
    frame, info = env.reset(seed=0, options={"start": "cold"})
    rng, turns, side, pictures = np.random.default_rng(0), 0, LEFT, []
    for step in range(2 * films.steps + 1):
        state = env.unwrapped.clone_state().dream
        beside = {"dream": enlarged(frame, 4), "the maze it makes up": picture(believed(state.map, state.layout), state, 4 * len(frame))}
        pictures.append(labelled(beside, f"step {step}"))
        before = info["estimated_pose"][:2]
        frame, _, _, _, info = env.step(side if turns else FORWARD)
        stopped = not turns and np.linalg.norm(info["estimated_pose"][:2] - before) < STOPPED
        turns = max(0, turns - 1)
        if stopped or (not turns and rng.random() < RESTLESS):
            turns, side = int(rng.integers(3, 9)), int(rng.choice([LEFT, RIGHT]))
    return np.stack(pictures)


if __name__ == "__main__":
    main(tyro.cli(Films, description=__doc__))
