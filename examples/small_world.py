"""The paper's mechanism in a world small enough for one CPU core: block-wise scans recall what a sliding window has lost.

    python examples/small_world.py                            # every variant with two seeds, 10 to 15 minutes
    python examples/small_world.py --variants ours --seeds 0  # one of them, a minute

The world is a round wall, two tiles high and `columns` around. Each tile has one of eight colours, drawn anew in every episode, and
a number plate: one of `columns` lamps is lit. The camera sees 2 x 2 tiles and walks (one column) or runs (two) to either side. Which
colour comes into view next can only be remembered; where the camera is, it can read off the plates. The model gets frames and actions,
no poses, and has no spatial memory. A token is a tile and a latent its pixels, so no autoencoder is needed.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor

from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.diffusion import NoiseLevels, add_noise, denoising_loss, draw_noise_levels
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.optim import learning_rate, make_optimizer, mixed_precision, set_learning_rate

MOVES = (1, -1, 2, -2)  # columns that an action moves the camera by
ROW, COLUMN = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])  # of the view's tokens
COLOURS = 3  # numbers of a tile that are its colour, -1 or 1 each; the others are lamps
SINCE = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # frames since a tile was last in view; bins begin here


@dataclass(frozen=True)
class SmallWorld:
    """Which variants to train, how long, and how to test them."""

    variants: tuple[str, ...] = ("ours", "small-blocks", "one-block", "no-long-context", "sliding-window", "fast-decay")
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("demo/small_world")  # a JSON a variant and seed; what is there is kept
    columns: int = 9
    steps: int = 600  # of the optimiser
    batch: int = 4  # episodes a step, each begins with an empty state
    frames: int = 96  # of a training episode
    learning_rate: float = 6e-3
    test_frames: int = 512  # of a test episode: five times as long as any in training
    test_batch: int = 32


class Episodes(NamedTuple):
    """Random walls and walks along them."""

    latent: Tensor  # (B, T, 4, COLOURS + columns)
    action: Tensor  # (B, T) int64 that led to each frame, 4 where unknown
    since: Tensor  # (B, T, 4) int64 frames since the token's tile was last in view, 0 where never


def model_config(run: SmallWorld, variant: str) -> WorldModelConfig:
    """Two layers of scan, frame-local attention and MLP; within a few percent of the same number of weights for all variants."""
    rows, token, frame = (1, 2), (1, 1), (2, 2)  # a tile moves along its row of the view, so the standard is a block a row
    ours = WorldModelConfig(
        latent_channels=COLOURS + run.columns,
        grid=2,
        width=32,
        blocks=(rows, rows),
        heads=2,
        head_width=16,
        d_state=16,
        window=2,
        mlp=2,
        memory_features=0,  # no spatial memory
        actions=len(MOVES),
    )
    changes: dict[str, dict[str, Any]] = {
        "ours": {},
        "small-blocks": dict(blocks=(token, token)),
        "one-block": dict(blocks=(frame, frame)),
        "no-long-context": {},  # trained differently
        "sliding-window": dict(d_state=0, mlp=6, window=16),  # eight times ours
        "fast-decay": {},  # initialised differently
    }
    if variant not in changes:
        raise ValueError(f"no variant named {variant!r}; there are {', '.join(changes)}")
    return replace(ours, **changes[variant])


def walk(rng: np.random.Generator, frames: int, reach: int, dwell: int) -> tuple[list[int], list[int]]:
    """Positions and the actions that led there: on and on in one direction, then to and fro for up to `dwell` frames, and so on.

    The camera stays among `reach` positions.
    """
    position, action = [int(rng.integers(reach))], [len(MOVES)]
    planned: list[int] = []
    while len(position) < frames:
        if not planned:
            ahead, aside = rng.integers(len(MOVES), size=2).tolist()
            planned = [ahead] * int(rng.integers(1, 2 * min(reach, 15)))
            planned += [aside, aside ^ 1] * int(rng.integers(dwell // 2 + 1))
        move = planned.pop(0)
        if 0 <= position[-1] + MOVES[move] < reach:
            position.append(position[-1] + MOVES[move])
            action.append(move)
        else:
            planned = []
    return position, action


def draw_episodes(rng: np.random.Generator, batch: int, frames: int, columns: int, reach: int, dwell: int) -> Episodes:
    """Episodes on walls of their own."""
    walks = [walk(rng, frames, reach, dwell) for _ in range(batch)]
    position = np.array([position for position, _ in walks]) + rng.integers(columns, size=(batch, 1))
    wall = rng.choice([-1.0, 1.0], size=(batch, 2, columns, COLOURS))
    column = (position[..., None] + COLUMN) % columns  # (B, T, 4)
    lamps = (np.eye(columns)[column] - 1 / columns) / math.sqrt((1 - 1 / columns) / columns)  # a mean of 0, a variance of 1
    row = np.arange(batch)[:, None]
    latent = np.concatenate([wall[row[..., None], ROW, column], lamps], -1)
    last, since = np.full((batch, 2, columns), -1), np.zeros(column.shape, int)
    for t in range(frames):
        before = last[row, ROW, column[:, t]]
        since[:, t] = np.where(before < 0, 0, t - before)
        last[row, ROW, column[:, t]] = t
    return Episodes(torch.from_numpy(latent).float(), torch.tensor([action for _, action in walks]), torch.from_numpy(since))


def make_model(run: SmallWorld, variant: str) -> WorldModel:
    """A new model whose scans forget slowly, by half in 40 to 1,500 frames: Mamba-2's own decays are far too fast to learn from here."""
    model = WorldModel(model_config(run, variant))
    for scan in (module for module in model.modules() if isinstance(module, BlockScan) and variant != "fast-decay"):
        tokens = scan.block[0] * scan.block[1]  # a frame adds so many tokens to a block's sequence
        scan.A_log.data = (torch.logspace(-2.65, -1.05, scan.heads) / tokens).log()
        scan.dt_bias.data.fill_(math.log(math.expm1(0.2)))
    return model


