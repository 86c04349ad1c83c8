"""Proximal policy optimisation of `agents.ppo`, with the same settings, in dreams that also begin shortly before recorded rewards.

python -m experiments.ppo_before_rewards --data data/train
python -m experiments.ppo_before_rewards --data data/train --start runs/behavior_cloning/memory-maze/policy.safetensors --critic-first 6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from agents import ppo
from agents.ppo import bank_of_starts
from lssvwm_gym.data.segments import Segment
from lssvwm_gym.envs.reset_options import past_of
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.rollout import unknown_action
from lssvwm_gym.models.state import DreamState, join_rows
from lssvwm_gym.training.latents import latent_episodes

MAX_FRAMES = 1600  # of recorded episodes; a GB or two of work


@dataclass(frozen=True)
class Args(ppo.Args):
    """What to learn, where, and how."""

    data: Path = Path("data/train")  # folder of recorded episodes
    latents: Path | None = None  # folder that keeps the encoded recordings; out/latents if not given
    rewarding: float = 0.75  # share of the bank that begins before rewards
    lead: tuple[int, int] = (2, 40)  # frames between such a beginning and the recorded reward: at least and at most
    context: int = 600  # frames before it


def main(args: Args) -> None:
    ppo.main(args, lambda checked, dream: ppo.dreams(checked, dream, open_bank(args, dream, checked.bank or 1)))


def open_bank(args: Args, dream: Dream, most: int) -> DreamState:
    """The states that episodes begin with. Raises `ValueError` for recordings without rewards."""
    episodes = latent_episodes(args.data, dream.weights.autoencoder, args.latents or args.folder / "latents")
    rewarding = bank_before_rewards(dream, episodes, args.lead, args.context, max(1, round(args.rewarding * most)), args.seed)
    others = most - len(rewarding.seed)
    return join_rows([rewarding, bank_of_starts(dream, args.context_every, others, args.seed, args.min_context)]) if others else rewarding


@torch.no_grad()
def bank_before_rewards(
    dream: Dream, episodes: Sequence[Segment], lead: tuple[int, int], context: int, most: int, seed: int = 0
) -> DreamState:
    """States of recorded episodes from which a reward is near: it is so many frames ahead, drawn between the two numbers of `lead`.

    A dream can begin anywhere that was ever recorded, so that an agent meets rewards from its first hour on; the longer leads
    then ask it to find the way. The last `context` frames are the context, at their recorded poses where there are any. At most
    `most` states, drawn by the seed where there are more.

    Raises:
        ValueError: no episode has a reward with that much before it.
    """
    rng = np.random.default_rng(seed)
    rewards = [(episode, int(t)) for episode in episodes for t in torch.nonzero(episode.reward > 0)[:, 0].tolist()]
    ahead = rng.integers(lead[0], lead[1], len(rewards), endpoint=True)
    beginnings = [(episode, t + 1 - int(away)) for (episode, t), away in zip(rewards, ahead, strict=True) if t + 1 - away >= context]
    if not beginnings:
        raise ValueError(f"none of {len(episodes)} episodes has a reward after {context} frames of context and {lead[0]} of lead")
    chosen = [beginnings[number] for number in rng.permutation(len(beginnings))[:most]]
    together = max(1, MAX_FRAMES // context)
    parts = [chosen[at : at + together] for at in range(0, len(chosen), together)]
    return join_rows([_prefilled(dream, part, context) for part in tqdm(parts, desc="states before rewards", leave=False)])


def _prefilled(dream: Dream, beginnings: list[tuple[Segment, int]], context: int) -> DreamState:
    """The states after the last `context` frames before frame t, for these episodes and t."""
    cut = [(episode, slice(t - context, t)) for episode, t in beginnings]
    latent, action, pose, inventory = (
        torch.stack([getattr(episode, name)[part] for episode, part in cut]).to(dream.device)
        for name in ("latent", "action", "pose", "inventory")
    )
    action[:, 0] = unknown_action(dream.weights.world_model, 1)  # what led to the first is not part of the past
    return dream.prefill(torch.arange(len(beginnings)), past_of(latent.float(), action, pose, inventory))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
