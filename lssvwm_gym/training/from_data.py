"""Settings of a training of the world model that its episodes tell: actions, whether there are poses, how far a step leads, whether
episodes end by themselves, and which rewards there are.

What is given stays as it is: a size counts as given where it is not the default.
"""

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lssvwm_gym.data.collect_gym import read_collection
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import load_tensors
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import motion_between
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.symlog import BINS, bin_values, symlog

MOST_CLASSES = 8  # different rewards that are told apart as classes; more are real numbers
LARGEST_CLASS = 2.0**16
PLAIN = WorldModelConfig()
LEAST_WAY, LEAST_TURN = 0.1, 0.02  # of the typical way in any direction; radians: directions in which nothing moves have a scale, too
TOLD = ("termination", "reward_values", "class_rewards", "reward_bins", "reward_limit")
INVENTORY = ("inventory_size", "inventory_changes", "inventory_range")
MOST_CHANGES = 31  # different changes of a number in a frame that are told apart; of more, so many are chosen


def settings_from_data(model: WorldModelConfig, episodes: list[Segment], checkpoint: Path) -> WorldModelConfig:
    """The model with a head for ends where episodes have any, and with the rewards that there are, unless it was told some.

    A run goes on as its checkpoint says, whatever has come to the data since. Rewards of 0 and 1 need no setting, and in worlds with an
    inventory milestones give the rewards. Warns of a head for ends where all episodes are unending: dreams will be, too.
    """
    if checkpoint.exists():
        config = known_config(load_tensors(checkpoint)[1].get("config"))
        told: dict[str, Any] = {name: _as_tuples(x) for name, x in config.items() if name in (*TOLD, *INVENTORY, "motion_scale")}
        return replace(model, **told)
    ends = any(bool(episode.terminated.any()) for episode in episodes if episode.terminated is not None)
    if model.termination and not ends:
        warnings.warn("no episode ends by itself: dreams will hardly ever end. Recordings of before don't say how they end", stacklevel=2)
    model = replace(model, termination=model.termination or ends)
    rewards = torch.cat([episode.reward for episode in episodes])
    if model.reward_bins and model.reward_limit == PLAIN.reward_limit:
        return replace(model, reward_limit=_limit(rewards))
    if (model.inventory_size and not model.inventory_changes) or any(getattr(model, name) != getattr(PLAIN, name) for name in TOLD[1:]):
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


def fitted(config: WorldModelConfig, data: Path, episodes: list[Segment]) -> WorldModelConfig:
    """The sizes for the episodes of a folder, with the actions that `collecting.json` tells.

    Without it actions are numbers, or more than the default, where recorded ones are. Without any pose there is no spatial memory.
    The typical motion is that of the recordings, in folders with `collecting.json`, and in space.
    """
    collection = read_collection(data)
    first, poses = episodes[0], any(bool(one.pose.isfinite().all(1).any()) for one in episodes)
    if (config.actions, config.action_size) == (PLAIN.actions, PLAIN.action_size):
        if first.action.is_floating_point():
            config = replace(config, actions=0, action_size=first.action.shape[1] if first.action.ndim == 2 else 0)
        else:
            largest = max(int(one.action.max()) for one in episodes)
            config = replace(config, actions=len(collection.actions) if collection else max(PLAIN.actions, largest + 1))
    if collection is not None and collection.inventory and not config.inventory_size:
        told = (changes_and_range([one.inventory[:, n] for one in episodes]) for n in range(len(collection.inventory)))
        changes, bounds = zip(*told, strict=True)
        config = replace(config, inventory_size=len(collection.inventory), inventory_changes=changes, inventory_range=bounds)
    if not poses:
        config = replace(config, memory_features=0)
    elif config.motion_scale == PLAIN.motion_scale and (collection is not None or first.pose.shape[1] != PLAIN.pose_size):
        config = replace(config, motion_scale=typical_motion(episodes))
    return config


def changes_and_range(number: list[torch.Tensor]) -> tuple[tuple[float, ...], tuple[float, float]]:
    """By what a number (T,) of each episode changes in a frame, all of it or the bins between which it is shared; its least and most."""
    change, whole = torch.cat([one.diff() for one in number]).double(), torch.cat(number)
    values = [float(f"{value:.6g}") for value in change.unique().tolist()]
    if len(values := sorted({0.0, *values})) > MOST_CHANGES:
        scale = float(change.abs().quantile(0.9)) if len(change) < 2**24 else float(change.abs().mean())
        scale = scale or float(change.abs().max())
        bins = scale * bin_values(MOST_CHANGES, float(symlog(change.abs().max() / scale))).double()
        values = sorted({float(f"{value:.6g}") for value in bins.tolist()})
    least, most = float(whole.min()), float(whole.max())
    return tuple(values if len(values) > 1 else [0.0, 1.0]), (least, most if most > least else least + 1)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def typical_motion(episodes: list[Segment]) -> tuple[float, ...]:
    """Root mean square of the recorded motions of a frame: forward and left in world units, turn in radians; in space rise and tilt."""
    motion = torch.cat([motion_between(one.pose[:-1], one.pose[1:]) for one in episodes])
    typical = motion[motion.isfinite().all(1)].square().mean(0).sqrt().tolist()
    way = max(LEAST_WAY * max(typical[:2]), 1e-3)
    return tuple(round(max(value, least), 4) for value, least in zip(typical, (way, way, LEAST_TURN, way, LEAST_TURN), strict=False))
