"""A piece of an episode, or a batch of such: what is recorded, learned from, and what a dream continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ABSENT: Any = None


@dataclass(frozen=True)
class Segment:
    """Frames of an episode, (T, ...), or of B episodes, (B, T, ...). Entry t speaks of frame t; action t led to it.

    Parts that nobody needs or knows are None. Poses are in world units or seen from the first frame, as whoever makes a segment says.
    """

    latent: Tensor  # (..., N, C)
    action: Tensor  # (...) int64, the number of actions where unknown; or (..., A) float, NaN where unknown
    reward: Tensor = ABSENT  # (...) float32
    pose: Tensor = ABSENT  # (..., 4 or 6) float32, NaN where not recorded
    inventory: Tensor = ABSENT  # (..., V) float32 counts that go with the frame; V is 0 where there are none
    inventory_peak: Tensor = ABSENT  # (..., V) the most of each that was counted since the episode began
    before: Tensor = ABSENT  # (..., V) counts before the frame; where it runs backwards those that the frame was recorded with
    motion: Tensor = ABSENT  # (..., 3 or 5) since the frame before; zeros at the first frame
    pose_known: Tensor = ABSENT  # (...) float; 0 where no pose was recorded, so that pose and motion mean nothing
    recorded: Tensor = ABSENT  # (...) float; 1 where action and reward are what was recorded, 0 where it runs backwards
    frames: Tensor = ABSENT  # (..., height, width, 3) uint8
    terminated: Tensor = ABSENT  # (...) bool; whether the episode ends at the frame by itself
    present: Tensor = ABSENT  # (...) float; 0 where a clip is longer than what it is of, and its last frame stands again

    @property
    def batch(self) -> int:
        """Number of segments, B."""
        return len(self.latent)

    def __len__(self) -> int:
        """Number of frames, T."""
        return self.latent.shape[-3]

    def __getitem__(self, frames: slice | Tensor) -> Segment:
        """Some of the frames, of all segments."""
        return self.map(lambda part: part[:, frames] if self.latent.ndim == 4 else part[frames])

    def take(self, rows: Any) -> Segment:
        """Some of a batch's segments."""
        return self.map(lambda part: part[rows])

    def to(self, device: torch.device | str) -> Segment:
        """The same on a device."""
        return self.map(lambda part: part.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Segment:
        """Every part that is there, changed."""
        return Segment(**{name: change(part) for name, part in self.parts().items()})

    def parts(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return {name: part for name, part in vars(self).items() if part is not None}


def joined(segments: Sequence[Segment], join: Callable[[list[Tensor]], Tensor] = torch.stack) -> Segment:
    """Segments of equal parts as a batch, or with `torch.cat` one after the other."""
    return Segment(**{name: join([getattr(segment, name) for segment in segments]) for name in segments[0].parts()})