def denoise(
    model: WorldModel, episodes: Episodes, noisy: Tensor, level: Tensor, read_only: tuple[bool, ...] | None, copies: int = 1
) -> Tensor:
    """The model's estimate of every frame of `noisy` (B, copies * T, 4, C) at levels of that many frames, from an empty state."""
    batch, frames = level.shape
    action, none = episodes.action.repeat_interleave(copies, 1), torch.zeros(batch, frames, 4)
    inputs = FrameInputs(level, action, pose=none, motion=none[..., :3], pose_known=none[..., 0], inventory=none[..., :0])
    with mixed_precision("auto"):
        return model(noisy, inputs, model.initial_state(batch), read_only).clean.float()


def predict(model: WorldModel, episodes: Episodes, generator: torch.Generator) -> Tensor:
    """Every frame (B, T, 4, C) from pure noise, its action and the clean frames before it; that it was predicted leaves no trace."""
    noise = torch.randn(episodes.latent.shape, generator=generator)
    both = torch.stack([noise, episodes.latent], 2).flatten(1, 2)  # in turn: read only, committed
    level = torch.tensor([1.0, 0.0]).repeat(noise.shape[1]).expand(len(noise), -1)
    return denoise(model, episodes, both, level, (True, False) * noise.shape[1], copies=2)[:, ::2]


def training_loss(model: WorldModel, episodes: Episodes, generator: torch.Generator, long_context: bool) -> Tensor:
    """With long contexts every frame is predicted from a clean past; without, every frame has a noise level of its own."""
    clean = episodes.latent
    metric = torch.eye(clean[0, 0].numel())
    if long_context:
        return denoising_loss(predict(model, episodes, generator), clean, torch.ones(clean.shape[:2]), metric)
    level = draw_noise_levels(len(clean), clean.shape[1], NoiseLevels(prefix=0.0), generator)
    noisy = add_noise(clean, torch.randn(clean.shape, generator=generator), level)
    return denoising_loss(denoise(model, episodes, noisy, level, None), clean, level, metric)


def train(run: SmallWorld, variant: str, seed: int) -> WorldModel:
    """Train a variant: during the first half on short episodes whose walks reach further and further, then on long ones all around."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = make_model(run, variant)
    optimizers = make_optimizer(model, muon=True)[:-1]  # the last one is the odometry head's, which nothing here uses
    for step in range(run.steps):
        share = 2 * step / run.steps
        if share < 1:
            episodes = draw_episodes(rng, 2 * run.batch, run.frames // 2, run.columns, 3 + int(share * (run.columns - 3)), dwell=12)
        else:
            episodes = draw_episodes(rng, run.batch, run.frames, run.columns, 10**6, dwell=run.frames // 2)
        loss = training_loss(model, episodes, generator, variant != "no-long-context")
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate(step, run.steps, run.learning_rate, warmup=30, decay=0.35))
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 50 == 0:
            print(f"{variant}, seed {seed}, step {step}: loss {loss.item():.3f}", flush=True)
    return model


@torch.no_grad()
def recall(run: SmallWorld, model: WorldModel) -> dict[int, float]:
    """Share of tiles whose colour is predicted right, by the first of SINCE's bins of frames since they were in view; 0: never seen.

    Chance is 1/8. The walls and walks are the same for all variants and seeds, and none of those in training.
    """
    episodes = draw_episodes(np.random.default_rng(10**6), run.test_batch, run.test_frames, run.columns, 10**6, run.test_frames // 2)
    estimate = predict(model, episodes, torch.Generator().manual_seed(10**6))[..., :COLOURS]
    right = (estimate.sign() == episodes.latent[..., :COLOURS]).all(-1)
    edges = (0, *SINCE, run.test_frames)
    bins = {low: (episodes.since >= low) & (episodes.since < high) for low, high in itertools.pairwise(edges)}
    return {low: right[tiles].float().mean().item() for low, tiles in bins.items() if tiles.any()}


def main(run: SmallWorld) -> None:
    torch.set_num_threads(1)
    run.out.mkdir(parents=True, exist_ok=True)
    for seed in run.seeds:
        for variant in run.variants:
            path = run.out / f"{variant}-{seed}.json"
            if not path.exists():
                began = time.process_time()
                model = train(run, variant, seed)
                seconds = time.process_time() - began
                weights = sum(weight.numel() for weight in model.layers.parameters())
                scores = {"variant": variant, "seed": seed, "seconds": round(seconds, 1), "weights": weights, "recall": recall(run, model)}
                path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
            scores = json.loads(path.read_text(encoding="utf-8"))
            line = "  ".join(f"{since}: {share:.0%}" for since, share in scores["recall"].items())
            print(
                f"{variant}, seed {seed}, {scores['seconds']} s of processor time; colours right by frames since seen: {line}", flush=True
            )


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(SmallWorld, description=__doc__))
