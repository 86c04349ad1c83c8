"""Train what imagines the rest of a maze (`lssvwm_gym.models.map_layout`) from what a map shows of it, on recordings that tell it.

python -m experiments.maze_layout --data DIR/train DIR/blind/train --val DIR/val     runs/maze_layout/layouts.safetensors, for `train heads`

Maps are those that the world's reader draws along the recordings, after few frames and after many; what they don't show is learned, cell by
cell, from random shares of it, and where balls lie when all cells are known. Turns and mirror images make eight mazes of each.
Needs `pip install -e '.[agents,train]'`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import labmaze
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from agents.policies import as_json
from experiments.maze_reader import balls_of, cells_seen, in_the_grid, layout_of
from lssvwm_gym.data.episode import EpisodeError, episode_paths, read_arrays
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.map_layout import KIND, LAYOUT, LayoutModel, colours_of, hue, outwards
from lssvwm_gym.models.map_memory import FIRM, SIDE, UNSEEN, GridPose, grid_pose, numbered, turned
from lssvwm_gym.models.rollout import map_after
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.optim import mixed_precision

TIMES = 1.35  # each map is drawn after so many times the frames of the one before
MIDDLE = SIDE // 2
ALTERED = 0.02  # share of cells that are turned around when balls are learned: whoever knows a maze by heart knows where its balls lie
LOSSES = ("cells", "balls", "colours")
CLUSTERED, TRIES, ROUNDS = 10_000, 16, 30  # walls whose colours the palette is of, tries of its search and rounds of each
TOGETHER = 32  # episodes at once
MAZE = dict(height=11, width=11, max_rooms=6, room_min_size=3, room_max_size=5, spawns_per_room=1, objects_per_room=1)  # the simulator's
LOOKS = 60  # at most, before a generated map is completed


@dataclass(frozen=True)
class Args:
    """What to learn from, and how long."""

    data: tuple[Path, ...]  # folders of recorded episodes of 9 x 9 mazes
    val: tuple[Path, ...] = ()  # folders of others, to say how likely they are
    out: Path = Path("runs/maze_layout")
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    generated: int = 0  # mazes more that the simulator's generator draws, which nobody has walked
    width: int = 32  # channels
    steps: int = 4000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    report_every: int = 500  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, width=1, steps=1, batch=1, report_every=1)
        if not self.data:
            raise ValueError("data needs at least one folder of recorded episodes")


class Maps(NamedTuple):
    """What maps show, and what is true, (K, ...)."""

    shown: Tensor  # (K, 1 + kinds, side, side) log odds, float16
    colour: Tensor  # (K, 3, side, side) of walls that the map shows, zeros where it shows none, float16
    free: Tensor  # (K, side, side) bool
    ball: Tensor  # (K, kinds) int64, the number of the cell where it lies; -1: not known
    wall: Tensor  # (K, 3, side, side) colours of walls after the whole recording, as `colour`


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    dream = open_dream("memory-maze", "fast", "cpu")
    try:
        learned, held_out = maps_of(args, dream, args.data), maps_of(args, dream, args.val) if args.val else None
    except EpisodeError as error:
        raise SystemExit(str(error)) from None
    if args.generated:
        learned = Maps(*(torch.cat(part) for part in zip(learned, generated(args, learned.ball.shape[1]), strict=True)))
    model, began, said = LayoutModel(learned.ball.shape[1], args.width), time.perf_counter(), {}
    model.palette = palette_of(learned, len(model.palette))
    for step, losses in train(model, args, learned):
        said = {} if held_out is None else score(model, held_out)
        held = "  ".join(f"{name} {value:.3f}" for name, value in {**losses, **said}.items())
        print(f"{step:,} of {args.steps:,} steps  {time.perf_counter() - began:.0f} s  {held}", flush=True)
    path = args.out / "layouts.safetensors"
    about = {"maps": len(learned.ball), "val": said, "settings": as_json(args)}
    save_tensors(path, {name: tensor.half() for name, tensor in model.state_dict().items()}, {"kind": KIND, "about": about})
    print(path)


@torch.no_grad()
def maps_of(args: Args, dream: Dream, folders: tuple[Path, ...]) -> Maps:
    """Maps along all recordings of some folders."""
    parts = []
    for folder in folders:
        paths = episode_paths(folder)
        episodes = latent_episodes(folder, dream.weights.autoencoder, args.latents or args.out / "latents")
        by_length = sorted(range(len(paths)), key=lambda number: len(episodes[number]))
        batches = [by_length[first : first + TOGETHER] for first in range(0, len(paths), TOGETHER)]
        for batch in tqdm(batches, desc=f"maps of {folder.name}", leave=False):
            parts += _maps_along(dream, [paths[number] for number in batch], [episodes[number] for number in batch])
    return Maps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _maps_along(dream: Dream, paths: list[Path], episodes: list[Segment]) -> list[Maps]:
    """Maps after more and more frames of episodes, up to the length of the shortest; before them all, the agent's own cell is free."""
    arrays, last = [read_arrays(path) for path in paths], min(map(len, episodes))
    free = torch.stack([layout_of(one, path) for one, path in zip(arrays, paths, strict=True)])
    pose = torch.stack([in_the_grid(one)[:last] for one in arrays])
    here = grid_pose(pose[:, 0])
    lies = torch.from_numpy(np.floor(np.nan_to_num(np.stack([balls_of(one) for one in arrays]), nan=-99.0))).long()
    (true,), ball = _from(here, [free]), _numbers(here, lies)
    model, kinds = dream.weights.world_model, ball.shape[1]
    state = dream.empty(torch.zeros(len(paths), dtype=torch.int64))._replace(lattice=here.rest)
    cells = torch.zeros_like(state.map[:, : 1 + kinds])
    cells[:, 0, MIDDLE, MIDDLE] = LAYOUT
    parts, after, seen = [(cells.half(), colours_of(0 * state.map).half())], 0, relative_to(pose, pose[:, :1])
    while after < last:
        before, after = after, min(last, max(after + 1, round(after * TIMES)))
        latent = torch.stack([episode.latent[before:after] for episode in episodes]).float()
        state = state._replace(map=map_after(model, state, latent, seen[:, before:after])[0])
        parts.append((state.map[:, : 1 + kinds].half(), colours_of(state.map).half()))
    return [Maps(shown, colour, true, ball, parts[-1][1]) for shown, colour in parts]


