"""The real worlds, as `gymnasium.Env`. Importing this package loads no simulator: each is loaded when its env is made."""


class SimulatorUnavailable(ImportError):
    """A simulator can't run here; the message says which command installs what is missing."""


__all__ = ["SimulatorUnavailable"]
