"""Short episodes with poses, as a collector would write them, for tests that measure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.models.geometry import integrate_motion


def write_real_walks(folder: Path, episodes: int = 3, frames: int = 60) -> Path:
    """Episodes of noise in large pixels, each on a path of its own."""
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        pose, poses = torch.tensor([1.0, 1.0, 1.0, 0.0]), []
        for _ in range(frames):
            poses.append(pose)
            pose = integrate_motion(pose, torch.tensor([0.1, 0.0, float(rng.normal() * 0.2)]))
        position = torch.stack(poses).numpy()
        pixels = rng.integers(256, size=(frames, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        reward = (rng.random(frames) < 0.1).astype(np.float32)
        extras = {"agent_pos": position[:, :2], "agent_dir": position[:, 2:]}
        write_episode(folder / f"{seed:06d}", Episode(pixels, rng.integers(6, size=frames).astype(np.uint8), reward, extras), fps=4)
    return folder
