"""Gymnasium environments that are dreamed: a learned long-context state-space video world model is the simulator.

Importing this package registers the ids and loads neither torch nor a simulator.
"""

import gymnasium

from lssvwm_gym.worlds import WORLDS, World

__version__ = "0.1.0"
__all__ = ["WORLDS", "World", "register"]


def register(world: World) -> None:
    """Make a world known: `gymnasium.make(world.id)`, `gymnasium.make_vec(world.id, ...)` and its name on the command line.

    Raises `ValueError` if another world already has this name.
    """
    if WORLDS.setdefault(world.name, world) != world:
        raise ValueError(f"there is another world named {world.name!r} already: {WORLDS[world.name]}")
    gymnasium.register(
        world.id,
        entry_point="lssvwm_gym.envs.dream_env:DreamEnv",
        vector_entry_point="lssvwm_gym.envs.dream_vector_env:DreamVectorEnv",
        max_episode_steps=world.max_episode_steps,
        kwargs={"world": world.name},
    )


for _world in tuple(WORLDS.values()):
    register(_world)
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
