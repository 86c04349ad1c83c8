"""Profiles: how many denoising steps a frame takes. More steps cost more time; what they gain, `docs/concepts.md` says.

Where a world model has a flow head, the steps are this small network's, and from the second on they cost little; elsewhere each step
is a pass of the whole world model. A profile is no part of a dream's state, so a dream may go on in another one.

env = gymnasium.make("LSSVWM-MemoryMaze-v0", profile="quality")
"""

from __future__ import annotations

from typing import NamedTuple

from lssvwm_gym.models.world_model import WorldModel


class Profile(NamedTuple):
    """Denoising steps a frame."""

    flow_steps: int  # of the flow head, which is trained to take 1, 2 or 4 long ones; 8 are steps of the flow itself
    model_steps: int  # of the world model, where it has no flow head


PROFILES = {
    "fast": Profile(1, 1),
    "balanced": Profile(4, 2),
    "quality": Profile(8, 4),
}
DEFAULT = "balanced"


def checked_profile(name: str) -> str:
    """The name of a profile. Raises `ValueError` for any other."""
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, not {name!r}")
    return name


def sampling_steps(model: WorldModel, profile: str) -> int:
    """Denoising steps a frame that a world model takes in a profile."""
    steps = PROFILES[checked_profile(profile)]
    return steps.model_steps if model.flow_head is None else steps.flow_steps
