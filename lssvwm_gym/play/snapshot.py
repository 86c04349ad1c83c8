"""A game at one frame as a value, and the ring of those that are kept for going back."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch.utils._pytree import tree_leaves

from lssvwm_gym.envs.saved_state import EnvState


class Move(NamedTuple):
    action: int
    profile: str


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A game at one frame. Nothing in it is ever written to, so going back is picking an older one."""

    state: EnvState  # of the dream
    info: dict[str, Any]  # as the dream's `step` returns it
    begin: EnvState  # the dream where `moves` begin
    moves: tuple[Move, ...] = ()  # from there to here, which determine all that is between
    trail: tuple[np.ndarray, ...] = ()  # estimated poses (4 or 6,) from the first frame shown to this one
    earned: float = 0.0  # return so far
    over: str = ""  # why the episode ended; empty if it didn't

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


@dataclass
class Ring:
    """The last snapshots, the oldest first, as many as fit into `limit` bytes of states; always one at least."""

    limit: int  # bytes
    snapshots: deque[tuple[Snapshot, int]] = field(default_factory=deque)  # and the bytes of each
    held: int = 0  # bytes

    def push(self, snapshot: Snapshot) -> None:
        whole = [leaf.untyped_storage() for leaf in tree_leaves((snapshot.state.dream, snapshot.state.frame))]
        size = sum({storage.data_ptr(): storage.nbytes() for storage in whole}.values())
        self.snapshots.append((snapshot, size))
        self.held += size
        self.hold(self.limit)

    def hold(self, limit: int) -> None:
        """From now on so many bytes."""
        self.limit = limit
        while self.held > self.limit and len(self.snapshots) > 1:
            self.held -= self.snapshots.popleft()[1]

    def pop(self) -> Snapshot | None:
        """The newest, taken out; None if there is none."""
        if not self.snapshots:
            return None
        snapshot, size = self.snapshots.pop()
        self.held -= size
        return snapshot

    def clear(self) -> None:
        self.snapshots.clear()
        self.held = 0

    def __len__(self) -> int:
        return len(self.snapshots)
