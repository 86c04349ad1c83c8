"""Training clips: walks through recorded episodes, cut into clips that hand their state on.

A walk goes forward through an episode, and in most cases turns round and goes back through the same frames: the poses
say where it is, so the frames on the way back can be known from memory alone. All draws depend on (seed, step) only.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.data.episode import Episode, episode_paths, read_episode
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.geometry import PLANE, motion_between, relative_to, start_pose
from lssvwm_gym.models.world_model import FrameInputs
from lssvwm_gym.training.distributed import ALONE, ProcessGroup


@dataclass(frozen=True)
class Walk:
    """Frames start, start+1, ... and, from step `turn` on, back again; `at` is the step that the next clip begins with."""

    episode: int
    start: int
    turn: int  # steps before the way back
    length: int  # steps in all
    at: int = 0

    def frames(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the next `count` frames in the episode, and whether each was reached by its recorded action."""
        step = np.arange(self.at, self.at + count)
        back = step >= self.turn
        return self.start + np.where(back, 2 * self.turn - 2 - step, step), ~back

    @property
    def done(self) -> bool:
        return self.at >= self.length

    def advanced(self, count: int) -> Walk:
        return replace(self, at=self.at + count)


@dataclass(frozen=True)
class Clip:
    """A batch of clips; entry t speaks of frame t. Poses are seen from the first frame of the walk."""

    latent: Tensor  # (B, T, N, C)
    action: Tensor  # (B, T) int64; the number of actions where unknown
    reward: Tensor  # (B, T) float32
    recorded: Tensor  # (B, T) float; 1 where action and reward are what was recorded, 0 on the way back
    pose: Tensor  # (B, T, 4 or 6)
    motion: Tensor  # (B, T, 3 or 5) since the frame before; zeros at the first frame of a walk
    before: Tensor  # (B, T, V) counts before the frame; on the way back those that the frame was recorded with
    inventory: Tensor  # (B, T, V) counts that go with the frame
    placed: Tensor  # (B, T) float; 1 where poses were recorded, 0 where pose and motion mean nothing


def inputs_of(clip: Clip, level: Tensor, pose_known: Tensor) -> FrameInputs:
    """What the model is told of a clip at the given noise levels and knowledge of poses, both (B, T)."""
    return FrameInputs(level, clip.action, clip.pose, clip.motion, pose_known, clip.before)


