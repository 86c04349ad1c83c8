"""Train what reads a map of Memory Maze from latents (`lssvwm_gym.models.map_memory`), on recordings that tell where walls and balls are.

python -m experiments.maze_reader --data DIR/train DIR/blind/train --val DIR/val      runs/maze_reader/reader.safetensors, for `train heads`

Each frame's target is what can be seen from where it was taken: by a line of sight that is free, within the camera's view. Mirror
images double the recordings. Which colours walls have is fitted last, to a line of the decoded pictures.
Needs `pip install -e '.[agents,train]'`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from agents.maze_map import COLOURS
from agents.policies import as_json
from lssvwm_gym.data.episode import EpisodeError, episode_paths, read_arrays
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.map_memory import COLUMNS, KIND, RAYS, ROWS, GridPose, MapReader, MapReading, grid_pose, in_view
from lssvwm_gym.real_envs.experts.maze_seeker import visible_from
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.optim import mixed_precision

BALLS = ((0.773, 0.173, 0.136), (0.45, 0.773, 0.4), (0.177, 0.636, 0.986))  # their colours, as `target_color` tells them
HALF_VIEW = np.radians(42.0)  # of the camera, and what is cut by its edge
SIGHT = 6.5  # cells
FREE_POINTS = np.array([[0, 0], [0.3, 0], [-0.3, 0], [0, 0.3], [0, -0.3]])  # of a free cell: two of them in view, or the first
WALL_POINTS = np.array([[0, 0], [0.55, 0], [-0.55, 0], [0, 0.55], [0, -0.55]])  # before the faces of a wall: one in view
BALL_WEIGHT = 10.0  # of their loss, for they are few
HORIZON, BORDER = (28, 30), 3  # rows of a picture, and columns at its edges that show no wall
COLOUR_FRAMES, RIDGE = 20_000, 1e-3
DROPOUT = 0.1
PLACE_NOISE, HEADING_NOISE, LATENT_NOISE = 0.06, 0.04, 0.05  # cells, radians and latent units, as estimated poses and dreams have


@dataclass(frozen=True)
class Args:
    """What to learn from, and how long."""

    data: tuple[Path, ...]  # folders of recorded episodes of 9 x 9 mazes
    val: tuple[Path, ...] = ()  # folders of others, to say how well it reads
    out: Path = Path("runs/maze_reader")
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    mirrored: bool = True  # also learn from mirror images
    steps: int = 6000
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    report_every: int = 500  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, steps=1, batch=2, report_every=1)
        if not self.data:
            raise ValueError("data needs at least one folder of recorded episodes")


class Frames(NamedTuple):
    """Frames of many episodes, (T, ...); cells (11, 11) by x and y are those of the maze and a wall around it."""

    latent: Tensor  # (T, N, C) float16
    position: Tensor  # (T, 2) with the middles of cells at whole numbers
    heading: Tensor  # (T,) radians
    visible: Tensor  # (T, 11, 11) bool
    middle: Tensor  # (T, 11, 11) bool: the middle of a free cell is in view
    free: Tensor  # (T, 11, 11) bool
    balls: Tensor  # (T, colours, 11, 11) bool, those in view
    known: Tensor  # (T, colours) bool: where that ball is, is known
    wanted: Tensor  # (T,) int64
    mirrored: Tensor  # (T,) bool

    def rows(self, rows: Tensor) -> Frames:
        return Frames(*(part[rows] for part in self))


class Targets(NamedTuple):
    """What a reading should say."""

    visible: Tensor  # (B, rows, columns) float
    middle: Tensor
    free: Tensor
    balls: Tensor  # (B, colours, rows, columns)
    known: Tensor  # (B, colours) bool
    wanted: Tensor  # (B,)


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    dream = open_dream("memory-maze", "fast", "cpu")
    try:
        learned, held_out = frames_of(args, dream, args.data, args.mirrored), frames_of(args, dream, args.val, False)
    except EpisodeError as error:
        raise SystemExit(str(error)) from None
    if learned is None:
        raise SystemExit(f"no episode in {', '.join(map(str, args.data))}")
    reader, began = MapReader(dropout=DROPOUT), time.perf_counter()
    for step, loss in train(reader, args, learned):
        said = {} if held_out is None else score(reader, held_out)
        right = "  ".join(f"{name} {value:.3f}" for name, value in said.items())
        print(f"{step:,} of {args.steps:,} steps  {time.perf_counter() - began:.0f} s  loss {loss:.3f}  {right}", flush=True)
    off = fit_colours(reader, dream.weights.autoencoder, learned)
    print(f"colours of walls are off by {off:.3f}, of 1")
    path = args.out / "reader.safetensors"
    about = {"frames": len(learned.wanted), "val": said, "settings": as_json(args)}
    save_tensors(path, {name: tensor.half() for name, tensor in reader.state_dict().items()}, {"kind": KIND, "about": about})
    print(path)


def frames_of(args: Args, dream: Dream, folders: tuple[Path, ...], mirrored: bool) -> Frames | None:
    """All frames of some folders, and their mirror images; None where there are none."""
    parts = []
    for folder in folders:
        paths, cache = episode_paths(folder), args.latents or args.out / "latents"
        for mirror in (False, True)[: 1 + mirrored]:
            episodes = latent_episodes(folder, dream.weights.autoencoder, cache, mirrored=mirror)
            for path, episode in tqdm(list(zip(paths, episodes, strict=True)), desc=f"maps of {folder.name}", leave=False):
                parts.append(frames_of_episode(read_arrays(path), episode.latent, path, mirror))
    return Frames(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else None


def frames_of_episode(arrays: dict[str, np.ndarray], latent: Tensor, path: Path, mirrored: bool = False) -> Frames:
    """One episode's, from what its simulator told. Raises `EpisodeError` where that is missing."""
    walls = layout_of(arrays, path)
    free, position, heading = walls.T.numpy(), arrays["agent_pos"], arrays["agent_dir"]
    wanted, place = wanted_of(arrays), balls_of(arrays)
    see = functools.partial(visible_from, position, heading, free=free, half_view=HALF_VIEW, sight=SIGHT)
    visible, middle = cells_seen(position, heading, free)
    balls, known = np.zeros((len(position), COLOURS, *free.shape), bool), np.isfinite(place).all(1)
    for colour in np.flatnonzero(known):
        x, y = (int(number) + 1 for number in place[colour])
        balls[:, colour, y, x] = see(place[colour][None].astype(np.float32))[:, 0]
    pose = in_the_grid(arrays)
    every = len(position)
    return Frames(
        latent.half(),
        pose[:, :2],
        torch.atan2(pose[:, 3], pose[:, 2]),
        torch.from_numpy(visible).transpose(1, 2),
        torch.from_numpy(middle).transpose(1, 2),
        walls[None].expand(every, -1, -1),
        torch.from_numpy(balls).transpose(2, 3),
        torch.from_numpy(known)[None].expand(every, -1),
        torch.from_numpy(wanted),
        torch.full((every,), mirrored),
    )


