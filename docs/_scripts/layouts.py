"""What the maze's world model imagines of what it has not seen: `python -m docs._scripts.layouts --data DIR/test`, docs/media/layouts.png.

A row a maze, the first ones of the folder; nothing is chosen. Left what the map shows after some frames, then layouts by as many seeds,
right what the whole recording shows in the end. Needs `pip install -e '.[agents]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor

from agents.maze_map import COLOURS
from docs._scripts.maze_map import CELL, drawing
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.map_layout import believed, colours_of
from lssvwm_gym.models.map_memory import SIDE, in_lattice
from lssvwm_gym.models.rollout import prefill, with_layout
from lssvwm_gym.models.state import DreamState

GAP = 8  # pixels between two maps


@dataclass(frozen=True)
class Args:
    """Which mazes, and how much of them was seen."""

    data: Path  # folder of recorded episodes
    mazes: int = 4
    frames: int = 40
    seeds: int = 4
    out: Path = Path("docs/media/layouts.png")


@torch.no_grad()
def main(args: Args) -> None:
    dream, rows = open_dream("memory-maze", "fast", "cpu"), []
    model = dream.weights.world_model
    for path in episode_paths(args.data)[: args.mazes]:
        episode = encoded(read_episode(path), dream.weights.autoencoder)
        latent, pose = episode.latent[None].float(), relative_to(episode.pose, episode.pose[:1])[None]
        state, first = dream.empty(torch.zeros(1, dtype=torch.int64)), slice(0, args.frames)
        state = prefill(model, state, latent[:, first], episode.action[None, first], pose[:, first], imagines=False).state
        imagined = [with_layout(model, state._replace(seed=torch.tensor([seed]))) for seed in range(args.seeds)]
        later, rest = state, slice(args.frames, None)
        later = prefill(model, later, latent[:, rest], episode.action[None, rest], pose[:, rest], imagines=False).state
        maps = [state.map, *(believed(one.map, one.layout) for one in imagined), later.map]
        rows.append(np.concatenate([_framed(picture(one, state)) for one in maps], 1))
    Image.fromarray(np.concatenate(rows)).save(args.out)
    print(args.out)


def picture(maps: Tensor, state: DreamState, size: int = SIDE * CELL) -> np.ndarray:
    """Maps (1, channels, side, side) with the agent of a state, (size, size, 3)."""
    beside = F.max_pool2d((maps[:, :1] > 0).float(), 3, 1, 1)  # what lies behind the outer walls says nothing
    pose = in_lattice(state.pose, state.lattice)[0]
    return drawing((maps[:, :1] * beside)[:, 0], maps[:, 1 : 1 + COLOURS], pose, size, colours_of(maps)[0])


def _framed(one: np.ndarray) -> np.ndarray:
    return np.pad(one, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