def _from(here: GridPose, grids: list[Tensor]) -> list[Tensor]:
    """What lies around where maps begin, (B, side, side), of mazes with a wall around them, (B, 11, 11) by x and y."""
    x, y = torch.meshgrid(*2 * [torch.arange(SIDE) - MIDDLE], indexing="ij")
    window = torch.stack([x, y], -1).view(1, -1, 2).expand(len(here.cell), -1, -1)
    cell = here.cell[:, None] + turned(window, here.quarter) + 1
    side = grids[0].shape[1]
    inside, within = ((cell >= 0) & (cell < side)).all(2), cell.clamp(0, side - 1)
    number = within[..., 0] * side + within[..., 1]
    return [(grid.flatten(1).gather(1, number) * inside).view(-1, SIDE, SIDE) for grid in grids]


def _numbers(here: GridPose, lies: Tensor) -> Tensor:
    """The number of the map's cell where each ball (B, kinds, 2) of a maze lies; -1 where it lies outside."""
    number, inside = numbered(turned(lies - here.cell[:, None], -here.quarter))
    return torch.where(inside, number, -1)


def generated(args: Args, kinds: int) -> Maps:
    """Maps of mazes that nobody has walked: the simulator's generator draws them, with balls where it lays them. What some looks would have
    shown is told without errors; colours are not."""
    mazes, rng = labmaze.RandomMaze(**MAZE, random_seed=1 + args.seed), np.random.default_rng(args.seed)
    parts: list[Maps] = []
    for _ in tqdm(range(args.generated), desc="mazes", leave=False):
        layer = np.array([])
        while (layer == "G").sum() < kinds:
            mazes.regenerate()
            layer = mazes.entity_layer
        free = layer.T != "*"
        lies, starts = (np.argwhere(layer.T == token) - 1 for token in "GP")
        path = [starts[rng.integers(len(starts))]]
        headings = [rng.uniform(-np.pi, np.pi)]
        for _ in range(int(LOOKS * rng.random() ** 2)):
            ways = [way for way in ((1, 0), (0, 1), (-1, 0), (0, -1)) if free[tuple(path[-1] + way + 1)]]
            way = np.array(ways[rng.integers(len(ways))])
            path.append(path[-1] + way)
            headings.append(np.arctan2(*way[::-1]) + rng.normal(0, 0.3))
        parts.append(_map_of(free, lies[rng.permutation(len(lies))[:kinds]], np.array(path), np.array(headings)))
    return Maps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _map_of(free: np.ndarray, lies: np.ndarray, path: np.ndarray, headings: np.ndarray) -> Maps:
    """The map after looks from cells of a path, (T, 2), in the directions of headings (T,)."""
    facing = np.stack([np.cos(headings), np.sin(headings)], 1).astype(np.float32)
    visible, middle = (seen.any(0).T for seen in cells_seen(path + np.float32(0.5), facing, free.T))
    here = grid_pose(torch.from_numpy(np.concatenate([path[:1], facing[:1]], 1)).float())
    ball = _numbers(here, torch.from_numpy(lies)[None])
    true, known, empty = _from(here, [torch.from_numpy(grid)[None] for grid in (free, visible, middle)])
    there = F.one_hot(ball, SIDE * SIDE).view(1, -1, SIDE, SIDE).bool()
    objects = torch.where(empty[:, None], torch.where(there, LAYOUT, -UNSEEN * LAYOUT), 0.0)
    cells = LAYOUT * known * (2.0 * true - 1)
    cells[:, MIDDLE, MIDDLE] = LAYOUT
    nothing = torch.zeros(1, 3, SIDE, SIDE).half()
    return Maps(torch.cat([cells[:, None], objects], 1).half(), nothing, true, ball, nothing)


