"""Options of `reset`, which `DreamEnv` lists: how a dream starts, the real past that they ask for."""

import operator
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.episode import Episode, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.envs.spaces import checked_options
from lssvwm_gym.models.geometry import relative_to, start_pose
from lssvwm_gym.models.rollout import unknown_action
from lssvwm_gym.models.segment import ABSENT, Segment
from lssvwm_gym.worlds import WorldSpec

EPISODE_FRAMES = 32  # of an episode where context_frames doesn't say
COMBINATIONS = ((), ("context_frames",), ("context_id",), ("episode",), ("context_frames", "episode"), ("start",))
INVENTORY = "inventory"  # beside any of them: what is carried when the dream begins


class LongContexts(NamedTuple):
    """The first frames of long contexts that come with the weights; `recorded` is the past that one of them is."""

    contexts: list[int]  # a row each
    frames: int


def choose_past(weights: Weights, seeds: Tensor, options: Mapping[str, Any] | None) -> Segment | LongContexts | None:
    """The past of every row for seeds (B,); None for a cold start.

    An option of None is one not given. Raises `ValueError` for options that don't exist, contradict each other or are out of range.
    """
    options = {name: value for name, value in checked_options(options).items() if value is not None}
    if tuple(sorted(map(str, options))) not in COMBINATIONS:
        known, given = set(chain.from_iterable(COMBINATIONS)), ", ".join(map(str, options))
        problem = "can't combine the" if options.keys() <= known else "knows no"
        there_are = ", ".join("{" + ", ".join(keys) + "}" for keys in COMBINATIONS)
        raise ValueError(f"reset {problem} options {{{given}}}; it takes one of {there_are}")
    if "start" in options:
        if not isinstance(start := options["start"], str) or start != "cold":
            raise ValueError(f"the option start can only be 'cold', not {start!r}; leave it out to start from a short context")
        return None
    if "episode" in options:
        return _past_of_episode(weights, len(seeds), options["episode"], options.get("context_frames"))
    if "context_frames" in options:
        long = weights.long_contexts
        if not long.batch:
            raise ValueError("these weights come without long contexts, so context_frames needs an episode of your own beside it")
        because = f"the long contexts have {len(long)} frames"
        return LongContexts(_drawn(seeds, long.batch), _whole_number("context_frames", options["context_frames"], 1, len(long), because))
    return _short(weights.short_contexts, seeds, options.get("context_id"))


def split_inventory(world: WorldSpec, weights: Weights, options: Mapping[str, Any] | None) -> tuple[dict[str, Any], Tensor | None]:
    """Options without `inventory`, and that as float32 (V,), None where it isn't given.

    Raises `ValueError` where this world has none, and for anything but as many numbers as it has, within their range.
    """
    others = dict(checked_options(options))
    given = others.pop(INVENTORY, None)
    if given is None:
        return others, None
    if not world.inventory:
        raise ValueError(f"nothing is carried in {world.name}, so a dream of it can't begin with an inventory")
    bounds = weights.world_model.config.inventory_range or ((0, world.max_inventory or np.inf),) * len(world.inventory)
    least, most = np.array(bounds).T
    counts = np.asarray(given)
    fits = counts.shape == least.shape and counts.dtype.kind in ("iu" if world.max_inventory else "iuf")
    if not fits or not ((counts >= least) & (counts <= most)).all():
        names = ", ".join(f"{name} {low:g}..{high:g}" for name, low, high in zip(world.inventory, least, most, strict=True))
        kind = "whole numbers" if world.max_inventory else "numbers"
        raise ValueError(f"the option inventory must be {len(least)} {kind}: {names}; not {given!r}")
    return others, torch.from_numpy(counts.astype(np.float32))


