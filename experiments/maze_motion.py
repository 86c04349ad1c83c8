"""Train how an agent moves among walls that are known (`MapMotionHead` of `lssvwm_gym.models.motion_heads`), on recordings that tell them.

python -m experiments.maze_motion --data DIR/train DIR/blind/train --val DIR/val     runs/maze_motion/motions.safetensors, for `train heads`

Poses and walls are the simulator's, so what is learned is its physics: how the agent coasts, stops, slides, and is turned by a touch.
Players that look touch walls once in a hundred steps, those that don't in most: of each kind as many are drawn, touching or not.
Mirror images make two of each step. A few minutes of one core. Needs `pip install -e '.[memory-maze,train]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from agents.policies import as_json
from experiments.dagger import MIRRORED
from experiments.maze_reader import in_the_grid, layout_of
from lssvwm_gym.data.episode import EpisodeError, episode_paths, read_arrays
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.collisions import held
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import motion_between, turned
from lssvwm_gym.models.map_layout import around
from lssvwm_gym.models.map_memory import SIDE, SURE, grid_pose
from lssvwm_gym.models.motion_heads import KIND, MapMotionHead
from lssvwm_gym.models.state import join_rows, take_rows, where_rows

SIGNS = torch.tensor([1.0, -1.0, -1.0])  # of a motion and its mirror image
TOUCH = 0.06  # cells from a wall within which a step counts as touching it
SHARES = {"touching, looks": 0.375, "touching, blind": 0.375, "free, looks": 0.125, "free, blind": 0.125}  # of the steps learned from
LOOKS = 0.2  # players of which a smaller share of the steps touches a wall look where they go
UNKNOWN = 0.02  # share of steps whose last action isn't told


@dataclass(frozen=True)
class Args:
    """What to learn from, and how long."""

    data: tuple[Path, ...]  # folders of recorded episodes of 9 x 9 mazes
    val: tuple[Path, ...] = ()  # folders of others, to say how wrong motions are
    out: Path = Path("runs/maze_motion")
    steps: int = 30_000
    batch: int = 512
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, steps=1, batch=8)
        if not self.data:
            raise ValueError("data needs at least one folder of recorded episodes")


class Steps(NamedTuple):
    """Steps of recordings, (K, ...)."""

    around: Tensor  # (K, AROUND) of the frame before
    last_motion: Tensor  # (K, 3)
    last_action: Tensor  # (K,) int64
    action: Tensor  # (K,) int64
    motion: Tensor  # (K, 3) that it led to
    touching: Tensor  # (K,) bool, whether a wall is near before or after


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    head = MapMotionHead(WorldModelConfig())  # whose actions and scale of motion are those of the maze
    try:
        learned, held_out = steps_of(args.data), {str(folder): join_rows(steps_of((folder,))) for folder in args.val}
    except EpisodeError as error:
        raise SystemExit(str(error)) from None
    train(head, args, learned)
    said = {f"{folder}, {kind}": errors for folder, steps in held_out.items() for kind, errors in score(head, steps).items()}
    for name, (ahead, aside, turn) in said.items():
        print(f"{name}: off by {ahead:.4f} ahead, {aside:.4f} aside, {turn:.4f} in turns")
    path = args.out / "motions.safetensors"
    about = {"steps": sum(len(part.action) for part in learned), "val": said, "settings": as_json(args)}
    save_tensors(path, head.state_dict(), {"kind": KIND, "about": about})
    print(path)


def steps_of(folders: tuple[Path, ...]) -> list[Steps]:
    """All steps of some folders, an episode each."""
    paths = [path for folder in folders for path in episode_paths(folder)]
    return [_steps(path) for path in tqdm(paths, desc="recordings", leave=False)]


def _steps(path: Path) -> Steps:
    arrays = read_arrays(path)
    pose, walls, first = in_the_grid(arrays), layout_of(arrays, path), SIDE // 2 - 1  # the wall around the maze begins there
    cells = torch.full((1, 1, SIDE, SIDE), -2 * SURE)
    cells[0, 0, first : first + len(walls), first : first + len(walls)] = 2 * SURE * (2.0 * walls - 1)
    action, motion = torch.from_numpy(arrays["action"].astype(np.int64)), motion_between(pose[:-1], pose[1:])
    here = pose[2:-1]
    maps = cells.expand(len(here), -1, -1, -1)
    after = here[:, :2] + turned(motion[2:, :2], torch.atan2(here[:, 3], here[:, 2]))
    touching = torch.stack([_near(maps[:, 0], place) for place in (here[:, :2], after)]).any(0)
    return Steps(around(maps, grid_pose(here)), motion[1:-1], action[2:-1], action[3:], motion[2:], touching)


def _near(free: Tensor, place: Tensor) -> Tensor:
    sides = TOUCH * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    return torch.stack([(held(free, place, place + side) - place - side).norm(dim=1) > 1e-4 for side in sides]).any(0)


def pools(parts: list[Steps]) -> dict[str, Steps]:
    """The steps of each kind of `SHARES` of which there are any."""
    found: dict[str, list[Steps]] = {name: [] for name in SHARES}
    for steps in parts:
        player = "looks" if steps.touching.float().mean() < LOOKS else "blind"
        for name, chosen in (("touching", steps.touching), ("free", ~steps.touching)):
            found[f"{name}, {player}"].append(take_rows(steps, chosen))
    return {name: join_rows(some) for name, some in found.items() if sum(len(part.action) for part in some)}


def train(head: MapMotionHead, args: Args, parts: list[Steps]) -> None:
    """Teaches the head in place."""
    kinds = pools(parts)
    counts = {name: max(1, round(args.batch * SHARES[name])) for name in kinds}
    optimizer = torch.optim.AdamW(head.parameters(), args.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps + 1)
    bar = tqdm(range(args.steps), desc="motions", leave=False)
    for step in bar:
        rows = {name: torch.randint(len(kinds[name].action), (count,)) for name, count in counts.items()}
        some = mirrored(join_rows([take_rows(kinds[name], rows[name]) for name in rows]))
        last = torch.where(torch.rand(len(some.action)) < UNKNOWN, len(MIRRORED), some.last_action)
        said = head(some.around, some.last_motion, last, some.action)
        loss = F.smooth_l1_loss(said / head.motion_scale, some.motion / head.motion_scale, beta=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")


def mirrored(steps: Steps) -> Steps:
    """Half of the steps as a mirror shows them."""
    cells, place, heading = steps.around.split((9, 2, 2), 1)
    seen = torch.cat([cells.unflatten(1, (3, 3)).flip(2).flatten(1), place * SIGNS[:2], heading * SIGNS[:2]], 1)
    image = torch.from_numpy(MIRRORED)
    other = Steps(seen, steps.last_motion * SIGNS, image[steps.last_action], image[steps.action], steps.motion * SIGNS, steps.touching)
    return where_rows(torch.rand(len(seen)) < 0.5, other, steps)


@torch.no_grad()
def score(head: MapMotionHead, steps: Steps) -> dict[str, list[float]]:
    """By how much motions are off, in cells ahead and aside and in radians: means over the steps that touch walls, and over the others."""
    off = (head(steps.around, steps.last_motion, steps.last_action, steps.action) - steps.motion).abs()
    kinds = {"touching": steps.touching, "free": ~steps.touching}
    return {name: off[chosen].mean(0).tolist() for name, chosen in kinds.items() if chosen.any()}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
