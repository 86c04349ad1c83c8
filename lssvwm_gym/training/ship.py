"""Make a folder of weights from finished models: `lssvwm-gym ship --autoencoder F --world-model F --data DIR --out DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.data.folder import episode_paths, fingerprint
from lssvwm_gym.data.tensors import load_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.building import built_world_model
from lssvwm_gym.models.latents import encoded
from lssvwm_gym.models.weights import Starts, Weights, save_weights
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training.autoencoder import load_autoencoder


@dataclass(frozen=True)
class Shipping:
    """What goes into a folder of weights."""

    autoencoder: Path  # autoencoder.safetensors of a finished autoencoder, or a folder of weights
    world_model: Path  # world.safetensors of a finished world model, or checkpoint.safetensors of one under way
    data: Path  # folder with real episodes to begin dreams with
    out: Path  # folder to write
    openings: int = 64
    opening_frames: int = 16
    walks: int = 4
    walk_frames: int = 500
    seed: int = 0


def ship(run: Shipping) -> Weights:
    """Write the folder and return what is in it."""
    autoencoder = load_autoencoder(run.autoencoder)
    world_model, trained = load_world_model(run.world_model)
    paths = episode_paths(run.data)
    rng = np.random.default_rng(run.seed)
    paths = [paths[i] for i in rng.permutation(len(paths))]
    openings = _starts(paths, run.openings, run.opening_frames, autoencoder, rng)
    walks = _starts(paths[::-1], run.walks, run.walk_frames, autoencoder, rng)
    info = {"training": trained, "starts_from": fingerprint(run.data)}
    weights = Weights(autoencoder, world_model, openings, walks, info)
    save_weights(run.out, weights)
    return weights


def load_world_model(path: Path) -> tuple[WorldModel, dict[str, Any]]:
    """The average weights of a finished or an unfinished training run, and its header."""
    tensors, header = load_tensors(path)
    model = built_world_model(header.get("config"), under("average", tensors) or tensors, path, path)
    return model, {k: v for k, v in header.items() if k not in ("config", "walks")}


def _starts(paths: list[Path], count: int, frames: int, autoencoder: Autoencoder, rng: np.random.Generator) -> Starts:
    """`count` pieces of `frames` frames at random places, one an episode as far as they go."""
    pieces = []
    for number in tqdm(range(count), desc=f"starts of {frames} frames", leave=False):
        episode = read_episode(paths[number % len(paths)])
        start = int(rng.integers(len(episode) - frames + 1))
        piece = encoded(episode, autoencoder, slice(start, start + frames))
        pieces.append((piece.latent, piece.action, piece.pose, piece.vector))
    return Starts(*(torch.stack(column) for column in zip(*pieces, strict=True)))
