"""Dreams of whichever world a folder of weights says that it is, in `world.json`: `gymnasium.make("LSSVWM-Dream-v0", weights=DIR)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.wrappers import TimeLimit

from lssvwm_gym.envs.dream_env import DreamEnv
from lssvwm_gym.envs.dream_vector_env import DreamVectorEnv
from lssvwm_gym.worlds import World, WorldError, world_of


def make_dream(weights: str | Path | None = None, **kwargs: Any) -> gymnasium.Env:
    """A `DreamEnv` of the folder's own world, truncated as that says; a smaller `max_episode_steps` of `gymnasium.make` ends it sooner.

    Args:
        weights: a folder with a `world.json` beside its weights, as `lssvwm-gym ship` writes it.
        kwargs: as for `DreamEnv`.

    Raises:
        WorldError: no folder, or one without a sound record; else as `DreamEnv`.
    """
    world = _world(weights)
    return TimeLimit(DreamEnv(world, weights=weights, **kwargs), world.max_episode_steps)


def make_dreams(
    weights: str | Path | None = None, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs: Any
) -> DreamVectorEnv:
    """The same as one batch, a `DreamVectorEnv`."""
    world = _world(weights)
    return DreamVectorEnv(world, num_envs, max_episode_steps or world.max_episode_steps, weights=weights, **kwargs)


make_dream.metadata = DreamEnv.metadata  # type: ignore[attr-defined] # what Gymnasium asks of a class: how it can be rendered


def _world(weights: str | Path | None) -> World:
    if weights is None:
        raise WorldError("which world? Give the folder of its weights, as `lssvwm-gym ship` writes it: weights='my_weights'")
    return world_of(weights)
