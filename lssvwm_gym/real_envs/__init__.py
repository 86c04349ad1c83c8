"""The real worlds, as `gymnasium.Env`. Importing this package loads no simulator: each is loaded when its env is made."""

import numpy as np
from gymnasium.error import ResetNeeded


class SimulatorUnavailable(ImportError):
    """A simulator can't run here; the message says which command installs what is missing."""


class SimulatorDied(RuntimeError):
    """A simulator's process has ended in the middle of an episode; `reset` goes on with a fresh one."""


def shown(frame: np.ndarray | None, render_mode: str | None) -> np.ndarray | None:
    """What `render` gives: a copy of the current frame, or None without a render mode. Raises `ResetNeeded` before the first frame."""
    if render_mode is None:
        return None
    if frame is None:
        raise ResetNeeded("there is no frame yet: call reset() before render()")
    return frame.copy()
