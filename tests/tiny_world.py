"""A folder of tiny random weights for tests that need a dream but no trained model; the fixture is `tiny_weights`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lssvwm_gym.checkpoints.checkpoint import Weights, save_weights
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig

OPENINGS, OPENING_FRAMES = 5, 6
WALKS, WALK_FRAMES = 2, 150
IMAGE = AutoencoderConfig(patch=8, widths=(8, 16), latent_channels=4)
SIZES = dict(latent_channels=4, width=32, blocks=((4, 4), (1, 1)), heads=2, head_width=16, d_state=8, mlp=2)
SIZES |= dict(memory_features=16, window=3)
WITH_A_MAP = dict(flow_width=20, lattice=1.0, collisions=True, map_objects=3, layout_width=4)  # sizes of a world model as the maze's


def write_tiny_weights(folder: Path, seed: int = 4, openings: int = OPENINGS, walks: int = WALKS, **sizes) -> Path:
    """Random weights that react to everything, for `memory-maze` unless `sizes` of the world model say otherwise."""
    torch.manual_seed(seed)
    model = WorldModel(WorldModelConfig(**{**SIZES, **sizes}))
    autoencoder = Autoencoder(IMAGE)
    for parameter in (*model.parameters(), *autoencoder.parameters()):  # zero-initialised parts must take part
        parameter.data += torch.randn_like(parameter) * 0.05
    model.reward_head[-1].weight.data *= 20  # with this seed some frames pay and some do not
    kind = sizes.get("actions", 6), sizes.get("action_size", 0), sizes.get("inventory_size", 0)
    starts = random_starts(openings, OPENING_FRAMES, *kind), random_starts(walks, WALK_FRAMES, *kind)
    save_weights(folder, Weights(autoencoder, model, *starts, {"made_by": "tests"}))
    return folder


def random_starts(count: int, frames: int, actions: int = 6, action_size: int = 0, inventory: int = 0) -> Segment:
    heading = torch.rand(count, frames) * 2 * np.pi
    pose = torch.cat([torch.rand(count, frames, 2) * 9, heading.cos()[..., None], heading.sin()[..., None]], -1)
    action = torch.rand(count, frames, action_size) if action_size else torch.randint(actions, (count, frames))
    return Segment(torch.randn(count, frames, 16, 4).half(), action, pose=pose, inventory=torch.zeros(count, frames, inventory))


def same(a, b):
    """Equality of whatever environments return, to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return same(list(a), list(b))
    return type(a) is type(b) and np.array_equal(a, b)