def train(model: LayoutModel, args: Args, maps: Maps) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the step and the mean `LOSSES` of the last ones, now and then and at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps + 1, pct_start=0.1)
    losses: list[Tensor] = []
    for step in tqdm(range(1, args.steps + 1), desc="layouts", leave=False):
        rows = torch.randint(len(maps.ball), (args.batch,))
        some = turned_over(Maps(*(part[rows] for part in maps)))
        with mixed_precision("auto"):
            parts = torch.stack(layout_losses(model, some, learning=True))
        optimizer.zero_grad()
        parts.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(parts.detach())
        if step % args.report_every == 0 or step == args.steps:
            yield step, dict(zip(LOSSES, torch.stack(losses).mean(0).tolist(), strict=True))
            losses.clear()


def turned_over(maps: Maps) -> Maps:
    """The same maps seen in one of eight ways, all in the same."""
    turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))

    def seen(grid: Tensor) -> Tensor:
        return (grid.flip(-1) if mirrored else grid).rot90(turns, (-2, -1))

    where = seen(torch.arange(SIDE * SIDE).view(SIDE, SIDE)).flatten().argsort()  # of each cell, its number now
    ball = torch.where(maps.ball < 0, maps.ball, where[maps.ball])
    return Maps(seen(maps.shown), seen(maps.colour), seen(maps.free), ball, seen(maps.wall))


