"""Banks of states that the dreams of `agents.ppo` begin with, each prefilled once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from lssvwm_gym.data.segments import Segment
from lssvwm_gym.envs.contexts import past_of
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.models.rollout import DreamState, unknown_action
from lssvwm_gym.models.state import join_rows, take_rows

MAX_ROWS = 64  # that are prefilled in one call
MAX_FRAMES = 1600  # of recorded episodes; a GB or two of work


def bank_of_starts(dream: Dream, context_every: int, most: int, seed: int = 0, least: int = 0) -> DreamState:
    """States to begin with: after all short contexts, and after every so many frames of the long ones (0: none).

    With `least` only those with that many context frames, where there are any. Weights without either begin with imagined frames. At
    most `most` states, drawn by the seed where there are more.
    """
    short, long = dream.weights.short_contexts, dream.weights.long_contexts
    starts: list[DreamState] = []
    if long.batch and context_every:
        rows = torch.arange(min(2 * long.batch, MAX_ROWS))  # a seed draws one of the contexts
        lengths = range(context_every, len(long) + 1, context_every)
        starts = [dream.reset(rows, {"context_frames": frames}) for frames in lengths if frames >= least]
    if len(short) >= least or not starts:
        starts = [dream.reset(torch.tensor([number]), {"context_id": number}) for number in range(min(short.batch, most))] + starts
    if not starts:
        starts = [dream.reset(torch.arange(MAX_ROWS), {"start": "cold"})]
    bank = join_rows(starts)
    chosen = torch.randperm(len(bank.seed), generator=torch.Generator().manual_seed(seed))[:most]
    return take_rows(bank, chosen.to(dream.device))


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
