"""The worlds that can be dreamed, one small file each."""

from __future__ import annotations

from lssvwm_gym.worlds.memory_maze import MEMORY_MAZE
from lssvwm_gym.worlds.minecraft import MINECRAFT
from lssvwm_gym.worlds.world import World

WORLDS: dict[str, World] = {world.name: world for world in (MEMORY_MAZE, MINECRAFT)}

__all__ = ["WORLDS", "World"]
