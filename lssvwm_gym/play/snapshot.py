"""A moment of a game as a value, and the ring of those that are kept to go back to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch.utils._pytree import tree_leaves

from lssvwm_gym.envs.state_io import EnvState


class Move(NamedTuple):
    """How a dream went on by a frame."""

    action: int
    profile: str


@dataclass(frozen=True)
class RealView:
    """What the real world looks like."""

    frame: np.ndarray  # (height, width, 3) uint8
    counts: np.ndarray | None  # (V,) in worlds with counts
    trail: tuple[np.ndarray, ...]  # poses (4 or 6,) since the game began, seen from the first; empty where the world tells none
    earned: float = 0.0  # since the game began
    over: bool = False


@dataclass(frozen=True, eq=False)
class Moment:
    """All that is known of a game at one frame. Nothing in it is ever written to, so going back is picking an older one."""

    state: EnvState  # of the dream
    info: dict[str, Any]  # as the dream's `step` returns it
    begin: EnvState  # the dream where `moves` begin
    moves: tuple[Move, ...] = ()  # from there to here; the dream repeats itself, so they say all
    trail: tuple[np.ndarray, ...] = ()  # believed poses (4 or 6,) from the first frame shown to this one
    earned: float = 0.0  # return so far
    over: str = ""  # why the episode ended; empty if it didn't
    real: RealView | None = None  # the real world at this frame, if one goes along

    @property
    def frame(self) -> np.ndarray:
        """What the dream shows, (height, width, 3) uint8."""
        return self.state.frame[0].cpu().numpy()

    @property
    def steps(self) -> int:
        """Since the dream's reset."""
        return self.state.steps[0]

    @property
    def action(self) -> int | None:
        """The one that led here, if it was a dreamed one."""
        return self.moves[-1].action if self.moves else None


def bytes_of(state: EnvState) -> int:
    """Memory that a state holds, whole storages counted."""
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in tree_leaves((state.dream, state.frame))}
    return sum(storages.values())


@dataclass
class Ring:
    """The last moments, the oldest first, as many as fit into `limit` bytes of states; always one at least."""

    limit: int  # bytes
    moments: deque[tuple[Moment, int]] = field(default_factory=deque)  # and the bytes of each
    held: int = 0  # bytes

    def push(self, moment: Moment) -> None:
        size = bytes_of(moment.state)
        self.moments.append((moment, size))
        self.held += size
        while self.held > self.limit and len(self.moments) > 1:
            self.held -= self.moments.popleft()[1]

    def pop(self) -> Moment | None:
        """The newest moment, taken out; None if there is none."""
        if not self.moments:
            return None
        moment, size = self.moments.pop()
        self.held -= size
        return moment

    def clear(self) -> None:
        self.moments.clear()
        self.held = 0

    def __len__(self) -> int:
        return len(self.moments)
