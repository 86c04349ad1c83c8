"""Dream a world on this machine: how fast that is, and how it looks beside the real one. This is what `make demo` runs.

A recorded episode of the real world begins; its first frames are the context of the dream, then both take the same actions, and
the dream sees nothing more of the real world. The map shows where the agent went, and where the dream estimates it went. In a
world with an inventory the line below shows it.

    python examples/demo.py --env LSSVWM-Minecraft-v0 --episode DIR/000000.npz    # an episode that `lssvwm-gym collect luanti` made
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

import lssvwm_gym  # noqa: F401 - registers the ids
from lssvwm_gym.data.episode import Episode, read_episode
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.malloc import keep_freed_memory

HEADER, GAP, LINE = 26, 8, 14  # pixels
DARK, LIGHT, WALL, FLOOR = (18, 20, 26), (232, 234, 240), (44, 48, 60), (112, 118, 134)
TRUE, ESTIMATED = (90, 200, 250), (255, 176, 64)


@dataclass(frozen=True)
class Demo:
    """What to show, and how long."""

    env: str = "LSSVWM-MemoryMaze-v0"
    profile: str = "balanced"  # fast, balanced or quality
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    episode: Path = Path(__file__).parent / "memory_maze_real.npz"  # of the real world
    context_frames: int = 100  # of the episode, before the dream
    steps: int = 100  # of each dream
    many: int = 16  # dreams at once, to see how fast a batch is
    scale: int = 4  # screen pixels a pixel of the world
    out: Path = Path("demo")  # folder to write to
    seed: int = 0


def main(run: Demo) -> None:
    env = gymnasium.make(run.env, profile=run.profile, weights=run.weights, observation="image")
    frames, speed = wander(env, run.steps, run.seed)
    print(f"one dream, {run.profile}: {speed:.1f} steps/s")
    print(f"{run.many} dreams at once, fast: {speed_of_many(run):.1f} steps/s")
    write_movie(run.out / "dream.gif", frames, 8, run.scale)
    print(f"dreaming along {run.episode.name} ...", flush=True)
    episode = read_episode(run.episode)
    frames, infos = dream_along(env, run, episode)
    write_movie(run.out / "dream_vs_real.gif", side_by_side(env, run, episode, frames, infos), fps=8)
    print(f"look at {run.out / 'dream_vs_real.gif'} and {run.out / 'dream.gif'}")
    env.close()


def wander(env: gymnasium.Env, steps: int, seed: int) -> tuple[np.ndarray, float]:
    """Every action for four steps, drawn at random. The frames (steps + 1, height, width, 3) and the steps a second."""
    frame, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    frames, action, began = [frame], env.action_space.sample(), time.perf_counter()
    for step in range(steps):
        action = env.action_space.sample() if step % 4 == 0 else action
        frames.append(env.step(action)[0])
        if (step + 1) % 25 == 0:
            print(f"dreamed {step + 1} of {steps} steps", flush=True)
    return np.stack(frames), steps / (time.perf_counter() - began)


def speed_of_many(run: Demo) -> float:
    """Steps a second of a batch of dreams, all together."""
    envs = gymnasium.make_vec(run.env, run.many, profile="fast", weights=run.weights, observation="image")
    envs.reset(seed=run.seed)
    steps = max(1, run.steps // 5)
    began = time.perf_counter()
    for _ in range(steps):
        envs.step(envs.action_space.sample())
    return run.many * steps / (time.perf_counter() - began)


def dream_along(env: gymnasium.Env, run: Demo, episode: Episode) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Dream the episode's actions after its context: frames (T, height, width, 3) and as many infos."""
    frame, info = env.reset(seed=run.seed, options={"episode": str(run.episode), "context_frames": run.context_frames})
    frames, infos = [frame], [info]
    for action in episode.action[run.context_frames : run.context_frames + run.steps]:
        frame, _, _, _, info = env.step(int(action))
        frames.append(frame)
        infos.append(info)
    return np.stack(frames), infos