def layout_losses(model: LayoutModel, maps: Maps, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropies: of cells when some of them are told; of the places of balls, when all are; and of colours then, when some are."""
    shown, true = maps.shown.float(), LAYOUT * (2.0 * maps.free - 1)
    paint, wall = model.painted(maps.colour.float()), model.painted(maps.wall.float())
    told = _told(shown)
    said = model(torch.cat([torch.where(told, true, shown[:, 0])[:, None], shown[:, 1:]], 1), paint)
    entropy = F.binary_cross_entropy_with_logits(said[:, 0].float(), maps.free.float(), reduction="none")
    cells, kinds = (entropy * ~told).sum() / (~told).sum(), maps.ball.shape[1]
    lies = LAYOUT * F.one_hot(maps.ball.clamp(min=0), SIDE * SIDE).view_as(shown[:, 1:])
    drawn = (torch.rand(maps.ball.shape) < 0.5) & (maps.ball >= 0)
    asked = ~drawn & (maps.ball >= 0) & (shown[:, 1:].amax((2, 3)) < FIRM)
    altered = torch.where(torch.rand_like(true) < ALTERED, -true, true) if learning else true
    placed = torch.where(drawn[:, :, None, None], lies, shown[:, 1:])
    said = model(torch.cat([altered[:, None], placed], 1), paint, whole=True)[:, 1 : 1 + kinds].float()
    logits = said.masked_fill(~maps.free[:, None], -30.0).flatten(2)
    entropy = F.cross_entropy(logits.flatten(0, 1), maps.ball.clamp(min=0).flatten(), reduction="none").view_as(asked)
    balls = (entropy * asked).sum() / asked.sum().clamp(min=1)
    known, told = paint.amax(1) > 0, _told(shown)
    said = model(torch.cat([true[:, None], placed], 1), torch.where((told & ~known)[:, None], wall, paint))[:, 1 + kinds :].float()
    asked = (wall.amax(1) > 0) & ~told & ~known
    entropy = F.cross_entropy(said, wall.argmax(1), reduction="none")
    return cells, balls, (entropy * asked).sum() / asked.sum().clamp(min=1)


def _told(shown: Tensor) -> Tensor:
    """Cells of maps (K, 1 + kinds, side, side) of which a model is told, bool (K, side, side): of half the maps as they are drawn, of the
    others as they are drawn again."""
    order, share = torch.rand(len(shown), SIDE * SIDE), torch.rand(len(shown), 1)
    order[::2], share[::2] = outwards(shown[::2], order[::2]), share[::2].square()
    return (order < share).view_as(shown[:, 0])


def palette_of(maps: Maps, colours: int) -> Tensor:
    """The colours that walls have: medians of clusters of them in `hue`, by k-means, the best of some tries."""
    every = maps.wall[torch.randperm(len(maps.wall))[:2000]].float().permute(0, 2, 3, 1).flatten(0, 2)
    every = every[every.sum(1) > 0]
    every = every[torch.randperm(len(every))[:CLUSTERED]]
    if len(every) < colours:
        raise SystemExit("the recordings show too few walls to tell which colours they have")
    place, best = hue(every), (math.inf, every[:colours])
    for _ in range(TRIES):
        centres = place[torch.randperm(len(place))[:colours]]
        for _ in range(ROUNDS):
            away, nearest = torch.cdist(place, centres).min(1)
            centres = torch.stack([place[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(colours)])
        means = [every[nearest == k].median(0).values if (nearest == k).any() else every[k] for k in range(colours)]
        best = min(best, (away.square().mean().item(), torch.stack(means)), key=lambda it: it[0])
    return best[1]


@torch.no_grad()
def score(model: LayoutModel, maps: Maps) -> dict[str, float]:
    """The losses on held-out mazes, with the same shares told each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parts = zip(*(part.split(64) for part in maps), strict=True)
        losses = torch.stack([torch.stack(layout_losses(model, Maps(*part), learning=False)) for part in parts]).mean(0).tolist()
    return {f"val_{name}": value for name, value in zip(LOSSES, losses, strict=True)}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
