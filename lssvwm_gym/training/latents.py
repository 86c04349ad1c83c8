"""Episodes as latents, encoded once and kept beside a training run; and how much an error in a latent shows in the picture.

Latents hold much that hardly shows (an isotropic error of 0.36 decodes to 27.5 dB, a blurred frame's error of the same
size to 23 dB). J is the decoder's Jacobian; E[J^T J] weighs a latent error as the mean square error of the picture does.
"""

import functools
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.distributed import ALONE, ProcessGroup

HOLDS = ("latent", "action", "reward", "pose", "inventory", "terminated")  # of an episode
STEP = 0.1  # of the finite differences, in latent units


def latent_episodes(
    folder: Path, autoencoder: Autoencoder, cache: Path, group: ProcessGroup = ALONE, mirrored: bool = False
) -> list[Segment]:
    """Encode all episodes of a folder, or read them from the cache; the cache is kept apart by the autoencoder's weights.

    With `mirrored`, latents are of the frames in a mirror; all else is as it was recorded. Each process of a group encodes its share of
    the episodes, and reads what the others have encoded.
    """
    cache, paths = cache / autoencoder_hash(autoencoder) / ("mirrored" if mirrored else ""), episode_paths(folder)
    progress = functools.partial(tqdm, desc=f"latents of {folder.name}", leave=False, disable=not group.is_main_process)
    if group.num_processes > 1:
        for path in progress(paths[group.share(len(paths))]):
            _latent_episode(path, autoencoder, cache, mirrored)
        group.wait()
    return [_latent_episode(path, autoencoder, cache, mirrored) for path in progress(paths)]


def _latent_episode(path: Path, autoencoder: Autoencoder, cache: Path, mirrored: bool) -> Segment:
    stored = cache / path.parent.name / f"{path.stem}.safetensors"
    stamp = {"source": str(path.resolve()), "bytes": path.stat().st_size, "holds": list(HOLDS)}
    if stored.exists():
        tensors, header = load_tensors(stored)
        if header == stamp:
            frames = {name: tensor.shape[:1] for name, tensor in tensors.items()}
            if frames.keys() != set(HOLDS) or len(set(frames.values())) != 1:
                raise TensorFileError(f"{stored}: not the latents of an episode; delete it, and they are made again")
            return Segment(**tensors)
    recorded = read_episode(path)
    pictures = np.ascontiguousarray(recorded.frames[:, :, ::-1]) if mirrored else recorded.frames
    episode = encoded(replace(recorded, frames=pictures), autoencoder)
    save_tensors(stored, episode.parts(), stamp)
    return episode


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """Latents of equal encoders are equal."""
    digest = hashlib.sha256()
    for tensor in autoencoder.encoder.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def latent_metric(autoencoder: Autoencoder, episodes: list[Segment], cache: Path, frames: int = 24) -> Tensor:
    """E[J^T J] over frames spread over the episodes, scaled to a mean of 1 on the diagonal: (N * C, N * C) float32."""
    if cache.exists():
        stored, _ = load_tensors(cache)
        if stored.keys() != {"metric"}:
            raise TensorFileError(f"{cache}: not the metric of an autoencoder; delete it, and it is measured again")
        return stored["metric"]
    spread = torch.linspace(0, len(episodes) - 1, frames).round().long().tolist()
    latents = [episodes[number].latent[len(episodes[number]) // 2].float() for number in spread]
    metric = torch.stack([_of_frame(autoencoder, latent) for latent in latents]).mean(0)
    metric = metric / metric.diagonal().mean()
    save_tensors(cache, {"metric": metric}, {"frames": frames})
    return metric


@torch.no_grad()
def _of_frame(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    """J^T J at one frame (N, C), by finite differences."""
    moved = latent + STEP * torch.eye(latent.numel()).view(-1, *latent.shape)
    before = autoencoder.decode_smoothly(latent[None]).flatten()
    jacobian = torch.cat([autoencoder.decode_smoothly(part).flatten(1) for part in moved.split(64)]) - before
    return jacobian @ jacobian.T
