"""Gymnasium environments that are dreamed: a learned long-context state-space video world model is the simulator.

Importing this package registers the ids and loads neither torch nor a simulator.
"""

import gymnasium

from lssvwm_gym.checkpoints.hub import from_hub, load, push_to_hub
from lssvwm_gym.worlds import DREAM_ID, WORLDS, World, register

__version__ = "0.1.0"
__all__ = ["WORLDS", "World", "from_hub", "load", "push_to_hub", "register"]


for _world in tuple(WORLDS.values()):
    register(_world)
gymnasium.register(
    DREAM_ID,
    entry_point="lssvwm_gym.envs.folder_env:make_dream",
    vector_entry_point="lssvwm_gym.envs.folder_env:make_dreams",
)
for _size in (9, 11, 13, 15):
    gymnasium.register(
        f"MemoryMaze{_size}x{_size}-Real-v0",
        entry_point="lssvwm_gym.simulators.memory_maze:MemoryMazeEnv",
        kwargs={"size": _size},
    )
gymnasium.register(
    "Luanti-Real-v0",
    entry_point="lssvwm_gym.simulators.luanti.env:LuantiEnv",
    nondeterministic=True,  # the game's threads are free in their order
)
