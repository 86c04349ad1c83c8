"""Who chooses actions while no key is held: a policy by name, or one of your own.

--policy random                       any action, each as likely
--policy wander                       forward, with turns now and then
--policy module:attribute             `attribute(dream, None, seed)` of a module that Python finds, the current folder included
--policy module:attribute:ARGUMENT    the same with `attribute(dream, "ARGUMENT", seed)`, such as the file of a policy
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.io.json_config import imported
from lssvwm_gym.play.snapshot import Snapshot

FORWARD, KEEP = 0.7, 0.8  # probabilities of going forward, and of the same action once more, in `Wander`


class GamePolicy(Protocol):
    def __call__(self, snapshot: Snapshot) -> int:
        """The action for `snapshot.frame`, `snapshot.info`, and the model's own state in `snapshot.state.dream`."""


PolicyOpener = Callable[[Dream, "str | None", int], GamePolicy]  # (dream, argument, seed)


def open_random(dream: Dream, argument: str | None, seed: int) -> GamePolicy:
    """Any action, each as likely."""
    rng = np.random.default_rng(seed)
    return lambda snapshot: int(rng.integers(len(dream.world.actions)))


class Wander:
    """Forward, with turns now and then that last some steps. For worlds whose actions are named so."""

    def __init__(self, dream: Dream, argument: str | None, seed: int) -> None:
        names = dream.world.actions
        if "forward" not in names:
            raise ValueError(f"wander needs an action named forward; {dream.world.name} has {', '.join(names)}")
        self._forward = names.index("forward")
        self._turns = [number for number, name in enumerate(names) if "left" in name or "right" in name or name == "jump_forward"]
        self._rng, self._last = np.random.default_rng(seed), self._forward

    def __call__(self, snapshot: Snapshot) -> int:
        if self._rng.random() >= KEEP:
            forward = self._rng.random() < FORWARD or not self._turns
            self._last = self._forward if forward else int(self._rng.choice(self._turns))
        return self._last


POLICIES: dict[str, PolicyOpener] = {"random": open_random, "wander": Wander}


def open_policy(name: str, dream: Dream, seed: int) -> GamePolicy:
    """The policy of that name. Raises `ValueError` for a name that leads to none."""
    if name in POLICIES:
        return POLICIES[name](dream, None, seed)
    module, separator, rest = name.partition(":")
    attribute, _, argument = rest.partition(":")
    if not separator or not attribute:
        raise ValueError(f"a policy is {', '.join(POLICIES)}, or module:attribute[:argument] that opens one, not {name!r}")
    policy = imported(f"{module}:{attribute}")(dream, argument or None, seed)
    if not callable(policy):
        raise ValueError(f"{name} opened {policy!r}, which is no function from a snapshot to an action")
    return policy
