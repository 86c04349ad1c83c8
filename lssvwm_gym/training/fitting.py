"""Sizes of a world model that nobody has given and that recordings tell: their actions, whether they have poses, how far a step leads.

What is given stays as it is: a size counts as given where it is not the default.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lssvwm_gym.data.collect_gym import read_collection
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.geometry import motion_between
from lssvwm_gym.models.segment import Segment

PLAIN = WorldModelConfig()
LEAST_WAY, LEAST_TURN = 0.1, 0.02  # of the typical way in any direction; radians: directions in which nothing moves have a scale, too


def fitted(config: WorldModelConfig, data: Path, episodes: list[Segment]) -> WorldModelConfig:
    """The sizes for the episodes of a folder, with the actions that `collecting.json` tells.

    Without it actions are numbers, or more than the default, where recorded ones are. Without any pose there is no spatial memory.
    The typical motion is that of the recordings, in folders that `collect gym` has written.
    """
    collection = read_collection(data)
    first, poses = episodes[0], any(bool(one.pose.isfinite().all(1).any()) for one in episodes)
    if (config.actions, config.action_size) == (PLAIN.actions, PLAIN.action_size):
        if first.action.is_floating_point():
            config = replace(config, actions=0, action_size=first.action.shape[1] if first.action.ndim == 2 else 0)
        else:
            largest = max(int(one.action.max()) for one in episodes)
            config = replace(config, actions=len(collection.actions) if collection else max(PLAIN.actions, largest + 1))
    if not poses:
        config = replace(config, memory_features=0)
    elif collection is not None and config.motion_scale == PLAIN.motion_scale and first.pose.shape[1] == PLAIN.pose_size:
        config = replace(config, motion_scale=typical_motion(episodes))
    return config


def typical_motion(episodes: list[Segment]) -> tuple[float, ...]:
    """Root mean square of the recorded motions of a frame: forward and left in world units, turn in radians."""
    motion = torch.cat([motion_between(one.pose[:-1], one.pose[1:]) for one in episodes])
    forward, left, turn = motion[motion.isfinite().all(1)].square().mean(0).sqrt().tolist()
    least = max(LEAST_WAY * max(forward, left), 1e-3)
    return tuple(round(value, 4) for value in (max(forward, least), max(left, least), max(turn, LEAST_TURN)))
