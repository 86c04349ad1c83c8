"""Tests of what the heads say of real frames, in whole episodes of any length: rewards, and whether an episode ends."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext
from lssvwm_gym.evaluation.metrics import precision_recall_f1, score
from lssvwm_gym.evaluation.rollouts import cut_clips, prefill_further
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.symlog import expected_reward


def reward(context: EvalContext) -> dict[str, Any]:
    """The reward head on real frames: precision, recall, F1 of rewards other than 0; where they are real numbers, how far it is off."""
    check_reward_head(context)
    model = context.weights.world_model
    logits, recorded = [], []
    for clip, features in _read_through(context):
        logits.append(model.reward_head(features)[0, 1:])
        recorded.append(clip.reward[0, 1:])
    told, real = torch.cat(logits), torch.cat(recorded)
    if model.reward_bins is not None:
        predicted = expected_reward(told, model.reward_bins)
        correlation = torch.corrcoef(torch.stack([predicted, real.to(predicted)]))[0, 1].nan_to_num()
        return {"mean absolute error": score((predicted - real).abs()[None]), "correlation": round(float(correlation), 4)}
    paid = real.new_tensor(context.world.reward_values)[told.argmax(-1)]
    precision, recall, f1 = precision_recall_f1(paid != 0, real != 0)
    return {"precision": precision, "recall": recall, "F1": f1, "rewards": int((real != 0).sum())}


def check_reward_head(context: EvalContext) -> None:
    """Raise `DoesNotApply` where something else gives the rewards."""
    if context.world.milestones:
        raise DoesNotApply("milestones give this world's rewards, not the reward head: see the test milestones")


def ends(context: EvalContext) -> dict[str, Any]:
    """The head for ends after real frames: precision, recall, F1 at a probability of a half; ends that it expects in all, and real ones.

    Each is told before the frame that ends the episode is seen. Dreams end by a draw with these probabilities, so the last two say
    whether they end as often as episodes do.
    """
    if (head := context.weights.world_model.termination_head) is None:
        raise DoesNotApply("the model has learned from episodes that never end by themselves")
    chances, recorded = [], []
    for clip, features in _read_through(context):
        chances.append(head(features[:, :-1], clip.inventory[:, 1:], clip.action[:, 1:])[0].sigmoid())
        recorded.append(clip.terminated[0, 1:])
    chance, real = torch.cat(chances), torch.cat(recorded)
    precision, recall, f1 = precision_recall_f1(chance > 0.5, real)
    expected = round(float(chance.sum()), 2)
    return {"precision": precision, "recall": recall, "F1": f1, "expected ends": expected, "ends": int(real.sum())}


def _read_through(context: EvalContext) -> Iterator[tuple[Segment, Tensor]]:
    """Every episode as a clip (1, T), and the features (1, T) of its frames."""
    for episode in tqdm(context.episodes, desc="reading through", leave=False):
        if len(episode) > 1:
            clip = cut_clips([episode], len(episode), 1)
            begun = context.prefilled(clip[:1])
            later = prefill_further(context.weights.world_model, begun, clip[1:])
            yield clip, torch.cat([begun.features[:, None], later.features], 1)
