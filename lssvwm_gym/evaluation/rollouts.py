"""Clips of real episodes, the state after them, and dreams along them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.data.segments import LatentEpisode, encode_episode
from lssvwm_gym.models.geometry import motion_between, relative_to, start_pose
from lssvwm_gym.models.rollout import DreamState, Prefilled, commit, first_state, imagine, prefill
from lssvwm_gym.models.world_model import WorldModel


@dataclass(frozen=True)
class RealEpisode:
    """A real episode, in pixels and as the model sees it."""

    frames: Tensor  # (T, height, width, 3) uint8
    latent: LatentEpisode


@dataclass(frozen=True)
class Clips:
    """Real clips of one length; entry t speaks of frame t. Poses are seen from the first frame."""

    frames: Tensor  # (B, T, height, width, 3) uint8
    latent: Tensor  # (B, T, N, C)
    action: Tensor  # (B, T) int64, or (B, T, A) float
    reward: Tensor  # (B, T)
    pose: Tensor  # (B, T, 4 or 6); that of the first frame throughout where none were recorded
    motion: Tensor  # (B, T, 3 or 5)
    before: Tensor  # (B, T, V) counts before each frame; on a way back those that the frame was recorded with
    inventory: Tensor  # (B, T, V) counts that go with each frame
    pose_known: Tensor  # (B, T) float, 0 where no poses were recorded

    def __getitem__(self, frames: slice) -> Clips:
        return Clips(*(tensor[:, frames] for tensor in vars(self).values()))

    def __len__(self) -> int:
        return self.frames.shape[1]


def read_real_episodes(folder: Path, weights: Weights) -> list[RealEpisode]:
    """All episodes of a folder, encoded by the weights' autoencoder."""
    paths = tqdm(episode_paths(folder), desc="reading", leave=False)
    return [RealEpisode(torch.from_numpy(read_episode(path).frames), encode_episode(path, weights.autoencoder)) for path in paths]


def cut_clips(episodes: list[RealEpisode], frames: int, per_episode: int) -> Clips:
    """`per_episode` evenly spaced clips of `frames` frames from every episode that is long enough."""
    places = []
    for episode in episodes:
        room = len(episode.frames) - frames
        if room >= 0:
            places += [(episode, int(start)) for start in np.linspace(0, room, per_episode).round()]
    if not places:
        raise ValueError(f"no episode has the {frames} frames that this test needs")
    return clips_at(places, frames)


def clips_at(places: list[tuple[RealEpisode, int]], frames: int) -> Clips:
    """The clips of `frames` frames that begin at the given frames of episodes."""
    return Clips(*(torch.stack(column) for column in zip(*(_cut(e, s, frames) for e, s in places), strict=True)))


def with_reversal(clips: Clips, unknown_action: int) -> Clips:
    """Each clip followed by its reversed trajectory, without the turning point: 2T - 1 frames."""
    frames = len(clips)
    order = torch.cat([torch.arange(frames), torch.arange(frames - 2, -1, -1)])
    pose = clips.pose[:, order]
    before = torch.cat([pose[:, :1], pose[:, :-1]], 1)
    action = torch.where(torch.arange(len(order)) < frames, clips.action[:, order], unknown_action)
    reward = clips.reward[:, order] * (torch.arange(len(order)) < frames)
    inventory = clips.inventory[:, order]
    counts = torch.cat([clips.before, inventory[:, frames:]], 1)
    motion, known = motion_between(before, pose), clips.pose_known[:, order]
    return Clips(clips.frames[:, order], clips.latent[:, order], action, reward, pose, motion, counts, inventory, known)


def prefill_clips(model: WorldModel, clips: Clips, seed: int = 0) -> DreamState:
    """The state after real frames at their true poses."""
    state = _before(model, clips, seed)
    return prefill(model, state, clips.latent, clips.action, clips.pose, clips.inventory).state


def prefill_further(model: WorldModel, state: DreamState, clips: Clips) -> Prefilled:
    """What comes of more real frames, at their true poses, after a state: their features, and the next state."""
    return prefill(model, state, clips.latent, clips.action, clips.pose, clips.inventory)


def prefill_without_poses(model: WorldModel, clips: Clips, seed: int = 0, odometry: bool = True) -> Prefilled:
    """The state after real frames whose poses are estimated, by dead reckoning and with `odometry` by what they show; and these poses."""
    return prefill(model, _before(model, clips, seed), clips.latent, clips.action, odometry=odometry)


class DreamedFrames(NamedTuple):
    """What was dreamed; entry t speaks of frame t."""

    latent: Tensor  # (B, T, N, C)
    motion: Tensor  # (B, T, 3 or 5)
    uncertainty: Tensor  # (B, T)
    pose: Tensor  # (B, T, 4 or 6) estimated
    inventory: Tensor  # (B, T, V) estimated


def dream_along(model: WorldModel, state: DreamState, clips: Clips, steps: int, true_motion: bool) -> tuple[DreamedFrames, DreamState]:
    """Dream a clip's actions from a state: what was dreamed, and the state at the end.

    The motion is the recorded one, or the one that the model estimates; either is integrated from the state's own pose.
    """
    dreamed = []
    for t in tqdm(range(len(clips)), desc="dreaming", leave=False):
        action = clips.action[:, t]
        imagined = imagine(model, state, action, steps, clips.motion[:, t] if true_motion else None)
        state = commit(model, state, action, imagined)
        dreamed.append(DreamedFrames(imagined.latent, imagined.motion, imagined.uncertainty, state.pose, state.inventory))
    return DreamedFrames(*(torch.stack(column, 1) for column in zip(*dreamed, strict=True))), state


def dream_at_poses(model: WorldModel, state: DreamState, clips: Clips, steps: int) -> Tensor:
    """Dream at a clip's poses and motions; each dreamed frame is fed into the state at its pose. (B, T, N, C)"""
    latents = []
    for t in tqdm(range(len(clips)), desc="dreaming at poses", leave=False):
        action, motion, pose = clips.action[:, t], clips.motion[:, t], clips.pose[:, t]
        latent = imagine(model, state, action, steps, motion, pose).latent
        state = prefill(model, state, latent[:, None], action[:, None], pose[:, None], clips.inventory[:, t : t + 1]).state
        latents.append(latent)
    return torch.stack(latents, 1)


def memory_of(state: DreamState, stranger: int | None) -> DreamState:
    """The same state with the memory of the row `stranger` rows before, or an empty one; attention's window stays."""

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


def _before(model: WorldModel, clips: Clips, seed: int) -> DreamState:
    """The state before any frame of the clips, with the inventory before the first."""
    state = first_state(model, torch.arange(len(clips.frames)) + 1000 * seed)
    return state._replace(inventory=clips.before[:, 0], pose_known=clips.pose_known[:, 0])


def _cut(episode: RealEpisode, start: int, frames: int) -> tuple[Tensor, ...]:
    part, real = slice(start, start + frames), episode.latent
    pose = relative_to(real.pose[part], real.pose[start])
    known = bool(pose.isfinite().all())
    pose = pose if known else start_pose(frames, pose.shape[1])
    motion = motion_between(torch.cat([pose[:1], pose[:-1]]), pose)
    inventory = real.inventory[max(0, start - 1) : start + frames]
    inventory = torch.cat([inventory[:1], inventory]) if start == 0 else inventory
    latent, action, reward = real.latent[part].float(), real.action[part], real.reward[part]
    return episode.frames[part], latent, action, reward, pose, motion, inventory[:-1], inventory[1:], torch.full((frames,), float(known))
