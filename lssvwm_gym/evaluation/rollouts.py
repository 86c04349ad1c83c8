"""Segments of real episodes, the state after them, and dreams along them."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.models.geometry import motion_between, relative_to, start_pose
from lssvwm_gym.models.rollout import Prefilled, commit, first_state, imagine, prefill
from lssvwm_gym.models.segment import Segment, joined
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel


def read_encoded(paths: list[Path], weights: Weights) -> list[Segment]:
    """Some episodes, encoded by the weights' autoencoder."""
    episodes = map(read_episode, tqdm(paths, desc="reading", leave=False))
    return [replace(encoded(episode, weights.autoencoder), frames=torch.from_numpy(episode.frames)) for episode in episodes]


def cut_clips(episodes: list[Segment], frames: int, per_episode: int) -> Segment:
    """`per_episode` evenly spaced clips of `frames` frames from every episode that is long enough."""
    rooms = [(episode, len(episode.frames) - frames) for episode in episodes]
    places = [(episode, int(start)) for episode, room in rooms if room >= 0 for start in np.linspace(0, room, per_episode).round()]
    if not places:
        raise ValueError(f"no episode has the {frames} frames that this test needs")
    return clips_at(places, frames)


def clips_at(places: list[tuple[Segment, int]], frames: int) -> Segment:
    """The clips of `frames` frames that begin at the given frames of episodes."""
    return joined([_cut(episode, start, frames) for episode, start in places])


def with_reversal(clips: Segment, unknown_action: int) -> Segment:
    """Each clip followed by its reversed trajectory, without the turning point: 2T - 1 frames."""
    frames = len(clips)
    both = clips[torch.cat([torch.arange(frames), torch.arange(frames - 2, -1, -1)])]
    forward = torch.arange(len(both)) < frames
    return replace(
        both,
        action=torch.where(forward, both.action, unknown_action),
        reward=both.reward * forward,
        before=torch.cat([clips.before, both.inventory[:, frames:]], 1),
        motion=motion_between(torch.cat([both.pose[:, :1], both.pose[:, :-1]], 1), both.pose),
    )


def prefill_clips(model: WorldModel, clips: Segment, seed: int = 0) -> DreamState:
    """The state after real frames at their true poses."""
    return prefill_further(model, _before(model, clips, seed), clips).state


def prefill_further(model: WorldModel, state: DreamState, clips: Segment) -> Prefilled:
    """What comes of more real frames, at their true poses, after a state: their features, and the next state."""
    return prefill(model, state, clips.latent, clips.action, clips.pose, clips.inventory)


def prefill_without_poses(model: WorldModel, clips: Segment, seed: int = 0, odometry: bool = True) -> Prefilled:
    """The state after real frames whose poses are estimated, by dead reckoning and with `odometry` by what they show; and these poses."""
    return prefill(model, _before(model, clips, seed), clips.latent, clips.action, odometry=odometry)


class DreamedFrames(NamedTuple):
    """What was dreamed; entry t speaks of frame t."""

    latent: Tensor  # (B, T, N, C)
    motion: Tensor  # (B, T, 3 or 5)
    uncertainty: Tensor  # (B, T)
    pose: Tensor  # (B, T, 4 or 6) estimated
    inventory: Tensor  # (B, T, V) estimated
    features: Tensor  # (B, T, FEATURES)


def dream_along(model: WorldModel, state: DreamState, clips: Segment, steps: int, true_motion: bool) -> tuple[DreamedFrames, DreamState]:
    """Dream a clip's actions from a state: what was dreamed, and the state at the end.

    The motion is the recorded one, or the one that the model estimates; either is integrated from the state's own pose.
    """
    dreamed = []
    for t in tqdm(range(len(clips)), desc="dreaming", leave=False):
        action = clips.action[:, t]
        imagined = imagine(model, state, action, steps, clips.motion[:, t] if true_motion else None)
        state = commit(model, state, action, imagined)
        dreamed.append(DreamedFrames(imagined.latent, imagined.motion, imagined.uncertainty, state.pose, state.inventory, state.features))
    return DreamedFrames(*(torch.stack(column, 1) for column in zip(*dreamed, strict=True))), state


def dream_at_poses(model: WorldModel, state: DreamState, clips: Segment, steps: int) -> Tensor:
    """Dream at a clip's poses and motions; each dreamed frame is fed into the state at its pose. (B, T, N, C)"""
    latents = []
    for t in tqdm(range(len(clips)), desc="dreaming at poses", leave=False):
        action, motion, pose = clips.action[:, t], clips.motion[:, t], clips.pose[:, t]
        latent = imagine(model, state, action, steps, motion, pose).latent
        state = prefill(model, state, latent[:, None], action[:, None], pose[:, None], clips.inventory[:, t : t + 1], imagines=False).state
        latents.append(latent)
    return torch.stack(latents, 1)


def memory_of(state: DreamState, stranger: int | None) -> DreamState:
    """The same state with the memory, map included, of the row `stranger` rows before, or an empty one; attention's window stays."""

    def other(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if stranger is None else tensor.roll(stranger, 0)

    world = tree_map(other, state.world)
    layers = zip(world.layers, state.world.layers, strict=True)
    seen = tuple(theirs._replace(keys=mine.keys, values=mine.values) for theirs, mine in layers)
    maps = {name: other(getattr(state, name)) for name in ("map", "layout", "lattice")}
    return state._replace(world=world._replace(layers=seen, age=state.world.age), **maps)


def decode_clips(weights: Weights, latent: Tensor) -> Tensor:
    """Latents (B, T, N, C) to frames (B, T, height, width, 3) uint8."""
    return torch.cat([weights.autoencoder.decode(part) for part in latent.flatten(0, 1).split(256)]).unflatten(0, latent.shape[:2])


def _before(model: WorldModel, clips: Segment, seed: int) -> DreamState:
    """The state before any frame of the clips, with the inventory before the first."""
    state = first_state(model, torch.arange(len(clips.frames)) + 1000 * seed)
    return state._replace(inventory=clips.before[:, 0], pose_known=clips.pose_known[:, 0])


def _cut(episode: Segment, start: int, frames: int) -> Segment:
    real = episode[start : start + frames]
    pose = relative_to(real.pose, real.pose[0])
    known = bool(pose.isfinite().all())
    pose = pose if known else start_pose(frames, pose.shape[1])
    motion = motion_between(torch.cat([pose[:1], pose[:-1]]), pose)
    counts = torch.cat([episode.inventory[max(0, start - 1)][None], real.inventory[:-1]])
    pose_known = torch.full((frames,), float(known))
    return replace(real, latent=real.latent.float(), pose=pose, before=counts, motion=motion, pose_known=pose_known)
