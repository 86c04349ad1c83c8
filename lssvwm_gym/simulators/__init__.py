"""The real worlds, as `gymnasium.Env`. Importing this package loads no simulator: each is loaded when its env is made."""


class SimulatorUnavailable(ImportError):
    """A simulator can't run here; the message says which command installs what is missing."""


class SimulatorDied(RuntimeError):
    """A simulator's process has ended in the middle of an episode; `reset` goes on with a fresh one."""


__all__ = ["SimulatorDied", "SimulatorUnavailable"]
