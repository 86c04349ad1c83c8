"""One recorded episode, and its two files: `<name>.mp4` (frames) and `<name>.npz` (everything else).

Time is aligned once and for all: **action[t] is the action that led to frame t**, and reward[t] and every other
array speak of the moment of frame t. action[0] is a placeholder.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.data.whole_file import renamed_when_whole

VIDEO_CODEC = "libx264rgb"  # H.264 without chroma subsampling
VIDEO_CRF = 20  # about 44 dB against the simulator's frames


class EpisodeError(ValueError):
    """An episode that can't be read or written as it is; the message names the file and the array."""


@dataclass(frozen=True)
class Episode:
    """Frames, actions and rewards of one walk, with whatever else was known at each frame."""

    frames: np.ndarray  # (T, height, width, 3) uint8
    action: np.ndarray  # (T,) integer, or (T, A) float; the action that led to frame t
    reward: np.ndarray  # (T,) float32, received on arriving at frame t
    extras: dict[str, np.ndarray] = field(default_factory=dict)  # agent_pos, agent_dir, inventory, maze_layout, ...

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise EpisodeError(f"frames must be uint8 (T, height, width, 3), got {self.frames.dtype} {self.frames.shape}")
        if len(self.frames) == 0:
            raise EpisodeError("an episode has at least one frame")
        for name, array in (("action", self.action), ("reward", self.reward)):
            if len(array) != len(self.frames):
                raise EpisodeError(
                    f"{name} has {len(array)} entries for {len(self.frames)} frames; action[t] led to frame t, "
                    "so both have the same length and action[0] is a placeholder"
                )
        if not np.isfinite(self.reward).all():
            raise EpisodeError("reward has entries that are not finite")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def pose(self) -> np.ndarray | None:
        """Where the agent is, where that was recorded; float32 in world units.

        From `agent_pos` and `agent_dir`: x, y and unit heading, (T, 4). From `pos` (x, height, z), `yaw` (rad, counter-clockwise,
        ahead is -sin, cos in x, z) and `pitch` (rad): x, z, unit heading, height, pitch, (T, 6).
        """
        if {"agent_pos", "agent_dir"} <= self.extras.keys():
            return np.concatenate([self.extras["agent_pos"], self.extras["agent_dir"]], axis=1).astype(np.float32)
        if {"pos", "yaw", "pitch"} <= self.extras.keys():
            (x, height, z), yaw = self.extras["pos"].T, self.extras["yaw"]
            return np.stack([x, z, -np.sin(yaw), np.cos(yaw), height, self.extras["pitch"]], 1).astype(np.float32)
        return None

    @property
    def vector(self) -> np.ndarray:
        """Counts that go with every frame, `inventory`, (T, V) float32; V is 0 where none were recorded."""
        counts = self.extras.get("inventory", np.zeros((len(self), 0)))
        return counts.astype(np.float32)


def read_episode(path: str | Path) -> Episode:
    """Read an episode by either of its two files. Raises `EpisodeError` for anything that is not whole."""
    arrays = read_arrays(path)
    frames = read_video(Path(path).with_suffix(".mp4"))
    missing = {"action", "reward"} - arrays.keys()
    if missing:
        raise EpisodeError(f"{path}: no array named {', '.join(sorted(missing))}")
    try:
        return Episode(frames, arrays.pop("action"), arrays.pop("reward").astype(np.float32), arrays)
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from None


def write_episode(path: str | Path, episode: Episode, fps: int, crf: int = VIDEO_CRF) -> None:
    """Write `path` with endings .mp4 and .npz; each appears whole or not at all, the npz last."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path.with_suffix(".mp4")) as unfinished:
        write_video(unfinished, episode.frames, fps, crf)
    write_arrays(path, {"action": episode.action, "reward": episode.reward, **episode.extras})


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz that `read_arrays` reads; it appears whole or not at all. Raises `EpisodeError` for arrays of objects."""
    path = Path(path).with_suffix(".npz")
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise EpisodeError(f"{path}: {', '.join(objects)} would need pickle; only arrays of numbers or text are written")
    with renamed_when_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read every array of an episode's npz, without pickle."""
    path = Path(path).with_suffix(".npz")
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise EpisodeError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise EpisodeError(f"{path}: not a readable npz of plain arrays ({error})") from None


def read_video(path: str | Path) -> np.ndarray:
    """Decode a video to uint8 (T, height, width, 3)."""
    return np.stack(list(video_frames(path)))


def video_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video frame by frame, uint8 (height, width, 3) each. Raises `EpisodeError`, perhaps only after some frames."""
    av = _import_av()
    count = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                count += 1
        if count == 0:
            raise ValueError("it has no frames")
    except FileNotFoundError:
        raise EpisodeError(f"{path}: no such file") from None
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise EpisodeError(f"{path}: not a readable video ({error})") from None


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int, crf: int = VIDEO_CRF) -> None:
    """Encode frames, uint8 (T, height, width, 3) or one (height, width, 3) after the other, as H.264 in RGB."""
    av = _import_av()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(VIDEO_CODEC, rate=fps, options={"crf": str(crf)})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _import_av() -> Any:
    try:
        import av
    except ImportError:
        raise ImportError("reading and writing episodes needs PyAV: pip install 'lssvwm_gym[video]'") from None
    return av
