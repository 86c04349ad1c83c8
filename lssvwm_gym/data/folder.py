"""A folder of episodes: what is in it, and a fingerprint that says which data a model has seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lssvwm_gym.data.episode import EpisodeError


def episode_paths(folder: str | Path) -> list[Path]:
    """The npz files of all whole episodes in `folder`, sorted by name. Raises `EpisodeError` if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise EpisodeError(f"{folder}: no such folder of episodes")
    paths = sorted(path for path in folder.glob("*.npz") if not path.name.startswith("."))
    whole = [path for path in paths if path.with_suffix(".mp4").exists()]
    if not whole:
        raise EpisodeError(f"{folder}: holds no episode (a pair of <name>.mp4 and <name>.npz)")
    return whole


def fingerprint(folder: str | Path) -> dict[str, int | str]:
    """Number of episodes and a hash over names and contents; equal folders have equal fingerprints."""
    digest = hashlib.sha256()
    paths = episode_paths(folder)
    for path in paths:
        for file in (path, path.with_suffix(".mp4")):
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"episodes": len(paths), "sha256": digest.hexdigest()[:16]}
