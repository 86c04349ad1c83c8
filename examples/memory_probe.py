"""Revisits: how well does a dream reproduce the views of its context along the reversed trajectory?

The context is a real segment of a maze. Then the same poses are visited in reverse order, once with the dream's own memory and
once with an emptied one. Prints the PSNR of both against the real frames, and writes a picture.

python examples/memory_probe.py        writes demo/memory.png: real frames, own memory, emptied memory
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.evaluation.metrics import psnr
from lssvwm_gym.evaluation.rollouts import memory_of
from lssvwm_gym.io.video import enlarged
from lssvwm_gym.models.geometry import motion_between, relative_to
from lssvwm_gym.models.rollout import commit, imagine
from lssvwm_gym.models.state import DreamState


@dataclass(frozen=True)
class Probe:
    """Which context, and how long."""

    world: str = "memory-maze"
    profile: str = "fast"  # one denoising step a frame, which has the best PSNR
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    episode: Path = Path(__file__).parent / "memory_maze_real.npz"  # of the real world, with poses
    frames: int = 100  # of the context; the reversed trajectory is as long
    shown: int = 10  # of these, evenly spaced
    out: Path = Path("demo/memory.png")
    seed: int = 0


def main(run: Probe) -> None:
    dream, episode = open_dream(run.world, run.profile, weights=run.weights), read_episode(run.episode)
    if episode.pose is None:
        raise SystemExit(f"{run.episode} has no poses, which a reversed trajectory needs")
    pose = torch.from_numpy(episode.pose[: run.frames])
    reversed_poses = relative_to(pose, pose[0]).flip(0)[1:]
    real = torch.from_numpy(episode.frames[: run.frames].copy()).flip(0)[1:]
    state = dream.reset(torch.tensor([run.seed]), {"episode": str(run.episode), "context_frames": run.frames})
    recalled = {
        "own memory": seen_on(reversed_poses, dream, state),
        "emptied memory": seen_on(reversed_poses, dream, memory_of(state, None)),
    }
    for name, frames in recalled.items():
        quality = psnr(frames[None], real[None], dream.world.border)[0]
        parts = ", ".join(f"{part.mean():.1f}" for part in quality.chunk(4))
        print(f"{name}: {quality.mean():.1f} dB on revisits; by quarters, the latest seen first: {parts}")
    shown = np.linspace(0, len(real) - 1, run.shown).round().astype(int)
    rows = [np.concatenate(list(frames[shown].numpy()), 1) for frames in (real, *recalled.values())]
    run.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged(np.concatenate(rows), 2)).save(run.out)
    print(f"{run.out}: real frames, own memory, emptied memory; the latest seen at the left")


@torch.no_grad()
def seen_on(poses: Tensor, dream: Dream, state: DreamState) -> Tensor:
    """What is dreamed along poses (T, 4), seen from the first frame in memory: frames (T, height, width, 3) uint8."""
    model, steps = dream.weights.world_model, dream.sampling_steps
    unknown = torch.tensor([model.config.actions])  # no action moves backwards
    frames = []
    for pose in poses:
        imagined = imagine(model, state, unknown, steps, motion_between(state.pose, pose[None]))
        state = commit(model, state, unknown, imagined)
        frames.append(dream.weights.autoencoder.decode(state.latent))
    return torch.cat(frames)


if __name__ == "__main__":
    main(tyro.cli(Probe, description=__doc__))
