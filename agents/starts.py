"""What dreamed episodes begin with: moments of recorded pasts, and moments shortly before a reward.

A dream can begin anywhere that was ever recorded, and a real environment can't. So an agent meets rewards from its first minute on; those
that are further ahead then ask it to find the way (a reverse curriculum, Florensa et al., arXiv 1707.05300).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents.ppo_settings import Args
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.envs.reset_options import past_of
from lssvwm_gym.envs.rewards import reward_probability
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.models.rollout import unknown_action
from lssvwm_gym.models.segment import Segment, joined
from lssvwm_gym.models.state import DreamState, join_rows, take_rows
from lssvwm_gym.training.latents import latent_episodes

MAX_ROWS = 64  # of long contexts that are prefilled in one call
MAX_FRAMES = 1600  # of pasts that are prefilled in one call; a GB or two of work


class BeforeRewards(NamedTuple):
    """Which moments before rewards episodes begin with."""

    lead: tuple[int, int]  # frames from the beginning to the reward, at least and at most
    context: int  # frames before the beginning


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
def rewarded_contexts(dream: Dream, before: BeforeRewards) -> list[Segment]:
    """The long contexts that come with the weights, as episodes; none where they are too short for any such moment.

    Contexts hold no rewards. In their place is how probable the world model finds one at each frame, (T,); in a world with milestones 1 at
    each, else 0.
    """
    contexts = dream.weights.long_contexts
    if not contexts.batch or len(contexts) < before.context + before.lead[0]:
        return []
    episodes = [contexts.take(row) for row in range(contexts.batch)]
    if dream.world.milestones:
        worth = torch.tensor([name in dict(dream.world.milestones) for name in dream.world.inventory], device=contexts.inventory.device)
        reached = torch.stack([_peak(episode) > 0 for episode in episodes])
        rewards = ((reached[:, 1:] & ~reached[:, :-1]) & worth).any(-1).float()
        rewards = torch.cat([torch.zeros_like(rewards[:, :1]), rewards], 1)
    else:
        past = _past([(episode, slice(None)) for episode in episodes], dream)
        features = dream.prefilled(torch.arange(contexts.batch), past).features
        rewards = reward_probability(dream.world, dream.weights.world_model.reward_head(features)).float()
    return [replace(episode, reward=reward) for episode, reward in zip(episodes, rewards, strict=True)]


def moments(episodes: Sequence[Segment], before: BeforeRewards) -> list[tuple[Segment, int]]:
    """Rewards of episodes that have enough before them, and at which frame each is."""
    rewards = [(episode, t) for episode in episodes for t in torch.nonzero(episode.reward > 0.5)[:, 0].tolist()]
    return [(episode, t) for episode, t in rewards if t + 1 - before.lead[0] >= before.context]


@torch.no_grad()
def bank_before_rewards(dream: Dream, episodes: Sequence[Segment], before: BeforeRewards, most: int, seed: int = 0) -> DreamState:
    """States of episodes from which a reward is near: it is so many frames ahead, drawn anew for each from `before.lead`.

    The last `before.context` frames are the context, at their recorded poses where there are any. At most `most` states, drawn by the
    seed, each reward as often as another. Raises `ValueError` where no episode has a reward with that much before it.
    """
    rng, (least, longest) = np.random.default_rng(seed), before.lead
    rewards = moments(episodes, before)
    if not rewards:
        raise ValueError(f"none of {len(episodes)} episodes has a reward after {before.context} frames of context and {least} of lead")
    cuts = []
    for number in range(most):
        if number % len(rewards) == 0:
            order = rng.permutation(len(rewards))
        episode, t = rewards[order[number % len(rewards)]]
        start = t + 1 - int(rng.integers(least, min(longest, t + 1 - before.context), endpoint=True))
        cuts.append((episode, slice(start - before.context, start)))
    together = max(1, MAX_FRAMES // before.context)
    parts = [cuts[at : at + together] for at in range(0, len(cuts), together)]
    progress = tqdm(parts, desc="states before rewards", leave=False)
    return join_rows([dream.prefill(torch.arange(len(part)), _past(part, dream)) for part in progress])


def open_bank(args: Args, dream: Dream) -> DreamState:
    """The states that episodes begin with. Raises `ValueError` for recordings without rewards."""
    most, before = args.bank or 1, BeforeRewards(args.lead, args.context)
    wanted, states = round(args.before_rewards * most), list[DreamState]()
    if wanted:
        if args.data is not None:
            episodes = latent_episodes(args.data, dream.weights.autoencoder, args.latents or args.folder / "latents")
        else:
            episodes = rewarded_contexts(dream, before)
        if args.data is not None or moments(episodes, before):  # contexts need not have any
            states = [bank_before_rewards(dream, episodes, before, wanted, args.seed)]
    nothing = round(args.made_up * most)
    states += [dream.reset(torch.arange(nothing) + most * args.seed, {"start": "cold"})] if nothing else []
    others = most - nothing - (wanted if states else 0)
    states += [bank_of_starts(dream, args.context_every, others, args.seed, args.min_context)] if others else []
    return join_rows(states)


def dreams(args: Args, dream: Dream, bank: DreamState) -> DreamVectorEnv:
    """What is learned in, begun with the states of a bank."""
    return DreamVectorEnv.from_bank(dream, bank, args.num_envs or 1, args.episode_steps, observation=args.observation, stagger=True)


def _past(cuts: list[tuple[Segment, slice]], dream: Dream) -> Segment:
    """These frames of these episodes, as pasts of a row each."""
    past = joined([episode[part] for episode, part in cuts]).to(dream.device)
    peak = torch.stack([_peak(episode)[part] for episode, part in cuts]).to(dream.device)
    past.action[:, 0] = unknown_action(dream.weights.world_model, 1)  # what led to the first is not part of the past
    return past_of(past.latent.float(), past.action, past.pose, past.inventory, peak)


def _peak(episode: Segment) -> Tensor:
    """The most of each number up to every frame, (T, V)."""
    return episode.inventory.cummax(0).values if episode.inventory_peak is None else episode.inventory_peak
