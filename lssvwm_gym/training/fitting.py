"""Whether recordings can teach a model of given sizes; asked before hours are spent on it."""

from __future__ import annotations

from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.latents import LatentEpisode


def refuse_unfit(config: WorldModelConfig, episodes: list[LatentEpisode]) -> None:
    """Raise `ValueError` for episodes whose actions, poses or counts are not those of the model, with the setting that would do."""
    first = episodes[0]
    shapes = {(e.action.shape[1:], e.action.is_floating_point(), e.pose.shape[1], e.vector.shape[1]) for e in episodes}
    if len(shapes) > 1:
        raise ValueError("the episodes are of several worlds: they differ in their actions, poses or counts")
    if first.action.is_floating_point():
        size = first.action.shape[1] if first.action.ndim == 2 else 0
        if size != config.action_size or config.actions:
            raise ValueError(f"actions are {size} numbers each: --model.actions 0 --model.action-size {size}")
    elif not config.actions or first.action.ndim != 1:
        raise ValueError("actions are discrete, one a frame: --model.actions N --model.action-size 0")
    elif (largest := max(int(e.action.max()) for e in episodes)) >= config.actions:
        raise ValueError(f"there are actions up to {largest}, but the model knows {config.actions}: --model.actions {largest + 1} or more")
    if config.vector_size and first.vector.shape[1] != config.vector_size:
        raise ValueError(f"{first.vector.shape[1]} counts go with a frame: --model.vector-size {first.vector.shape[1]}")
    if config.has_places and not any(bool(e.pose.isfinite().all(1).any()) for e in episodes):
        raise ValueError("the recordings tell no poses, and without those no places can be remembered: --variant no-places")
