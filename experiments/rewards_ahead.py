"""Whether dreams have the rewards that real episodes have, by how many frames were dreamed before: a test of `experiments.more_tests`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext
from lssvwm_gym.evaluation.ends import check_reward_head
from lssvwm_gym.evaluation.metrics import score
from lssvwm_gym.evaluation.rollouts import clips_at, dream_along, prefill_further
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel

LEADS = (2, 5, 10, 20, 40)  # frames generated up to the rewarded one
NEAR = 3  # frames that a predicted reward may be off
LONG = 600  # frames of a long context
MAX_FRAMES = 12_000  # of the contexts of one batch, to bound memory
MAX_REWARDS = 12  # of an episode, for each of the clips that are asked for


def reward_ahead(context: EvalContext) -> dict[str, Any]:
    """Dreams on real actions that end shortly after a recorded reward, begun 2 to 40 frames before it at true poses.

    The share of these rewards that the dream has too, at most 3 frames off, by frames generated before (recall); and of the rewards
    of the longest dreams, the share at most 3 frames off a recorded one (precision). What an agent can learn from a dream is
    bounded by the first, what may mislead it shows in the second. All of it after `context` frames, and, where recordings are
    that long, after 600: what was never seen can't be predicted, and after so many most of a maze has been. Rewards with fewer
    frames before them don't count.
    """
    check_reward_head(context)
    if min(context.world.reward_values, default=-1.0) < 0:
        raise DoesNotApply("it looks for rewards among frames without any, and this world has negative ones or all kinds")
    frames, results = context.run.context, rewards_ahead(context, context.run.context)
    if not results:
        raise DoesNotApply(f"no reward has {frames + LEADS[-1]} frames before it")
    longer = rewards_ahead(context, LONG) if frames < LONG else {}
    return results | {f"{LONG} context frames, {name}": value for name, value in longer.items()}


def rewards_ahead(context: EvalContext, frames: int) -> dict[str, Any]:
    """Rewards of dreams begun after `frames` frames and more; empty where no reward has that much before it."""
    before = frames + LEADS[-1]
    places = [place for episode in context.episodes for place in _before_rewards(episode, before, MAX_REWARDS * context.run.clips)]
    if not places:
        return {}
    batch = max(1, MAX_FRAMES // before)
    parts = [places[at : at + batch] for at in range(0, len(places), batch)]
    columns = [list(_reward_rollouts(context, clips_at(part, before + NEAR + 1), frames)) for part in parts]
    results: dict[str, Any] = {"rewards": len(places)}
    for lead, *some in zip(sorted(LEADS, reverse=True), *columns, strict=True):
        predicted, real = (torch.cat(column) for column in zip(*some, strict=True))
        results[f"{lead} frames ahead: share of rewards dreamed"] = score(predicted[:, max(0, lead - 1 - NEAR) :].any(1))
        if lead == LEADS[-1]:
            hits, count = (predicted & _widened(real)).sum().item(), predicted.sum().item()
            results[f"{lead} frames ahead: share of dreamed rewards that are real"] = round(hits / count, 4) if count else None
    return results


def _reward_rollouts(context: EvalContext, clips: Segment, frames: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Predicted and recorded rewards along some clips, bool (B, T): from the longest dreams to the shortest."""
    model, state, at = context.weights.world_model, context.prefilled(clips[: frames + 1]), frames + 1
    for lead in sorted(LEADS, reverse=True):
        upto = frames + LEADS[-1] - lead + 1
        if upto > at:
            state, at = prefill_further(model, state, clips[at:upto]).state, upto
        yield predicted_rewards(model, state, clips[upto:], context.run.steps), clips[upto:].reward > 0


def predicted_rewards(model: WorldModel, state: DreamState, clips: Segment, steps: int) -> Tensor:
    """Which frames of a dream along clips' actions, with estimated motion, have a reward: bool (B, T)."""
    dream, _ = dream_along(model, state, clips, steps, true_motion=False)
    return model.reward_head(dream.features).argmax(-1) > 0


def _before_rewards(episode: Segment, before: int, most: int) -> list[tuple[Segment, int]]:
    """Where clips begin that have a reward `before` frames later: at most so many, evenly over the episode's."""
    rewarded = torch.nonzero(episode.reward > 0)[:, 0].tolist()
    starts = [t - before for t in rewarded if t >= before and t + NEAR < len(episode)]
    chosen: list[int] = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int)).tolist() if starts else []
    return [(episode, starts[number]) for number in chosen]


def _widened(events: Tensor) -> Tensor:
    """Frames (B, T) at most `NEAR` from an event."""
    return torch.nn.functional.max_pool1d(events.float(), 2 * NEAR + 1, 1, NEAR) > 0
