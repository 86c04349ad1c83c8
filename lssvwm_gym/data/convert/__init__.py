"""Public recordings, each set in its own layout, and how they become episodes."""

from lssvwm_gym.data.convert.convert import Converting, convert
from lssvwm_gym.data.convert.memory_maze import from_one_hot, public_paths, read_public

__all__ = ["Converting", "convert", "from_one_hot", "public_paths", "read_public"]