def cells_seen(position: np.ndarray, heading: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which cells of a maze with a wall around it, `free` by y and x, are in view, and of which the middle is, from positions (T, 2) facing
    (T, 2), in the simulator's coordinates: bool (T, y, x)."""
    row, column = np.indices(free.shape)
    middle = np.stack([column, row], -1).reshape(-1, 1, 2) - 0.5
    points = (middle + np.where(free.reshape(-1, 1, 1), FREE_POINTS, WALL_POINTS)).reshape(-1, 2).astype(np.float32)
    seen = visible_from(position, heading, points, free, HALF_VIEW, SIGHT).reshape(len(position), -1, len(FREE_POINTS))
    count = seen.sum(-1)
    visible = np.where(free.ravel(), (count >= 2) | seen[..., 0], count >= 1)
    return visible.reshape(-1, *free.shape), seen[..., 0].reshape(-1, *free.shape)


def layout_of(arrays: dict[str, np.ndarray], path: Path) -> Tensor:
    """Which cells of the maze are free, and of a wall around it, bool (11, 11) by x and y. Raises `EpisodeError` where that is not told."""
    needed = ("agent_pos", "agent_dir", "target_color", "target_pos", "maze_layout")
    if missing := [name for name in needed if name not in arrays]:
        raise EpisodeError(f"{path}: a map is read from {', '.join(missing)}, which this episode lacks; collect it with this version")
    layout = arrays["maze_layout"] > 0
    if layout.shape != (9, 9):
        raise EpisodeError(f"{path}: a maze of {layout.shape} cells; maps are of 9 x 9")
    return torch.from_numpy(np.pad(layout, 1)).T


def in_the_grid(arrays: dict[str, np.ndarray]) -> Tensor:
    """The agent's poses, float32 (T, 4), with the middles of cells at whole numbers."""
    heading = np.arctan2(arrays["agent_dir"][:, 1], arrays["agent_dir"][:, 0])
    pose = np.concatenate([arrays["agent_pos"] - 0.5, np.stack([np.cos(heading), np.sin(heading)], 1)], 1)
    return torch.from_numpy(pose.astype(np.float32))


def wanted_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Which ball is wanted in each frame, (T,)."""
    wanted: np.ndarray = np.abs(arrays["target_color"][:, None] - np.array(BALLS)).sum(-1).argmin(1)
    return wanted


def balls_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Where each ball lies, (colours, 2), in the simulator's coordinates; NaN for one that is never wanted, where only those are told."""
    wanted, place = wanted_of(arrays), np.full((COLOURS, 2), np.nan)
    for colour in np.unique(wanted):
        place[colour] = arrays["target_pos"][wanted == colour][0]
    told: np.ndarray = arrays.get("targets_pos", place)
    return told


def targets(frames: Frames, noise: float) -> tuple[GridPose, Targets]:
    """Where the frames are believed to be, with so much noise, and what they should be read as."""
    position = frames.position + noise * PLACE_NOISE * torch.randn_like(frames.position)
    heading = frames.heading + noise * HEADING_NOISE * torch.randn_like(frames.heading)
    here = grid_pose(torch.cat([position, heading.cos()[:, None], heading.sin()[:, None]], 1))
    cells = in_view(here) + 1
    side = frames.free.shape[-1]
    inside, cells = ((cells >= 0) & (cells < side)).all(-1), cells.clamp(0, side - 1)
    number = cells[..., 0] * side + cells[..., 1]
    turn = frames.mirrored.view(-1, 1, 1)

    def window(maps: Tensor) -> Tensor:
        shown = (maps.flatten(1).gather(1, number) & inside).view(-1, ROWS, COLUMNS)
        return torch.where(turn, shown.flip(-1), shown).float()

    visible, middle, free = map(window, (frames.visible, frames.middle, frames.free))
    balls = torch.stack([window(maps) for maps in frames.balls.unbind(1)], 1)
    sign = torch.where(frames.mirrored, -1.0, 1.0)[:, None]
    rest = here.rest * torch.cat([torch.ones_like(sign), sign, torch.ones_like(sign), sign], 1)
    return here._replace(rest=rest), Targets(visible, middle, free, balls, frames.known, frames.wanted)


def reading_loss(reading: MapReading, target: Targets) -> Tensor:
    """Cross entropies, of cells summed over a frame: of what is in view; of free cells and walls there; of balls; of the colour."""
    entropy = F.binary_cross_entropy_with_logits
    visible, middle = (
        entropy(claimed, true, reduction="none").sum((1, 2)).mean()
        for claimed, true in ((reading.visible, target.visible), (reading.middle, target.middle))
    )
    free = (entropy(reading.free, target.free, reduction="none") * target.visible).sum((1, 2)).mean()
    balls = (entropy(reading.objects, target.balls, reduction="none").sum((2, 3)) * target.known).sum(1).mean()
    return visible + middle + free + BALL_WEIGHT * balls + F.cross_entropy(reading.wanted, target.wanted)


def train(reader: MapReader, args: Args, frames: Frames) -> Iterator[tuple[int, float]]:
    """Yields the step and the mean loss of the last ones, now and then and at the end."""
    optimizer = torch.optim.AdamW(reader.parameters(), args.learning_rate, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps + 1, pct_start=0.1)
    losses: list[Tensor] = []
    for step in tqdm(range(1, args.steps + 1), desc="reading", leave=False):
        reader.train()
        some = frames.rows(torch.randint(len(frames.wanted), (args.batch,)))
        here, target = targets(some, noise=1.0)
        latent = some.latent.float()
        with mixed_precision("auto"):
            reading = reader(latent + LATENT_NOISE * torch.randn_like(latent), here.rest)
        loss = reading_loss(MapReading(*(part.float() for part in reading)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % args.report_every == 0 or step == args.steps:
            yield step, torch.stack(losses).mean().item()
            losses.clear()


@torch.no_grad()
def fit_colours(reader: MapReader, autoencoder: Autoencoder, frames: Frames) -> float:
    """Ridge regression of the pictures' colours along `HORIZON`, where nothing but walls is seen; returns how far off it is, of 1."""
    some = frames.latent[torch.randperm(len(frames.latent))[:COLOUR_FRAMES]].float()
    line = torch.cat([autoencoder.decode(part)[:, slice(*HORIZON)].float().mean(1) / 255 for part in some.split(256)])
    columns = (torch.arange(reader.side * RAYS) + 0.5) / (reader.side * RAYS) * line.shape[1]
    colours = line[:, columns.long().clamp(BORDER, line.shape[1] - 1 - BORDER)].flatten(1)
    known = torch.cat([some.flatten(1), torch.ones(len(some), 1)], 1)
    square = known.T @ known + RIDGE * len(some) * torch.eye(known.shape[1])
    fitted = torch.linalg.solve(square, known.T @ colours)
    reader.colours.weight.copy_(fitted[:-1].T)
    reader.colours.bias.copy_(fitted[-1])
    return (known @ fitted - colours).square().mean().sqrt().item()


@torch.no_grad()
def score(reader: MapReader, frames: Frames) -> dict[str, float]:
    """Shares that are right: of cells in view or not; of those in view, free or not; of balls claimed, of balls in view; of colours."""
    reader.eval()
    sums: dict[str, list[Any]] = {name: [0.0, 0.0] for name in ("visible", "free", "balls_right", "balls_found", "wanted")}
    for rows in torch.arange(len(frames.wanted)).split(2048):
        some = frames.rows(rows)
        here, target = targets(some, noise=0.0)
        reading = reader(some.latent.float(), here.rest)
        seen, known = target.visible > 0, target.known[:, :, None, None]
        balls, claimed = target.balls > 0, (reading.objects > 0) & known
        for name, right, of in (
            ("visible", (reading.visible > 0) == seen, torch.ones_like(seen)),
            ("free", (reading.free > 0) == (target.free > 0), seen),
            ("balls_right", balls, claimed),
            ("balls_found", claimed, balls),
            ("wanted", reading.wanted.argmax(1) == target.wanted, torch.ones_like(target.wanted, dtype=torch.bool)),
        ):
            sums[name][0] += (right & of).sum().item()
            sums[name][1] += of.sum().item()
    return {name: right / max(of, 1) for name, (right, of) in sums.items()}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
