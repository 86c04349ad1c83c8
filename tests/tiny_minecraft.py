"""A block world for tests: tiny random weights, and short episodes in which trees are dug and things are crafted by the recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_world import IMAGE, SIZES

from experiments.crafting import by_recipe
from lssvwm_gym.checkpoints.checkpoint import Weights, save_weights
from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["minecraft"]
NOOP, FORWARD, TURN, DIG, PLACE, PLANKS, STICKS, WOODEN, STONE = 0, 1, 3, 8, 9, 10, 11, 12, 13
LOG, DIRT = WORLD.inventory.index("log"), WORLD.inventory.index("dirt")
OPENING_FRAMES = 6
# dig twice in vain, two logs, then crafts of which the first pickaxe is impossible, then dirt, and the rest of the way on foot
PLAY = [NOOP, FORWARD, DIG, DIG, DIG, DIG, WOODEN, TURN, PLANKS, TURN, STICKS, FORWARD, WOODEN, STONE, DIG, PLANKS, FORWARD]
DUG = {4: LOG, 5: LOG, 14: DIRT}  # frame to what was in the hand by then


def write_tiny_minecraft(folder: Path, seed: int = 4) -> Path:
    """Random weights of a block world."""
    torch.manual_seed(seed)
    sizes = dict(
        actions=14,
        inventory_size=9,
        motion_scale=(0.5, 0.1, 0.25, 0.3, 0.15),
    )
    model, autoencoder = WorldModel(WorldModelConfig(**{**SIZES, **sizes})), Autoencoder(IMAGE)
    for parameter in (*model.parameters(), *autoencoder.parameters()):  # zero-initialised parts must take part
        parameter.data += torch.randn_like(parameter) * 0.05
    save_weights(folder, Weights(autoencoder, model, _starts(3, OPENING_FRAMES), _starts(2, 30), {"made_by": "tests"}))
    return folder


def recipes_are_followed(head, features, before, action, chance=None):
    """In place of `InventoryHead.after`: crafts change the counts by the recipes, nothing else does."""
    return before + by_recipe(WORLD, before, action)


def play(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Actions (T,) and the counts (T, 9) that go with them."""
    action = np.array(PLAY + [TURN] * (frames - len(PLAY)))[:frames]
    counts = torch.zeros(frames, len(WORLD.inventory))
    for t in range(1, frames):
        counts[t] = counts[t - 1] + by_recipe(WORLD, counts[t - 1], torch.tensor(action[t]))
        if t in DUG:
            counts[t, DUG[t]] += 1
    return action.astype(np.uint8), counts.int().numpy()


def write_real_plays(folder: Path, episodes: int = 2, frames: int = 40) -> Path:
    """Episodes of that play in noise, on straight ways that climb."""
    action, counts = play(frames)
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(256, size=(frames, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        pos = np.stack([np.arange(frames) * 0.4, np.arange(frames) * 0.1, np.full(frames, float(seed))], 1).astype(np.float32)
        tilt = np.linspace(0, 0.5, frames, dtype=np.float32)
        extras = {"inventory": counts, "pos": pos, "yaw": np.full(frames, 0.3, np.float32), "pitch": tilt}
        write_episode(folder / f"{seed:06d}", Episode(pixels, action, np.zeros(frames, np.float32), extras), fps=5)
    return folder


def _starts(count: int, frames: int) -> Segment:
    heading = torch.rand(count, frames) * 2 * np.pi
    pose = torch.stack([*torch.rand(2, count, frames) * 9, heading.cos(), heading.sin(), *torch.rand(2, count, frames)], -1)
    inventory = torch.zeros(count, frames, len(WORLD.inventory))
    inventory[..., LOG] = 2
    action = torch.randint(8, (count, frames))
    return Segment(torch.randn(count, frames, 16, 4).half(), action, pose=pose, inventory=inventory)
