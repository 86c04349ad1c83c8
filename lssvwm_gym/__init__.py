"""Gymnasium environments that are dreamed: a learned long-context state-space video world model is the simulator.

Importing this package registers the ids and loads neither torch nor a simulator.
"""

import gymnasium

from lssvwm_gym.worlds import WORLDS

__version__ = "0.1.0"

for _world in WORLDS.values():
    gymnasium.register(
        _world.id,
        entry_point="lssvwm_gym.envs.dream_env:DreamEnv",
        vector_entry_point="lssvwm_gym.envs.dream_vector_env:DreamVectorEnv",
        max_episode_steps=_world.max_episode_steps,
        kwargs={"world": _world.name},
    )
for _size in (9, 11, 13, 15):
    gymnasium.register(
        f"MemoryMaze{_size}x{_size}-Real-v0",
        entry_point="lssvwm_gym.simulators.memory_maze:MemoryMazeEnv",
        kwargs={"size": _size},
    )
