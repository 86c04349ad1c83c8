"""Who is at the wheel when you are not: a policy by name, one of your own, or the moves of a saved game.

--policy random                       any action, each as likely
--policy wander                       forward, with turns now and then
--policy module:attribute             `attribute(dream, None, seed)` of a module that Python finds, the current folder included
--policy module:attribute:ARGUMENT    the same with `attribute(dream, "ARGUMENT", seed)`, such as the file of a policy
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Protocol

import numpy as np

from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.play.snapshot import Moment, Move

FORWARD, KEEP = 0.7, 0.8  # chances that a wanderer goes forward, and that it does the same once more


class Driver(Protocol):
    """Chooses actions."""

    def __call__(self, moment: Moment) -> int:
        """The action at a moment: `moment.frame`, `moment.info`, and the model's own state in `moment.state.dream`."""


Opener = Callable[[Dream, "str | None", int], Driver]  # (dream, argument, seed)


def open_driver(name: str, dream: Dream, seed: int) -> Driver:
    """The driver of that name. Raises `ValueError` for a name that leads to none."""
    if name in DRIVERS:
        return DRIVERS[name](dream, None, seed)
    module, separator, rest = name.partition(":")
    attribute, _, argument = rest.partition(":")
    if not separator or not attribute:
        raise ValueError(f"a policy is {', '.join(DRIVERS)}, or module:attribute[:argument] that opens one, not {name!r}")
    driver = _imported(module, attribute, name)(dream, argument or None, seed)
    if not callable(driver):
        raise ValueError(f"{name} opened {driver!r}, which is no function from a moment to an action")
    return driver


def _imported(module: str, attribute: str, name: str) -> Opener:
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # a console script doesn't look into the current folder by itself
    try:
        opener = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"policy {name}: no module named {error.name!r}; looked in the current folder too") from None
    except AttributeError:
        raise ValueError(f"policy {name}: {module} has no {attribute!r}") from None
    return opener


class Random:
    """Any action, each as likely."""

    def __init__(self, dream: Dream, argument: str | None, seed: int) -> None:
        self._actions, self._random = len(dream.world.actions), np.random.default_rng(seed)

    def __call__(self, moment: Moment) -> int:
        return int(self._random.integers(self._actions))


class Wander:
    """Forward, with turns now and then that last some steps. For worlds whose actions are named so."""

    def __init__(self, dream: Dream, argument: str | None, seed: int) -> None:
        names = dream.world.actions
        if "forward" not in names:
            raise ValueError(f"wander needs an action named forward; {dream.world.name} has {', '.join(names)}")
        self._forward = names.index("forward")
        self._turns = [number for number, name in enumerate(names) if "left" in name or "right" in name or name == "jump_forward"]
        self._random, self._last = np.random.default_rng(seed), self._forward

    def __call__(self, moment: Moment) -> int:
        if self._random.random() >= KEEP:
            forward = self._random.random() < FORWARD or not self._turns
            self._last = self._forward if forward else int(self._random.choice(self._turns))
        return self._last


class Replay:
    """The moves of a saved game, one after the other."""

    def __init__(self, moves: tuple[Move, ...]) -> None:
        self._moves, self._next = moves, 0

    @property
    def ended(self) -> bool:
        return self._next == len(self._moves)

    def next(self) -> Move:
        self._next += 1
        return self._moves[self._next - 1]


DRIVERS: dict[str, Opener] = {"random": Random, "wander": Wander}
