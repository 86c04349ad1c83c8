"""Moving pictures for people to look at: an MP4 or a GIF, by the ending of the file's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.io.atomic import renamed_when_whole

ENDINGS = (".mp4", ".gif")
GOOD_ENOUGH = 16  # constant rate factor of H.264; a few times smaller than lossless

VIDEO_CODEC = "libx264rgb"  # H.264 without chroma subsampling
VIDEO_CRF = 20  # about 44 dB against the simulator's frames


def check_movie(path: Path) -> None:
    """Raise `ValueError` unless the name's ending is one that `write_movie` can write."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: a movie's name ends in {' or '.join(ENDINGS)}, not in {path.suffix!r}")


def write_movie(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write uint8 (T, height, width, 3) frames, whole or not at all; the folder is made. MP4 rounds `fps` to a whole number.

    Raises:
        ValueError: no frames, or a name that ends in neither .mp4 nor .gif.
        ImportError: PyAV (for MP4) or Pillow (for GIF) is missing.
    """
    path = Path(path)
    check_movie(path)
    if len(frames) == 0:
        raise ValueError(f"{path}: there are no frames to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as unfinished:
        if path.suffix.lower() == ".mp4":
            write_video(unfinished, frames, max(1, round(fps)), GOOD_ENOUGH)
        else:
            _write_gif(unfinished, frames, fps)


def enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of (..., height, width, 3) frames as a square of `scale` x `scale` pixels."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    method = Image.Quantize.MAXCOVERAGE  # keeps small things in their colours, where the median cut fades them
    images = [Image.fromarray(frame).quantize(256, method, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int, crf: int = VIDEO_CRF) -> None:
    """Encode frames, uint8 (T, height, width, 3) or one (height, width, 3) after the other, as H.264 in RGB."""
    av = import_av()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(VIDEO_CODEC, rate=fps, options={"crf": str(crf)})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def import_av() -> Any:
    try:
        import av
    except ImportError:
        raise ImportError("reading and writing episodes needs PyAV: pip install 'lssvwm_gym[video]'") from None
    return av
