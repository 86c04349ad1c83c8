"""Public recordings, each set in its own layout, and how they become episodes."""

from lssvwm_gym.data.convert.convert import Converting, convert
from lssvwm_gym.data.convert.memory_maze import agent_centric, from_one_hot, public_paths, read_public, to_one_hot, write_public

__all__ = ["Converting", "agent_centric", "convert", "from_one_hot", "public_paths", "read_public", "to_one_hot", "write_public"]