@dataclass(frozen=True)
class Episodes:
    """Episodes laid end to end on one device, so that a batch of clips is one gather."""

    lengths: tuple[int, ...]
    start: np.ndarray  # of each episode, in what follows
    whole: LatentEpisode

    @classmethod
    def of(cls, episodes: list[LatentEpisode], device: torch.device | str = "cpu") -> Episodes:
        lengths = tuple(map(len, episodes))
        columns = zip(*(vars(episode).values() for episode in episodes), strict=True)
        return cls(lengths, np.cumsum([0, *lengths[:-1]]), LatentEpisode(*(torch.cat(column).to(device) for column in columns)))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.whole.latent.device

    def index(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def draw_walk(episodes: Episodes, frames: int, clips: int, back: float, rng: np.random.Generator) -> Walk:
    """A walk of up to `clips` clips of `frames` frames; `back` is the share of walks that turn round.

    Raises `ValueError` for an episode that has no whole clip.
    """
    length = frames * int(rng.integers(1, clips + 1))
    episode = int(rng.integers(len(episodes)))
    recorded = episodes.lengths[episode]
    if recorded <= frames:
        raise ValueError(f"an episode of {recorded} frames has no clip of {frames}: choose shorter clips in --curriculum")
    length = min(length, (recorded - 1) // frames * frames)
    if rng.random() < back:
        turn = min(length, length // 2 + 1 + int(rng.integers(max(1, length // 4))))
    else:
        turn = length
    return Walk(episode, int(rng.integers(recorded - turn + 1)), turn, length)


def read_clip(episodes: Episodes, walks: list[Walk], frames: int, unknown_action: int) -> Clip:
    """The next `frames` frames of each walk."""
    offset = np.array([episodes.start[walk.episode] for walk in walks])[:, None]
    numbers, known = (np.stack(column) for column in zip(*(walk.frames(frames) for walk in walks), strict=True))
    last, _ = (np.stack(column) for column in zip(*(replace(walk, at=max(0, walk.at - 1)).frames(1) for walk in walks), strict=True))
    origin = np.array([[walk.start] for walk in walks])
    index, recorded = episodes.index(offset + numbers), episodes.index(known)
    whole = episodes.whole
    pose = relative_to(whole.pose[episodes.index(offset + np.concatenate([last, numbers], 1))], whole.pose[episodes.index(offset + origin)])
    placed = pose.isfinite().flatten(1).all(1)[:, None, None]
    pose = torch.where(placed, pose, start_pose(1, pose.shape[-1], pose.device))
    earlier = episodes.index(offset + np.where(known, np.maximum(numbers - 1, 0), numbers))
    return Clip(
        whole.latent[index].float(),
        _told(whole.action[index], recorded, unknown_action),
        whole.reward[index] * recorded,
        recorded.float(),
        pose[:, 1:],
        motion_between(pose[:, :-1], pose[:, 1:]),
        whole.inventory[earlier],
        whole.inventory[index],
        placed.squeeze(2).float().expand(index.shape),
    )


def _told(action: Tensor, recorded: Tensor, unknown: int) -> Tensor:
    """Actions (B, T) or, continuous, (B, T, A), as the model is told them where they were not the recorded ones."""
    if action.is_floating_point():
        return torch.where(recorded.unsqueeze(-1), action, torch.nan)
    return torch.where(recorded, action, unknown)


def latent_episodes(folder: Path, autoencoder: Autoencoder, cache: Path, team: ProcessGroup = ALONE) -> list[LatentEpisode]:
    """Encode all episodes of a folder, or read them from the cache; the cache is kept apart by the autoencoder's weights.

    Each process of a team encodes its share of the episodes, and reads what the others have encoded.
    """
    cache, paths = cache / autoencoder_hash(autoencoder), episode_paths(folder)
    progress = functools.partial(tqdm, desc=f"latents of {folder.name}", leave=False, disable=not team.leads)
    if team.size > 1:
        for path in progress(paths[team.share(len(paths))]):
            _latent_episode(path, autoencoder, cache)
        team.wait()
    return [_latent_episode(path, autoencoder, cache) for path in progress(paths)]


def _latent_episode(path: Path, autoencoder: Autoencoder, cache: Path) -> LatentEpisode:
    stored = cache / path.parent.name / f"{path.stem}.safetensors"
    stamp = {"source": str(path.resolve()), "bytes": path.stat().st_size, "holds": [field.name for field in fields(LatentEpisode)]}
    if stored.exists():
        tensors, header = load_tensors(stored)
        if header == stamp:
            return _stored_episode(tensors, stored)
    episode = encode_episode(path, autoencoder)
    save_tensors(stored, vars(episode), stamp)
    return episode


def _stored_episode(tensors: dict[str, Tensor], stored: Path) -> LatentEpisode:
    frames = {name: tensor.shape[:1] for name, tensor in tensors.items()}
    if frames.keys() != {field.name for field in fields(LatentEpisode)} or len(set(frames.values())) != 1:
        raise TensorFileError(f"{stored}: not the latents of an episode; delete it, and they are made again")
    return LatentEpisode(**tensors)


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """Latents of equal encoders are equal."""
    digest = hashlib.sha256()
    for tensor in autoencoder.encoder.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class LatentEpisode:
    """An episode as the world model sees it."""

    latent: Tensor  # (T, N, C) float16
    action: Tensor  # (T,) int64, or (T, A) float32
    reward: Tensor  # (T,) float32
    pose: Tensor  # (T, 4 or 6) float32, in world units; NaN where not recorded
    inventory: Tensor  # (T, V) float32, counts that go with a frame, such as an inventory; V is 0 where there are none

    def __len__(self) -> int:
        return len(self.latent)


def encode_episode(path: Path, autoencoder: Autoencoder) -> LatentEpisode:
    """Read an episode and encode its frames."""
    return encoded(read_episode(path), autoencoder)


@torch.no_grad()
def encoded(episode: Episode, autoencoder: Autoencoder, part: slice = slice(None)) -> LatentEpisode:
    """Encode an episode's frames, or a part of them."""
    device = autoencoder.latent_mean.device
    frames = torch.from_numpy(episode.frames[part]).split(100)
    latent = torch.cat([autoencoder.encode(batch.to(device)) for batch in frames])
    pose = np.full((len(episode), PLANE), np.nan, np.float32) if episode.pose is None else episode.pose
    whole = episode.action.dtype.kind in "iu"
    numbers = (episode.action.astype(np.int64 if whole else np.float32), episode.reward, pose, episode.inventory)
    return LatentEpisode(latent.half(), *(torch.from_numpy(array[part]) for array in numbers))


@torch.no_grad()
def mirrored(episode: LatentEpisode, autoencoder: Autoencoder, actions: tuple[int, ...]) -> LatentEpisode:
    """What the episode looks like in a mirror; `actions` names each action's mirror image.

    The frames are those that the autoencoder makes of the latents. Raises `ValueError` if `actions` is no exchange of the
    actions that are in the episode.
    """
    if any(not 0 <= other < len(actions) or actions[other] != action for action, other in enumerate(actions)):
        raise ValueError(f"mirror must name each action's mirror image, and that one's image the action; got {actions}")
    if int(episode.action.max()) >= len(actions):
        raise ValueError(f"mirror names {len(actions)} actions, but an episode has action {int(episode.action.max())}")
    device = autoencoder.latent_mean.device
    batches = episode.latent.float().split(100)
    latent = torch.cat([autoencoder.encode(autoencoder.decode(batch.to(device)).flip(2)).cpu() for batch in batches])
    action = torch.tensor(actions)[episode.action]
    return LatentEpisode(latent.half(), action, episode.reward, _mirrored_pose(episode.pose), episode.inventory)


def _mirrored_pose(pose: Tensor) -> Tensor:
    sign = torch.ones(pose.shape[-1])
    sign[[1, 3]] = -1  # y and the sine of the heading
    return pose * sign
