"""Worlds by their ids: what `gymnasium.make` and `gymnasium.make_vec` know. Loads neither torch nor a simulator."""

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from lssvwm_gym.worlds import DREAM_ID, WORLDS, WorldError, WorldSpec, world_of
from lssvwm_gym.worlds.spec import read_world

if TYPE_CHECKING:
    from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv

MAZE_SIZES = (9, 11, 13, 15)  # cells a side of the real mazes


def register(world: WorldSpec | str | Path) -> WorldSpec:
    """Make a world known: `gymnasium.make(world.id)`, `gymnasium.make_vec(world.id, ...)` and its name on the command line.

    It is named by its record, or by a folder of weights that has one (`world.json`, as `lssvwm-gym package` writes it). Raises `ValueError`
    where another world has this name or this id already, `WorldError` for a folder without a sound record.
    """
    world = world if isinstance(world, WorldSpec) else read_world(world)
    known = WORLDS.get(world.name)
    if known not in (None, world):
        raise ValueError(f"there is another world named {world.name!r} already: {known}")
    if world.id in gymnasium.registry:
        if known is None:
            raise ValueError(f"there is another environment of the id {world.id} already")
        return world
    WORLDS[world.name] = world
    gymnasium.register(
        world.id,
        entry_point="lssvwm_gym.envs.dream_env:DreamEnv",
        vector_entry_point="lssvwm_gym.envs.dream_vector_env:DreamVectorEnv",
        max_episode_steps=world.max_episode_steps,
        kwargs={"world": world.name},
    )
    return world


def register_all() -> None:
    """Every id of this package: its worlds, `LSSVWM-Dream-v0` for any folder of weights, and the real worlds."""
    for world in tuple(WORLDS.values()):
        register(world)
    gymnasium.register(DREAM_ID, entry_point="lssvwm_gym.registry:make_dream", vector_entry_point="lssvwm_gym.registry:make_dreams")
    for size in MAZE_SIZES:
        gymnasium.register(f"MemoryMaze{size}x{size}-Real-v0", "lssvwm_gym.real_envs.memory_maze:MemoryMazeEnv", kwargs={"size": size})
    gymnasium.register(
        "Luanti-Real-v0",
        entry_point="lssvwm_gym.real_envs.luanti.env:LuantiEnv",
        nondeterministic=True,  # the game's threads are free in their order
    )


def make_dream(weights: str | Path | None = None, **kwargs: Any) -> gymnasium.Env:
    """A `DreamEnv` of the folder's own world, truncated as that says, or as `max_episode_steps` of `gymnasium.make` does.

    `weights` is a folder with a `world.json`, as `lssvwm-gym package` writes it. Raises `WorldError` for no folder, and one without a sound
    record; all else as `DreamEnv`.
    """
    from gymnasium.wrappers import TimeLimit

    from lssvwm_gym.envs.dream_env import DreamEnv

    world = _world(weights)
    env = DreamEnv(world, weights=weights, **kwargs)
    return env if _limited_by_gymnasium() else TimeLimit(env, world.max_episode_steps)


make_dream.metadata = {"render_modes": ["rgb_array"]}  # type: ignore[attr-defined] # what Gymnasium asks of a class: how it can be rendered


def _limited_by_gymnasium() -> bool:
    """Whether the call of `gymnasium.make` that this happens in names a `max_episode_steps`, which it tells nobody; -1 is none at all."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not gymnasium.make.__code__:
        frame = frame.f_back
    asked = (frame.f_locals.get("max_episode_steps"), getattr(frame.f_locals.get("env_spec"), "max_episode_steps", None)) if frame else ()
    return any(steps is not None for steps in asked)


def one_thread_in_forked_children() -> None:
    """Have torch compute with one thread in processes that are forked from this one.

    OpenMP's other threads stay behind in a fork, and whoever counts on them there waits for ever: `AsyncVectorEnv`'s workers, or
    those of SB3's `SubprocVecEnv`. They can ask for more with `torch.set_num_threads`, where torch has not computed before the fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


def make_dreams(
    weights: str | Path | None = None, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs: Any
) -> "DreamVectorEnv":
    """The same as one batch, a `DreamVectorEnv`."""
    from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv

    world = _world(weights)
    limit = world.max_episode_steps if max_episode_steps is None else max_episode_steps
    return DreamVectorEnv(world, num_envs, limit, weights=weights, **kwargs)


def _world(weights: str | Path | None) -> WorldSpec:
    if weights is None:
        raise WorldError("which world? Give the folder of its weights, as `lssvwm-gym package` writes it: weights='my_weights'")
    return world_of(weights)
