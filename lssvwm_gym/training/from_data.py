"""Settings of a training of the world model that its episodes tell: whether they end by themselves, and which rewards there are."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import load_tensors
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.symlog import BINS, symlog

MOST_CLASSES = 8  # different rewards that are told apart as classes; more are real numbers
LARGEST_CLASS = 2.0**16
TOLD = ("termination", "reward_values", "class_rewards", "reward_bins", "reward_limit")


def settings_from_data(model: WorldModelConfig, episodes: list[Segment], checkpoint: Path) -> WorldModelConfig:
    """The model with a head for ends where episodes have any, and with the rewards that there are, unless it was told some.

    A run goes on as its checkpoint says, whatever has come to the data since. Rewards of 0 and 1 need no setting, and in worlds with an
    inventory milestones give the rewards. Warns of a head for ends where all episodes are unending: dreams will be, too.
    """
    if checkpoint.exists():
        config = known_config(load_tensors(checkpoint)[1].get("config"))
        told: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in config.items() if name in TOLD}
        return replace(model, **told)
    ends = any(bool(episode.terminated.any()) for episode in episodes if episode.terminated is not None)
    if model.termination and not ends:
        warnings.warn(
            "no episode ends by itself: the dream will hardly ever end. Recordings of before don't say how they end", stacklevel=2
        )
    model = replace(model, termination=model.termination or ends)
    default = WorldModelConfig(actions=model.actions, action_size=model.action_size)
    rewards = torch.cat([episode.reward for episode in episodes])
    if model.reward_bins and model.reward_limit == default.reward_limit:
        return replace(model, reward_limit=_limit(rewards))
    if model.inventory_size or any(getattr(model, name) != getattr(default, name) for name in TOLD[1:]):
        return model
    values = [float(f"{value:.7g}") for value in rewards.unique().tolist() if value]
    if not set(values) - {1.0}:
        return model
    if len(values) >= MOST_CLASSES or max(map(abs, values)) > LARGEST_CLASS:
        return replace(model, reward_bins=BINS, reward_limit=_limit(rewards))
    return replace(model, reward_values=len(values) + 1, class_rewards=(0.0, *values))


def known_config(config: object) -> dict[str, object]:
    """A checkpoint's sizes, with what they had no name for yet. Empty where they are none."""
    return asdict(WorldModelConfig()) | legacy.sizes(config) if isinstance(config, dict) else {}


def _limit(rewards: torch.Tensor) -> float:
    """Of the bins, a little beyond the largest reward."""
    return round(1.05 * float(symlog(rewards.abs().max().double())), 4) or 1.0
