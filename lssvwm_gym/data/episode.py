"""One recorded episode, and its two files: `<name>.mp4` (frames) and `<name>.npz` (everything else).

Time is aligned once and for all: **action[t] is the action that led to frame t**, and reward[t] and every other
array speak of the moment of frame t. action[0] is a placeholder.
"""

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.io.atomic import renamed_when_whole, replaced_together
from lssvwm_gym.io.json_config import needed
from lssvwm_gym.io.video import NO_AV, VIDEO_CRF, as_shown, write_video

LARGEST = 2**30  # bytes of all arrays of a file, and of all frames of a video, once they are unpacked: 87,000 frames of 64 pixels
LARGEST_FRAME = 2**24  # pixels: 4096 x 4096
CONTAINER = "mp4"  # the only one that is read, with its relatives such as mov: others can point to files elsewhere
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}  # by the version of NumPy's format


class EpisodeError(ValueError):
    """An episode that can't be read or written as it is; the message names the file and the array."""


@dataclass(frozen=True)
class Episode:
    """Frames, actions and rewards of one trajectory, with whatever else was known at each frame."""

    frames: np.ndarray  # (T, height, width, 3) uint8
    action: np.ndarray  # (T,) integer, or (T, A) float; the action that led to frame t
    reward: np.ndarray  # (T,) float32, received on arriving at frame t
    extras: dict[str, np.ndarray] = field(default_factory=dict)  # agent_pos, agent_dir, inventory, terminated, maze_layout, ...

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise EpisodeError(f"frames must be uint8 (T, height, width, 3), got {self.frames.dtype} {self.frames.shape}")
        if len(self.frames) == 0:
            raise EpisodeError("an episode has at least one frame")
        for name, array in (("action", self.action), ("reward", self.reward)):
            if array.ndim == 0 or array.dtype.kind not in "biuf":
                raise EpisodeError(f"{name} must be numbers (T, ...), got {array.dtype} {array.shape}")
            if len(array) != len(self.frames):
                rule = "action[t] led to frame t, so both have the same length and action[0] is a placeholder"
                raise EpisodeError(f"{name} has {len(array)} entries for {len(self.frames)} frames; {rule}")
            if not np.isfinite(array).all():
                where = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
                raise EpisodeError(f"{name} has entries that are not finite, the first at frame {where}: {array[where]}")
        if self.reward.ndim != 1:
            raise EpisodeError(f"reward must be (T,), got {self.reward.shape}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def pose(self) -> np.ndarray | None:
        """Where the agent is, where that was recorded; float32 in world units.

        From `agent_pos` and `agent_dir`: x, y and unit heading, (T, 4). From `pos` (x, height, z), `yaw` (rad, counter-clockwise,
        ahead is -sin, cos in x, z) and `pitch` (rad): x, z, unit heading, height, pitch, (T, 6). Raises `EpisodeError` for arrays of
        these names that are something else.
        """
        if {"agent_pos", "agent_dir"} <= self.extras.keys():
            return np.concatenate([self._numbers("agent_pos", 2), self._numbers("agent_dir", 2)], axis=1).astype(np.float32)
        if {"pos", "yaw", "pitch"} <= self.extras.keys():
            (x, height, z), yaw = self._numbers("pos", 3).T, self._numbers("yaw")
            return np.stack([x, z, -np.sin(yaw), np.cos(yaw), height, self._numbers("pitch")], 1).astype(np.float32)
        return None

    @property
    def inventory(self) -> np.ndarray:
        """Counts or other numbers that go with every frame, `inventory`, (T, V) float32; V is 0 where none were recorded.

        Raises `EpisodeError` for an inventory that is something else.
        """
        if "inventory" not in self.extras:
            return np.zeros((len(self), 0), np.float32)
        counts = self._numbers("inventory", None)
        if not np.isfinite(counts).all():
            raise EpisodeError("inventory has numbers that are not finite")
        return counts

    @property
    def terminated(self) -> np.ndarray:
        """Whether the episode ends at a frame by itself, `terminated`, (T,) bool; one that doesn't say so counts as cut.

        Raises `EpisodeError` for an array of this name that is something else.
        """
        return self._numbers("terminated") != 0 if "terminated" in self.extras else np.zeros(len(self), bool)

    def _numbers(self, name: str, *axes: int | None) -> np.ndarray:
        """An extra of shape (T, *axes), None standing for any length, as float32."""
        array, shape = self.extras[name], (len(self), *axes)
        fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.kind not in "biuf":
            raise EpisodeError(f"{name} must be numbers {str(shape).replace('None', 'any')}, got {array.dtype} {array.shape}")
        with np.errstate(over="ignore"):
            return array.astype(np.float32)


def read_episode(path: str | Path) -> Episode:
    """Read an episode by either of its two files. Raises `EpisodeError` for anything that is not whole, and for more than `LARGEST`."""
    return with_frames(path, read_arrays(path), lambda: read_video(Path(path).expanduser().with_suffix(".mp4")))


def with_frames(path: str | Path, arrays: dict[str, np.ndarray], frames: Callable[[], np.ndarray]) -> Episode:
    """The episode of a file's arrays, and of frames that are read where these are there. Raises `EpisodeError` as `read_episode`."""
    if missing := {"action", "reward"} - arrays.keys():
        raise EpisodeError(f"{path}: no array named {', '.join(sorted(missing))}")
    shown, rest = frames(), {name: array for name, array in arrays.items() if name not in ("action", "reward")}
    try:
        episode = Episode(shown, arrays["action"], arrays["reward"], rest)
        with np.errstate(over="ignore"):
            episode = replace(episode, reward=episode.reward.astype(np.float32))  # looked at again: what was finite may no longer be
        _ = episode.pose, episode.inventory, episode.terminated  # raise where they can't be told
        return episode
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from None


def write_episode(path: str | Path, episode: Episode, fps: int, crf: int = VIDEO_CRF) -> None:
    """Write `path` with endings .mp4 and .npz, together: whatever happens, there are the old ones, the new ones, or no npz."""
    path = Path(path).expanduser()
    _check_plain(path, arrays := {"action": episode.action, "reward": episode.reward, **episode.extras})
    with replaced_together(path.parent, last=path.with_suffix(".npz").name) as unfinished:
        write_video(unfinished / path.with_suffix(".mp4").name, episode.frames, fps, crf)
        np.savez_compressed(unfinished / path.with_suffix(".npz").name, **arrays)  # type: ignore[arg-type]


def write_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz that `read_arrays` reads; it appears whole or not at all. Raises `EpisodeError` for arrays of objects."""
    path = Path(path).expanduser().with_suffix(".npz")
    _check_plain(path, arrays)
    with renamed_when_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _check_plain(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise EpisodeError(f"{path}: {', '.join(objects)} would need pickle; only arrays of numbers or text are written")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read every array of an episode's npz, without pickle. Raises `EpisodeError` for all else, and for more than `LARGEST` bytes."""
    path = Path(path).expanduser()
    path = path if path.suffix.lower() == ".npz" else path.with_suffix(".npz")
    with _reading(path, "npz of plain arrays"), zipfile.ZipFile(path) as file:
        members = file.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            raise ValueError("two arrays of one name")
        if sum(member.file_size for member in members) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes of arrays; cut the episode into shorter ones")
        return {name: _read_array(file, member) for name, member in zip(names, members, strict=True)}


@contextlib.contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    """Raises `EpisodeError` for whatever a parser of foreign bytes trips over."""
    try:
        yield
    except FileNotFoundError:
        raise EpisodeError(f"{path}: no such file") from None
    except Exception as error:
        raise EpisodeError(f"{path}: not a readable {what} ({str(error)[:300] or type(error).__name__})") from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, for which memory is taken only once the file turns out to hold as much as it claims."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is packed in a way that NumPy never does")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version} of NumPy's format is not read")
        shape, _, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} is of objects, which would need pickle")
        left = member.file_size - file.tell()
        if min(shape, default=0) < 0 or max(shape, default=0) > LARGEST or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"{member.filename} claims to be {dtype} {shape} but has {left} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_video(path: str | Path) -> np.ndarray:
    """Decode a video to uint8 (T, height, width, 3). Raises `EpisodeError`, also for more than `LARGEST` bytes of frames."""
    frames: list[np.ndarray] = []
    for frame in video_frames(path):
        if frames and frame.shape != frames[0].shape:
            raise EpisodeError(f"{path}: frames of {frames[0].shape} and of {frame.shape}")
        if (len(frames) + 1) * frame.nbytes > LARGEST:
            raise EpisodeError(f"{path}: more than {LARGEST} bytes of frames; cut the episode into shorter ones")
        frames.append(frame)
    return np.stack(frames)


