"""Gymnasium environments that are dreamed: a learned long-context state-space video world model is the simulator.

Importing this package registers the ids and loads neither torch nor a simulator.
"""

from lssvwm_gym.checkpoints.hub import from_hub, load, push_to_hub
from lssvwm_gym.io import legacy
from lssvwm_gym.registry import one_thread_in_forked_children, register, register_all
from lssvwm_gym.worlds import WORLDS, WorldSpec

__version__ = "0.1.0"
__all__ = ["WORLDS", "WorldSpec", "from_hub", "load", "push_to_hub", "register"]

register_all()
one_thread_in_forked_children()


def __getattr__(name: str) -> object:
    if name == "World":
        legacy.warn("lssvwm_gym.World", "lssvwm_gym.WorldSpec")
        return WorldSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
