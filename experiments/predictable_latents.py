"""Train an autoencoder on until its latents can be predicted: of small things that move, a world model then loses fewer.

python -m experiments.predictable_latents --start runs/autoencoder/autoencoder.safetensors --data data/train --out runs/predictable

An autoencoder that is trained on pictures alone may write where a ball is in any code, such as one that is another altogether a pixel
further on. Here a small network predicts each latent from those of the three frames before it and the last two actions, and encoder and
network learn together that it is right, beside the reconstruction (Embed to Control, arXiv 1506.07365, asks for linear dynamics in the
same way). The network is thrown away. World models of the old latents have to learn anew: `lssvwm-gym train world --start`.
Needs `pip install -e '.[train]'`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import load_autoencoder
from lssvwm_gym.data.episode import EpisodeError, episode_paths, fingerprint, read_episode
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.io.tensors import save_tensors
from lssvwm_gym.models.autoencoder import AutoencoderConfig
from lssvwm_gym.training.autoencoder import reconstruction_loss, set_latent_scale
from lssvwm_gym.training.distributed import ShardedRNG
from lssvwm_gym.training.optim import mixed_precision, update_average

PAST, ACTIONS = 3, 2  # frames and actions that a latent is predicted from
WIDTH, BLOCKS = 1024, 3  # of the network
LEAST_DEVIATION = 0.05  # of a channel, by which its errors are divided


@dataclass(frozen=True)
class Args:
    """What to train on, and how long."""

    start: Path  # autoencoder.safetensors or a folder of weights
    data: tuple[Path, ...]  # folders of episodes
    out: Path = Path("runs/predictable_latents")  # folder for autoencoder.safetensors
    predicted: float = 0.1  # weight of the prediction's error beside the reconstruction's
    emphasis: float = 4.0  # as in `lssvwm-gym train autoencoder`
    steps: int = 1500
    clips: int = 24  # of four frames, a step
    learning_rate: float = 5e-4  # twice that for the network
    noise: float = 0.05  # on latents that are predicted from, in standard deviations
    average: float = 0.998  # decay of the moving average of the weights, which is saved
    precision: str = "auto"
    seed: int = 0
    threads: int = 0  # 0: leave it to torch

    def __post_init__(self) -> None:
        check_bounds(self, steps=1, clips=1, predicted=0, emphasis=0)
        if not self.data:
            raise ValueError("data needs at least one folder of episodes")


@dataclass(frozen=True)
class Recordings:
    """Episodes laid end to end."""

    frames: Tensor  # (T, height, width, 3) uint8
    action: Tensor  # (T, A) float32 that led to each: numbers, or 1 at the one that was taken
    starts: Tensor  # (K,) int64 of clips that lie within an episode


class Predictor(nn.Module):
    """Predicts latents (B, n) from those before, (B, `PAST`, n), and actions (B, `ACTIONS`, A), as a change of the last one."""

    def __init__(self, numbers: int, actions: int, width: int = WIDTH) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(PAST * numbers + ACTIONS * actions, width), nn.Linear(width, numbers)
        layers = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(BLOCKS))
        self.blocks = nn.ModuleList(layers)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        x = self.into(torch.cat([latents.flatten(1), actions.flatten(1)], 1))
        for block in self.blocks:
            x = x + block(x)
        return latents[:, -1] + self.out(x)


def main(args: Args) -> Path:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = load_autoencoder(args.start).requires_grad_(True)
    try:
        recordings = read_recordings(args.data)
    except EpisodeError as error:
        raise SystemExit(str(error)) from None
    average, config = copy.deepcopy(model), model.config
    predictor = Predictor(config.tokens * config.latent_channels, recordings.action.shape[1])
    rates = [args.learning_rate, 2 * args.learning_rate]
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip((model, predictor), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=args.steps + 1, pct_start=0.1)
    rng = ShardedRNG(torch.Generator().manual_seed(args.seed))
    bar = tqdm(range(args.steps), unit="step")
    for step in bar:
        first = recordings.starts[torch.randint(len(recordings.starts), (args.clips,))]
        clips = first[:, None] + torch.arange(PAST + 1)
        frames, actions = recordings.frames[clips].flatten(0, 1), recordings.action[clips[:, -ACTIONS:]]
        with mixed_precision(args.precision):
            loss, square = reconstruction_loss(model, frames, rng, args.emphasis)
            missed = prediction_error(predictor, normalised(model.bounded_latent(frames).float()), actions, args.noise)
        (loss + args.predicted * missed).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        update_average(average, model, step, args.average)
        if step % 50 == 0:
            bar.set_postfix(missed=f"{missed.item():.3f}", psnr=f"{-10 * np.log10(square.item() / 4):.2f}", refresh=False)
    set_latent_scale(average, recordings.frames[:: max(1, len(recordings.frames) // 5000)])
    path = args.out / "autoencoder.safetensors"
    save_tensors(path, average.state_dict(), header(config, args.steps, args.data))
    print(path)
    return path


def header(config: AutoencoderConfig, steps: int, data: Sequence[Path]) -> dict[str, object]:
    """As `train_autoencoder` writes it."""
    return {"config": asdict(config), "steps": steps, "data": {folder.name: fingerprint(folder) for folder in data}}


def read_recordings(folders: Sequence[Path]) -> Recordings:
    """All episodes of some folders. Raises `EpisodeError` where none is long enough."""
    frames, actions, starts, begun = [], [], list[Tensor](), 0
    for path in tqdm([path for folder in folders for path in episode_paths(folder)], desc="reading", leave=False):
        episode = read_episode(path)
        frames.append(torch.from_numpy(episode.frames))
        actions.append(torch.from_numpy(episode.action))
        starts.append(torch.arange(begun, begun + max(0, len(episode) - PAST)))
        begun += len(episode)
    if not sum(map(len, starts)):
        raise EpisodeError(f"{', '.join(map(str, folders))}: no episode has the {PAST + 1} frames of a clip")
    taken = torch.cat(actions)
    told = taken.float() if taken.is_floating_point() else F.one_hot(taken.long()).float()
    return Recordings(torch.cat(frames), told.flatten(1), torch.cat(starts))


def normalised(latent: Tensor) -> Tensor:
    """Latents (B, C, grid, grid) by the mean and deviation of each channel in the batch: they can't become predictable by being small.

    They can by what always stands at its place, which adds to the deviation. By that of each number, latents shrink to nothing instead.
    """
    deviation = latent.std((0, 2, 3), keepdim=True).clamp(min=LEAST_DEVIATION)
    return (latent - latent.mean((0, 2, 3), keepdim=True).detach()) / deviation


def prediction_error(predictor: Predictor, latent: Tensor, actions: Tensor, noise: float) -> Tensor:
    """Mean square error of the last of each `PAST` + 1 latents (B (`PAST` + 1), C, grid, grid), by those before and actions (B, 2, A)."""
    clips = rearrange(latent, "(b t) c y x -> b t (y x c)", t=PAST + 1)
    past = clips[:, :PAST] + noise * torch.randn_like(clips[:, :PAST])
    return (predictor(past, actions).float() - clips[:, PAST]).square().mean()


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
