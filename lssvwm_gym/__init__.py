"""Gymnasium environments that are dreamed: a learned long-context state-space video world model is the simulator.

Importing this package registers the ids and loads neither torch nor a simulator.
"""

from lssvwm_gym.checkpoints.hub import from_hub, load, push_to_hub
from lssvwm_gym.registry import register, register_all
from lssvwm_gym.worlds import WORLDS, WorldSpec

__version__ = "0.1.0"
__all__ = ["WORLDS", "WorldSpec", "from_hub", "load", "push_to_hub", "register"]

register_all()
