"""Policies of this folder at the wheel of a game, run from the repository's root:

lssvwm-gym play memory-maze --policy agents.wheel:from_file:runs/ppo_torch/memory-maze/policy.safetensors
"""

from __future__ import annotations

from typing import Any

from agents.players import opened_player
from agents.seen import observed
from lssvwm_gym.envs.simulator import Dream


class AtTheWheel:
    """A player of `agents.players` that sees the moment of a game as it saw the dreams it learned in."""

    def __init__(self, dream: Dream, name: str, seed: int) -> None:
        self._dream, self._player = dream, opened_player(name, dream, 1, seed)

    def __call__(self, moment: Any) -> int:
        seen = observed(self._dream, moment.state.dream, self._player.observation)
        return int(self._player.act(seen, None)[0])


def from_file(dream: Dream, argument: str | None, seed: int) -> AtTheWheel:
    """The policy in a file, .safetensors. Raises `ValueError` for one that plays in another world or is none."""
    if argument is None:
        raise ValueError("agents.wheel:from_file needs the policy's file behind it: agents.wheel:from_file:policy.safetensors")
    return AtTheWheel(dream, argument, seed)