def _short(contexts: Segment, seeds: Tensor, context_id: Any) -> Segment:
    if not contexts.batch:
        raise ValueError("these weights come without short contexts: reset with options={'start': 'cold'}")
    if context_id is None:
        return recorded(contexts, _drawn(seeds, contexts.batch), len(contexts))
    context_id = _whole_number("context_id", context_id, 0, contexts.batch - 1, f"there are {contexts.batch} short contexts")
    return recorded(contexts, [context_id] * len(seeds), len(contexts))


def _past_of_episode(weights: Weights, rows: int, path: Any, frames: Any) -> Segment:
    if not isinstance(path, str | Path):
        raise ValueError(f"the option episode is the path of a recorded episode, not {path!r}")
    episode = read_episode(path)
    _check_episode(episode, path, weights)
    frames = min(EPISODE_FRAMES, len(episode)) if frames is None else frames
    frames = _whole_number("context_frames", frames, 1, len(episode), f"{path} has {len(episode)} frames")
    return past_of(*(x[None].expand(rows, *x.shape) for x in _encoded(episode, frames, weights)))


def _check_episode(episode: Episode, path: str | Path, weights: Weights) -> None:
    side, model = weights.autoencoder.config.image_size, weights.world_model.config
    if episode.frames.shape[1:3] != (side, side):
        raise ValueError(f"{path}: frames of {episode.frames.shape[1:3]} pixels; this world's are {(side, side)}")
    if episode.inventory.shape[1] != model.inventory_size:
        raise ValueError(f"{path}: an inventory of {episode.inventory.shape[1]} counts a frame; this world's has {model.inventory_size}")
    taken, actions = episode.action[1:], model.actions
    if model.action_size:
        if taken.ndim != 2 or taken.shape[1] != model.action_size:
            raise ValueError(f"{path}: actions must be {model.action_size} numbers a frame, not {taken.shape[1:]}")
    elif taken.ndim != 1 or taken.dtype.kind not in "iu" or (len(taken) and not 0 <= taken.min() <= taken.max() < actions):
        raise ValueError(f"{path}: actions must be whole numbers 0..{actions - 1}, a frame one")


def _encoded(episode: Episode, frames: int, weights: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, actions, world poses and counts of the first frames; NaN where the episode has no poses."""
    part = encoded(episode, weights.autoencoder, slice(frames))
    action = part.action.float() if weights.world_model.config.action_size else part.action.clone()
    action[0] = unknown_action(weights.world_model, 1)[0]  # the first is a placeholder
    device, size = weights.world_model.token_in.weight.device, weights.world_model.config.pose_size
    pose = part.pose if part.pose.shape[1] == size else part.pose.new_full((frames, size), torch.nan)
    return part.latent.float(), action.to(device), pose.to(device), part.inventory.to(device)


def recorded(contexts: Segment, index: list[int], frames: int) -> Segment:
    """The first frames of some contexts, as the past of a row each."""
    part = contexts.take(index)[:frames]
    return past_of(part.latent.float(), part.action, part.pose, part.inventory, part.inventory_peak)


def past_of(latent: Tensor, action: Tensor, pose: Tensor, inventory: Tensor, inventory_peak: Tensor = ABSENT) -> Segment:
    """Recorded frames as a past: poses (B, T, 4 or 6) in world units, in rows of which nothing is known NaN.

    `inventory_peak` (B, T, V) is left out where the frames are an episode's first.
    """
    known = pose.isfinite().flatten(1).all(1)
    pose = torch.where(known[:, None, None], relative_to(pose, pose[:, :1]), start_pose(1, pose.shape[-1], pose.device))
    pose_known = known.float()[:, None].expand(pose.shape[:2])
    return Segment(latent, action, pose=pose, inventory=inventory, inventory_peak=inventory_peak, pose_known=pose_known)


def _drawn(seeds: Tensor, count: int) -> list[int]:
    return [int(np.random.default_rng(seed).integers(count)) for seed in seeds.tolist()]


def _whole_number(name: str, value: Any, least: int, most: int, because: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"the option {name} must be a whole number {least}..{most} ({because}), not {value!r}")
    return number
