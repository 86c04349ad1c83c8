"""What policies of `agents.policy` see: the observations of `lssvwm_gym.envs.wrappers`, of which `image` is called `pixels` here."""

from __future__ import annotations

from torch import Tensor

from lssvwm_gym.envs import wrappers
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import WorldModelObservation
from lssvwm_gym.models.rollout import DreamState

__all__ = ["OBSERVATIONS", "WorldModelObservation", "observed", "observed_shape"]

OBSERVATIONS = ("pixels", *wrappers.NUMBERS)


def observed(dream: Dream, state: DreamState, observation: str) -> Tensor:
    """What the state's last frame looks like, (B, ...)."""
    return wrappers.observed(dream, state, "image" if observation == "pixels" else observation)


def observed_shape(dream: Dream, observation: str) -> tuple[int, ...]:
    """Shape of one row's observation. Raises `ValueError` for one that doesn't exist."""
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation must be one of {', '.join(OBSERVATIONS)}, not {observation!r}")
    return wrappers.observed_shape(dream, "image" if observation == "pixels" else observation)