def side_by_side(env: gymnasium.Env, run: Demo, episode: Episode, dreamed: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
    """Pictures (T, height, width, 3): real, dreamed, and the map of both paths. The first shows the last frame of the context."""
    first, names = run.context_frames - 1, env.unwrapped.dream.world.inventory  # type: ignore[attr-defined]
    estimated = np.stack([info["estimated_pose"] for info in infos])
    paths = None if episode.pose is None else (episode.pose[: first + len(dreamed), :2], in_the_world(estimated, episode.pose[0]))
    ground = None if paths is None else ground_of(episode.extras.get("maze_layout"), np.concatenate(paths))
    pictures = []
    for step, frame in enumerate(dreamed):
        panels = {"real": episode.frames[first + step], "dream": frame}
        picture = labelled({name: enlarged(panel, run.scale) for name, panel in panels.items()}, f"step {step}")
        if paths is not None and ground is not None:
            picture = np.concatenate([picture, map_of(ground, paths[0][: first + step + 1], paths[1][: step + 1], picture.shape[0])], 1)
        if names:
            inventories = episode.inventory[first + step], infos[step]["inventory"]
            picture = np.concatenate([picture, carried(names, inventories, run.scale * frame.shape[1] + GAP, picture.shape[1])])
        pictures.append(picture)
    return np.stack(pictures)


def in_the_world(pose: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Positions (T, 2) in the world of poses (T, 4 or 6) that are seen from the pose `origin`, of the same size."""
    x, y, (cos, sin) = pose[:, 0], pose[:, 1], origin[2:4]
    return origin[:2] + np.stack([cos * x - sin * y, sin * x + cos * y], 1)


def labelled(panels: dict[str, np.ndarray], note: str) -> np.ndarray:
    """Panels in a row, each under its name; the note is at the right end."""
    height, width = next(iter(panels.values())).shape[:2]
    image = Image.new("RGB", (len(panels) * (width + GAP), height + HEADER), DARK)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for column, (name, panel) in enumerate(panels.items()):
        image.paste(Image.fromarray(panel), (column * (width + GAP), HEADER))
        draw.text((column * (width + GAP) + 4, 4), name, LIGHT, font)
    draw.text((image.width - GAP - 4, 4), note, LIGHT, font, anchor="ra")
    return np.asarray(image)


class Ground(NamedTuple):
    """What a map shows beneath the paths."""

    cells: np.ndarray  # (N, N), 0 where there is a wall; y points up
    corner: np.ndarray  # (2,) least x and y, world units
    size: float  # world units a side


def ground_of(layout: np.ndarray | None, paths: np.ndarray) -> Ground:
    """A maze, or the open ground around all positions (T, 2)."""
    if layout is not None:
        return Ground(layout, np.zeros(2), len(layout))
    low, high = paths.min(0) - 1, paths.max(0) + 1
    size = float((high - low).max())
    return Ground(np.ones((1, 1)), (low + high - size) / 2, size)


def map_of(ground: Ground, true: np.ndarray | None, estimated: np.ndarray, height: int) -> np.ndarray:
    """The ground from above with the true path, if there is one, the one estimated since the dream began, and both ends."""
    side = height - HEADER
    image = Image.new("RGB", (side, height), DARK)
    cells = Image.fromarray(np.where(ground.cells[::-1, :, None] > 0, FLOOR, WALL).astype(np.uint8))
    image.paste(cells.resize((side, side), Image.Resampling.NEAREST), (0, HEADER))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for path, colour in ((true, TRUE), (estimated, ESTIMATED)):
        if path is None:
            continue
        points = [(x, HEADER + side - y) for x, y in ((path - ground.corner) * side / ground.size).tolist()]
        draw.line(points, colour, 2)
        draw.circle(points[-1], 4, colour)
    if true is not None:
        draw.text((4, 4), "true path", TRUE, font)
    draw.text((side - 4, 4), "estimated path", ESTIMATED, font, anchor="ra")
    return np.asarray(image)


def carried(names: tuple[str, ...], inventories: tuple[np.ndarray, np.ndarray], panel: int, width: int) -> np.ndarray:
    """A strip `width` wide that tells under each of two panels, `panel` pixels wide, what is in its inventory."""
    image = Image.new("RGB", (width, 4 * LINE), DARK)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for column, inventory in enumerate(inventories):
        things = ", ".join(f"{int(count)} {name.replace('_', ' ')}" for name, count in zip(names, inventory, strict=True) if count)
        draw.text((column * panel + 4, 2), textwrap.fill(things or "nothing", panel // 6), LIGHT, font, spacing=2)
    return np.asarray(image)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Demo, description=__doc__))
