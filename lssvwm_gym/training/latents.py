"""Episodes as latents, encoded once and kept beside a training run."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.data.episode import episode_paths
from lssvwm_gym.data.segments import encode_episode
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training.distributed import ALONE, ProcessGroup

HOLDS = ("latent", "action", "reward", "pose", "inventory")  # of an episode


def latent_episodes(folder: Path, autoencoder: Autoencoder, cache: Path, group: ProcessGroup = ALONE) -> list[Segment]:
    """Encode all episodes of a folder, or read them from the cache; the cache is kept apart by the autoencoder's weights.

    Each process of a group encodes its share of the episodes, and reads what the others have encoded.
    """
    cache, paths = cache / autoencoder_hash(autoencoder), episode_paths(folder)
    progress = functools.partial(tqdm, desc=f"latents of {folder.name}", leave=False, disable=not group.is_main_process)
    if group.num_processes > 1:
        for path in progress(paths[group.share(len(paths))]):
            _latent_episode(path, autoencoder, cache)
        group.wait()
    return [_latent_episode(path, autoencoder, cache) for path in progress(paths)]


def _latent_episode(path: Path, autoencoder: Autoencoder, cache: Path) -> Segment:
    stored = cache / path.parent.name / f"{path.stem}.safetensors"
    stamp = {"source": str(path.resolve()), "bytes": path.stat().st_size, "holds": list(HOLDS)}
    if stored.exists():
        tensors, header = load_tensors(stored)
        if header == stamp:
            return _stored_episode(tensors, stored)
    episode = encode_episode(path, autoencoder)
    save_tensors(stored, episode.parts(), stamp)
    return episode


def _stored_episode(tensors: dict[str, Tensor], stored: Path) -> Segment:
    frames = {name: tensor.shape[:1] for name, tensor in tensors.items()}
    if frames.keys() != set(HOLDS) or len(set(frames.values())) != 1:
        raise TensorFileError(f"{stored}: not the latents of an episode; delete it, and they are made again")
    return Segment(**tensors)


def autoencoder_hash(autoencoder: Autoencoder) -> str:
    """Latents of equal encoders are equal."""
    digest = hashlib.sha256()
    for tensor in autoencoder.encoder.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