def video_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode an mp4 frame by frame, uint8 (height, width, 3) each. Raises `EpisodeError`, perhaps only after some frames."""
    return (frame for _, frame in timed_frames(path))


def timed_frames(path: str | Path) -> Iterator[tuple[float | None, np.ndarray]]:
    """As `video_frames`, with the second at which each is shown, if the file says so; turned and with the aspect as it says."""
    count = 0
    with opened_video(path) as stream:
        stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}
        for frame in stream.container.decode(stream):
            yield frame.time, as_shown(frame, stream.sample_aspect_ratio, LARGEST_FRAME)
            count += 1
        if count == 0:
            raise ValueError("it has no frames")


@contextlib.contextmanager
def opened_video(path: str | Path) -> Iterator[Any]:
    """The video stream of an mp4. Raises `EpisodeError` for what is no video, and for what goes wrong while it is read."""
    av = needed("av", NO_AV)
    with _reading(path, "video"), open(path, "rb") as file, av.open(file, format=CONTAINER) as container:
        yield container.streams.video[0]


def is_whole(path: Path) -> bool:
    """Whether both files of an episode are there; `path` is without their endings."""
    return all(path.with_name(path.name + ending).exists() for ending in (".mp4", ".npz"))


def episode_paths(folder: str | Path) -> list[Path]:
    """The npz files of all whole episodes in `folder`, sorted by name. Raises `EpisodeError` if there are none."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise EpisodeError(f"{folder}: no such folder of episodes")
    paths = sorted(path for path in folder.glob("*.npz") if not path.name.startswith("."))
    if not (whole := [path for path in paths if path.with_suffix(".mp4").exists()]):
        raise EpisodeError(f"{folder}: holds no episode (a pair of <name>.mp4 and <name>.npz)")
    return whole


def fingerprint(folder: str | Path) -> dict[str, int | str]:
    """Number of episodes and a hash over names and contents; equal folders have equal fingerprints."""
    digest, paths = hashlib.sha256(), episode_paths(folder)
    for path in paths:
        for file in (path, path.with_suffix(".mp4")):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return {"episodes": len(paths), "sha256": digest.hexdigest()[:16]}
