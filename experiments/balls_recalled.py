"""Do dreams of a known maze still show its balls? Balls read from dreamed frames and from the real ones, along recorded actions.

python -m experiments.balls_recalled --data DIR/test

Dreams go on from real frames for as many steps as are asked for. What reads both is the reader of `experiments.maze_reader`, so that
its own errors count alike. Only balls that the context has shown are counted. Needs `pip install -e '.[agents]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from agents.policies import as_json
from experiments.maze_reader import Frames, frames_of_episode
from experiments.trials import write_result
from lssvwm_gym.data.episode import EpisodeError, episode_paths, read_arrays, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.map_memory import MapReader, grid_pose, in_lattice, read_map_reader
from lssvwm_gym.models.state import join_rows


@dataclass(frozen=True)
class Args:
    """Where to look."""

    data: Path  # folder of recorded episodes of 9 x 9 mazes
    reader: Path | None = None  # reader.safetensors of `experiments.maze_reader`; the dream's own if not given
    weights: Path | None = None  # of the dream; the shipped ones if not given
    profile: str = "fast"
    context: int = 600  # frames before each dream
    steps: int = 250  # of each dream
    out: Path = Path("runs/balls_recalled.json")

    def __post_init__(self) -> None:
        check_bounds(self, context=1, steps=1)


@torch.no_grad()
def main(args: Args) -> None:
    dream = open_dream("memory-maze", args.profile, "cpu", args.weights)
    reader, paths = dream.weights.world_model.map_reader if args.reader is None else read_map_reader(args.reader), episode_paths(args.data)
    if reader is None:
        raise SystemExit("these weights read no maps: name a --reader")
    episodes = [encoded(read_episode(path), dream.weights.autoencoder) for path in tqdm(paths, desc="encoding", leave=False)]
    if short := [path for path, episode in zip(paths, episodes, strict=True) if len(episode) < args.context + args.steps]:
        raise SystemExit(f"{short[0]} has fewer than the {args.context + args.steps} frames of context and steps")
    try:
        real = [frames_of_episode(read_arrays(path), episode.latent, path) for path, episode in zip(paths, episodes, strict=True)]
    except EpisodeError as error:
        raise SystemExit(str(error)) from None
    state = join_rows([dream.reset(torch.tensor([0]), {"episode": path, "context_frames": args.context}) for path in paths])
    state = state._replace(seed=torch.arange(len(paths)))
    shown = torch.stack([frames.balls[: args.context].flatten(2).any(2).any(0) for frames in real])  # (B, colours) in the context
    counts, rewards = np.zeros(3, int), np.zeros(2)
    for t in tqdm(range(args.context, args.context + args.steps), desc="dreaming", leave=False):
        step = dream.step(state, torch.stack([episode.action[t] for episode in episodes]))
        state, seen = step.state, step.state.latent
        dreamed = balls(reader, seen, in_lattice(state.pose, state.lattice)[0]) & shown
        true = balls(reader, torch.stack([frames.latent[t] for frames in real]).float(), poses(real, t)) & shown
        counts += [true.sum().item(), dreamed.sum().item(), (true & dreamed).sum().item()]
        rewards += [sum(episode.reward[t].item() for episode in episodes), step.reward.sum().item()]
    names = ("in_real_frames", "in_dreamed_frames", "in_both")
    views, paid = dict(zip(names, counts.tolist(), strict=True)), dict(zip(("real", "dreamed"), rewards.tolist(), strict=True))
    write_result(args.out, {"settings": as_json(args), "episodes": len(paths), "views_of_balls": views, "rewards": paid})
    print(f"balls in {counts[0]} real views, {counts[1]} dreamed, {counts[2]} both; {rewards[1]:.0f} rewards of {rewards[0]:.0f}")


def balls(reader: MapReader, latent: Tensor, pose: Tensor) -> Tensor:
    """Which balls latents (B, N, C) show at poses (B, 4), bool (B, colours)."""
    reading = reader(latent, grid_pose(pose).rest)
    return (reading.objects > 0).flatten(2).any(2)


def poses(real: list[Frames], t: int) -> Tensor:
    """True ones, (B, 4)."""
    place, heading = (
        torch.stack([part[t] for part in parts]) for parts in zip(*((one.position, one.heading) for one in real), strict=True)
    )
    return torch.cat([place, heading.cos()[:, None], heading.sin()[:, None]], 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
