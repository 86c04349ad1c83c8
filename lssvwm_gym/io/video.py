"""Moving pictures for people to look at: an MP4 or a GIF, by the ending of the file's name."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.json_config import needed

NO_AV = "reading and writing episodes needs PyAV: pip install 'lssvwm_gym[video]'"
ENDINGS = (".mp4", ".gif")
GOOD_ENOUGH = 16  # constant rate factor of H.264; a few times smaller than lossless

VIDEO_CODEC = "libx264rgb"  # H.264 without chroma subsampling
VIDEO_CRF = 20  # about 44 dB against the simulator's frames


def check_crf(crf: int) -> None:
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be 0 (lossless) to 51 (worst), got {crf}")


def check_movie(path: Path) -> None:
    """Raise `ValueError` unless the name's ending is one that `write_movie` can write."""
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path}: a movie's name ends in {' or '.join(ENDINGS)}, not in {path.suffix!r}")


def write_movie(path: Path, frames: np.ndarray | Sequence[np.ndarray], fps: float, scale: int = 1) -> None:
    """Write uint8 (T, height, width, 3) frames, `enlarged`, whole or not at all; the folder is made. MP4 rounds `fps` to a whole number.

    Raises `ValueError` for no frames, and for another ending than .mp4 and .gif, `ImportError` where PyAV (MP4) or Pillow (GIF) is missing.
    """
    path = Path(path).expanduser()
    check_movie(path)
    if len(frames) == 0:
        raise ValueError(f"{path}: there are no frames to write")
    shown = (enlarged(frame, scale) for frame in frames)  # one at a time
    with renamed_when_whole(path) as unfinished:
        if path.suffix.lower() == ".mp4":
            write_video(unfinished, shown, max(1, round(fps)), GOOD_ENOUGH)
        else:
            _write_gif(unfinished, shown, fps)


def enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of (..., height, width, 3) frames as a square of `scale` x `scale` pixels."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _write_gif(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    from PIL import Image

    method = Image.Quantize.MAXCOVERAGE  # keeps small things in their colours, where the median cut fades them
    images = [Image.fromarray(frame).quantize(256, method, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int, crf: int = VIDEO_CRF) -> None:
    """Encode frames, uint8 (T, height, width, 3) or one (height, width, 3) after the other, as H.264 in RGB."""
    av = needed("av", NO_AV)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(VIDEO_CODEC, rate=fps, options={"crf": str(crf)})
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def as_shown(frame: Any, aspect: Fraction | None, largest: int) -> np.ndarray:
    """A decoded frame, uint8 (height, width, 3), stretched by the aspect (width to height) of its samples and turned as it says.

    Raises `ValueError` for more than `largest` pixels, and for a frame that is to be shown at an angle.
    """
    width, height = frame.width, frame.height
    if aspect and aspect != 1:
        width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    if width * height > largest:
        raise ValueError(f"frames are to be shown as {width}x{height} pixels")
    picture: np.ndarray = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    matrix = next((np.frombuffer(bytes(data), np.int32) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return picture
    (right_right, right_down), (down_right, down_down) = np.rint(matrix[[[0, 1], [3, 4]]] / 2**16).astype(int)  # x' = ax + cy, y' = bx + dy
    across, along = (right_right, down_down) if right_right else (down_right, right_down)
    if abs(across) != 1 or abs(along) != 1:
        raise ValueError("frames are to be shown at an angle; turn the video first")
    picture = picture if right_right else picture.swapaxes(0, 1)
    return np.ascontiguousarray(picture[::along, ::across])
