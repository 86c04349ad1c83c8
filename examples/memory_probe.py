"""Walk away and come back: what does a dream remember of the way?

It is shown a real walk through a maze, then asked what is seen from every place of it on the way back, from its own memory
and from an emptied one. Prints how close both come to the real frames, and writes a picture.

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
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, Dream, open_dream
from lssvwm_gym.evaluation.metrics import psnr
from lssvwm_gym.evaluation.rollouts import memory_of
from lssvwm_gym.io.video import enlarged
from lssvwm_gym.models.geometry import motion_between, relative_to
from lssvwm_gym.models.rollout import DreamState, commit, imagine


@dataclass(frozen=True)
class Probe:
    """Which walk, and how much of it."""

    world: str = "memory-maze"
    profile: str = "fast"  # one pass a frame: the mean of what is possible, and so the best PSNR
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    episode: Path = Path(__file__).parent / "memory_maze_real.npz"  # of the real world, with poses
    frames: int = 100  # of the walk; the way back is as long
    shown: int = 10  # pictures of the way back, evenly spaced
    out: Path = Path("demo/memory.png")
    seed: int = 0


def main(run: Probe) -> None:
    dream, episode = open_dream(run.world, run.profile, weights=run.weights), read_episode(run.episode)
    if episode.pose is None:
        raise SystemExit(f"{run.episode} has no poses, and so nothing says where the way back leads")
    pose = torch.from_numpy(episode.pose[: run.frames])
    way_back = relative_to(pose, pose[0]).flip(0)[1:]
    real = torch.from_numpy(episode.frames[: run.frames].copy()).flip(0)[1:]
    state = dream.reset(torch.tensor([run.seed]), {"episode": str(run.episode), "context_frames": run.frames})
    recalled = {"own memory": seen_on(way_back, dream, state), "emptied memory": seen_on(way_back, dream, memory_of(state, None))}
    for name, frames in recalled.items():
        quality = psnr(frames[None], real[None], dream.world.border)[0]
        parts = ", ".join(f"{part.mean():.1f}" for part in quality.chunk(4))
        print(f"{name}: {quality.mean():.1f} dB on the way back; by quarters of it, the latest seen first: {parts}")
    moments = np.linspace(0, len(real) - 1, run.shown).round().astype(int)
    rows = [np.concatenate(list(frames[moments].numpy()), 1) for frames in (real, *recalled.values())]
    run.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(enlarged(np.concatenate(rows), 2)).save(run.out)
    print(f"{run.out}: real frames, own memory, emptied memory; the way back begins at the left")


@torch.no_grad()
def seen_on(poses: Tensor, dream: Dream, state: DreamState) -> Tensor:
    """What is dreamed along poses (T, 4), seen from the first frame in memory: frames (T, height, width, 3) uint8."""
    model, steps = dream.weights.world_model, SAMPLING_STEPS[dream.profile]
    unknown = torch.tensor([model.config.actions])  # no action walks backwards
    frames = []
    for pose in poses:
        imagined = imagine(model, state, unknown, steps, motion_between(state.pose, pose[None]))
        state = commit(model, state, unknown, imagined)
        frames.append(dream.weights.autoencoder.decode(state.latent))
    return torch.cat(frames)


if __name__ == "__main__":
    main(tyro.cli(Probe, description=__doc__))
