"""The worlds that can be dreamed, one small file each, and how others become known."""

from dataclasses import replace
from pathlib import Path

from lssvwm_gym.worlds.memory_maze import MEMORY_MAZE
from lssvwm_gym.worlds.minecraft import MINECRAFT
from lssvwm_gym.worlds.spec import WorldError, WorldSpec, has_record, read_world, write_world
from lssvwm_gym.worlds.take_cover import TAKE_COVER

DREAM_ID = "LSSVWM-Dream-v0"  # of whichever world the weights are
WORLDS: dict[str, WorldSpec] = {world.name: world for world in (MEMORY_MAZE, MINECRAFT, TAKE_COVER)}

__all__ = ["DREAM_ID", "WORLDS", "WorldError", "WorldSpec"]
__all__ += ["chosen_world", "has_record", "read_world", "weights_of", "world_of", "write_world"]


def chosen_world(name: str, weights: str | Path | None = None) -> WorldSpec:
    """The world of a name; without one (""), the one that the weights say they dream, else Memory Maze.

    Raises `ValueError` for a name that there isn't, `WorldError` for a folder with a broken record.
    """
    if name in WORLDS:
        return WORLDS[name]
    if name:
        raise ValueError(f"no world named {name!r}; there are {', '.join(WORLDS)}")
    return world_of(weights) if weights is not None and has_record(weights) else WORLDS[MEMORY_MAZE.name]


def weights_of(world: WorldSpec, wanted: str | Path | None) -> Path:
    """The folder of a world's own weights (None), or that of a path."""
    return world.weights if wanted is None else Path(wanted).expanduser()


def world_of(weights: str | Path) -> WorldSpec:
    """The world that a folder of weights says it dreams, with the `real_id` of one that is known. Raises as `read_world`."""
    world = read_world(weights)
    known = WORLDS.get(world.name)
    return replace(world, real_id=known.real_id) if known is not None and known.id == world.id else world
