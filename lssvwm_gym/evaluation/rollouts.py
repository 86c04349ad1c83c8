"""Segment of real episodes, and dreams along them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.data.segments import encode_episode
from lssvwm_gym.models.geometry import motion_between, relative_to, start_pose
from lssvwm_gym.models.rollout import DreamState, commit, first_state, follow, imagine, remember, watch
from lssvwm_gym.models.segment import Segment, joined
from lssvwm_gym.models.world_model import WorldModel

TOGETHER = 100  # frames remembered in one go, to bound memory


def read_real_episodes(folder: Path, weights: Weights) -> list[Segment]:
    """All episodes of a folder, encoded by the weights' autoencoder."""
    paths = tqdm(episode_paths(folder), desc="reading", leave=False)
    episodes = ((read_episode(path), path) for path in paths)
    return [replace(encode_episode(path, weights.autoencoder), frames=torch.from_numpy(episode.frames)) for episode, path in episodes]


def cut_clips(episodes: list[Segment], frames: int, per_episode: int) -> Segment:
    """`per_episode` evenly spaced clips of `frames` frames from every episode that is long enough."""
    places = []
    for episode in episodes:
        room = len(episode.frames) - frames
        if room >= 0:
            places += [(episode, int(start)) for start in np.linspace(0, room, per_episode).round()]
    if not places:
        raise ValueError(f"no episode has the {frames} frames that this test needs")
    return clips_at(places, frames)


def clips_at(places: list[tuple[Segment, int]], frames: int) -> Segment:
    """The clips of `frames` frames that begin at the given frames of episodes."""
    return joined([_cut(episode, start, frames) for episode, start in places])


def there_and_back(clips: Segment, unknown_action: int) -> Segment:
    """Each clip followed by its own frames in reverse, without the turning point: 2T - 1 frames."""
    frames = len(clips)
    order = torch.cat([torch.arange(frames), torch.arange(frames - 2, -1, -1)])
    pose = clips.pose[:, order]
    before = torch.cat([pose[:, :1], pose[:, :-1]], 1)
    action = torch.where(torch.arange(len(order)) < frames, clips.action[:, order], unknown_action)
    reward = clips.reward[:, order] * (torch.arange(len(order)) < frames)
    inventory = clips.inventory[:, order]
    counts = torch.cat([clips.before, inventory[:, frames:]], 1)
    motion, known = motion_between(before, pose), clips.pose_known[:, order]
    latent, pictures = clips.latent[:, order], clips.frames[:, order]
    return Segment(latent, action, reward, pose, inventory, counts, motion, known, frames=pictures)


def remember_clips(model: WorldModel, clips: Segment, seed: int = 0) -> DreamState:
    """The state after a real past."""
    state = _before(model, clips, seed)
    for start in range(0, len(clips), TOGETHER):
        part = clips[start : start + TOGETHER]
        state = remember(model, state, part.latent, part.action, part.pose, part.inventory)
    return state


def features_along(model: WorldModel, state: DreamState, clips: Segment) -> tuple[Tensor, DreamState]:
    """Features (B, T, FEATURES) of real frames that follow a state, as the heads read them, and the state after."""
    features = []
    for start in range(0, len(clips), TOGETHER):
        part = clips[start : start + TOGETHER]
        state, seen = watch(model, state, part.latent, part.action, part.pose, part.inventory)
        features.append(seen)
    return torch.cat(features, 1), state


def reckon_clips(model: WorldModel, clips: Segment, seed: int = 0, sees: bool = True) -> tuple[DreamState, Tensor]:
    """The state after a real past whose poses nobody tells (see `follow`), and where the model believed to be, (B, T, 4 or 6)."""
    state, poses = _before(model, clips, seed), []
    for t in tqdm(range(len(clips)), desc="reckoning", leave=False):
        state = follow(model, state, clips.latent[:, t], clips.action[:, t], sees)
        poses.append(state.pose)
    return state, torch.stack(poses, 1)


class Dream(NamedTuple):
    """Dreamed frames; entry t speaks of frame t."""

    latent: Tensor  # (B, T, N, C)
    motion: Tensor  # (B, T, 3 or 5)
    uncertainty: Tensor  # (B, T)
    pose: Tensor  # (B, T, 4 or 6) where the model believed to be
    inventory: Tensor  # (B, T, V) counts that the model believed in


def dream_along(model: WorldModel, state: DreamState, clips: Segment, steps: int, true_motion: bool) -> tuple[Dream, DreamState]:
    """Dream a clip's actions from a state: what was dreamed, and the state at the end.

    The motion is the recorded one, or the one that the model believes in; either is advanced from the state's own pose.
    """
    dreamed = []
    for t in tqdm(range(len(clips)), desc="dreaming", leave=False):
        action = clips.action[:, t]
        imagined = imagine(model, state, action, steps, clips.motion[:, t] if true_motion else None)
        state = commit(model, state, action, imagined)
        dreamed.append(Dream(imagined.latent, imagined.motion, imagined.uncertainty, state.pose, state.inventory))
    return Dream(*(torch.stack(column, 1) for column in zip(*dreamed, strict=True))), state


def dream_at_poses(model: WorldModel, state: DreamState, clips: Segment, steps: int) -> Tensor:
    """Dream at a clip's poses and motions; the dreamed frames become the past. (B, T, N, C)"""
    latents = []
    for t in tqdm(range(len(clips)), desc="dreaming at poses", leave=False):
        action, motion, pose = clips.action[:, t], clips.motion[:, t], clips.pose[:, t]
        latent = imagine(model, state, action, steps, motion, pose).latent
        state = remember(model, state, latent[:, None], action[:, None], pose[:, None], clips.inventory[:, t : t + 1])
        latents.append(latent)
    return torch.stack(latents, 1)


def memory_of(state: DreamState, stranger: int | None) -> DreamState:
    """The same state with all that is remembered of the row `stranger` rows before, or of nothing; attention's window stays."""

    def other(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if stranger is None else tensor.roll(stranger, 0)

    world = tree_map(other, state.world)
    layers = zip(world.layers, state.world.layers, strict=True)
    seen = tuple(theirs._replace(keys=mine.keys, values=mine.values) for theirs, mine in layers)
    return state._replace(world=world._replace(layers=seen, age=state.world.age))


def decode_clips(weights: Weights, latent: Tensor) -> Tensor:
    """Latents (B, T, N, C) to frames (B, T, height, width, 3) uint8."""
    frames = [weights.autoencoder.decode(part) for part in latent.flatten(0, 1).split(256)]
    return torch.cat(frames).unflatten(0, latent.shape[:2])


def _before(model: WorldModel, clips: Segment, seed: int) -> DreamState:
    """The state before any frame of the clips, with the counts that were before the first."""
    state = first_state(model, torch.arange(len(clips.frames)) + 1000 * seed)
    return state._replace(inventory=clips.before[:, 0], pose_known=clips.pose_known[:, 0])


def _cut(episode: Segment, start: int, frames: int) -> Segment:
    real = episode[start : start + frames]
    pose = relative_to(real.pose, real.pose[0])
    known = bool(pose.isfinite().all())
    pose = pose if known else start_pose(frames, pose.shape[1])
    motion = motion_between(torch.cat([pose[:1], pose[:-1]]), pose)
    before = episode.inventory[max(0, start - 1)][None]
    counts = torch.cat([before, real.inventory[:-1]])
    latent, told = real.latent.float(), torch.full((frames,), float(known))
    return Segment(latent, real.action, real.reward, pose, real.inventory, counts, motion, told, frames=real.frames)
