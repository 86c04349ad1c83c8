"""Players of the block world that do not look: what they do depends on their generator alone.

So their recordings show what walls, the ground and a bag that lacks something do to an agent that knows no better, and the same actions
can be played in the game and in a dream of it. Some of their episodes begin with things in the bag: crafts are tried in all its states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lssvwm_gym.worlds.minecraft import MINECRAFT

NOOP, FORWARD, BACK, LEFT, RIGHT, UP, DOWN, JUMP, DIG, PLACE, *CRAFTS = range(len(MINECRAFT.actions))
RECIPES_IN_ORDER = (CRAFTS[0], *CRAFTS)  # from logs and cobblestones each is possible: planks twice, for sticks take some
HABITS: dict[str, tuple[tuple[int, ...], int]] = {  # what is drawn from, and for how many steps on end at most
    "rest": ((NOOP,), 3),
    "walk": ((FORWARD, FORWARD, FORWARD, JUMP, BACK), 12),
    "jump": ((JUMP,), 8),
    "turn": ((LEFT, RIGHT), 9),
    "look": ((UP, DOWN), 9),
    "dig": ((DIG,), 22),
    "place": ((PLACE,), 2),
    "craft": (tuple(CRAFTS), 8),
}
ODDS: dict[str, dict[str, float]] = {  # Dirichlet parameters of how often a habit is drawn, by episode
    "wander": {"walk": 4, "jump": 2, "turn": 3, "look": 0.5, "rest": 0.2, "dig": 0.1, "place": 0.1, "craft": 0.2},
    "dig": {"walk": 2, "jump": 1, "turn": 2, "look": 1.5, "rest": 0.2, "dig": 3, "place": 0.7, "craft": 0.7},
    "craft": {"walk": 1, "jump": 0.5, "turn": 1, "look": 0.5, "rest": 0.5, "dig": 0.5, "place": 0.7, "craft": 6},
    "return": {"walk": 3, "jump": 1, "turn": 2, "look": 1.5, "return": 2},
    "recipes": {"walk": 2, "turn": 2, "recipes": 2},
}
MIX = {"wander": 0.4, "dig": 0.35, "craft": 0.25}  # of the episodes
AWAY = (30, 70)  # steps from what was dug to the sight of it again, at least and at most, of one that returns
RETURN_SHARE = 0.5  # of the turns and looks of one that digs, which go back as far soon after
BAG_SHARE = {"wander": 0.3, "dig": 0.5, "craft": 1.0, "return": 0.5, "recipes": 1.0}  # of the episodes begin with something in the bag
ITEM_SHARE, MOST_ITEMS = 0.6, 10  # of the kinds of items are in such a bag, and how many of each at most
BIOMES = {"deciduous_forest": 0.4, "coniferous_forest": 0.3, "grassland": 0.2, "savanna": 0.1}


class BlindPlayer:
    """One episode: habits one after the other, each for some steps; `name` is a key of `ODDS`, `start` are options of its `reset`."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        self.name, self._rng = name, rng
        biome = str(rng.choice(list(BIOMES), p=list(BIOMES.values())))
        self.start: dict[str, Any] = {"biome": biome, "trees": biome.endswith("forest")}
        if rng.random() < BAG_SHARE[name]:
            self.start["inventory"] = random_bag(rng)
        self._habits, self._shares = list(ODDS[name]), rng.dirichlet(list(ODDS[name].values()))
        self._ahead: list[int] = []  # steps to come

    def __call__(self, observation: Any, info: dict[str, Any]) -> int:
        """The next action, 0..13, whatever there is to see."""
        if not self._ahead:
            self._ahead = self._next()
        return self._ahead.pop(0)

    def _next(self) -> list[int]:
        habit = str(self._rng.choice(self._habits, p=self._shares))
        if habit == "return":
            return self._dig_and_return()
        if habit == "recipes":
            return list(RECIPES_IN_ORDER)
        choices, longest = HABITS[habit]
        action, steps = int(self._rng.choice(choices)), int(self._rng.integers(1, longest + 1))
        if habit == "craft":  # each of its steps is drawn
            return [action, *map(int, self._rng.choice(choices, steps - 1))]
        there = [action] * steps
        if habit not in ("turn", "look") or self.name != "dig" or self._rng.random() >= RETURN_SHARE:
            return there
        dug = [DIG] * int(self._rng.integers(4, HABITS["dig"][1] + 1)) if self._rng.random() < 0.5 else []
        back = {LEFT: RIGHT, RIGHT: LEFT, UP: DOWN, DOWN: UP}[action]
        return [*dug, *there, *[NOOP] * int(self._rng.integers(4)), *[back] * steps]

    def _dig_and_return(self) -> list[int]:
        """Dig, turn away, and turn back to look at what is left."""
        away, back = (LEFT, RIGHT) if self._rng.random() < 0.5 else (RIGHT, LEFT)
        steps, down = int(self._rng.integers(*AWAY, endpoint=True)), int(self._rng.integers(4))  # the ground is always in reach
        turns = int(self._rng.integers(4, min(steps // 2, 20), endpoint=True))
        dug = [DIG] * int(self._rng.integers(8, HABITS["dig"][1] + 1))
        turned = [*[away] * turns, *[NOOP] * (steps - 2 * turns), *[back] * turns]
        return [*[DOWN] * down, *dug, *turned, NOOP, NOOP, *[UP] * down]


def random_bag(rng: np.random.Generator) -> tuple[int, ...]:
    """How many of each item."""
    kinds = len(MINECRAFT.inventory)
    counts = rng.integers(1, MOST_ITEMS + 1, kinds) * (rng.random(kinds) < ITEM_SHARE)
    few = rng.random(kinds) < 0.5  # the recipes take up to three
    return tuple(int(count) for count in np.where(few, np.minimum(counts, rng.integers(1, 4, kinds)), counts))


def make_mixed(rng: np.random.Generator) -> BlindPlayer:
    """One of those in `MIX`, for an episode."""
    return BlindPlayer(str(rng.choice(list(MIX), p=list(MIX.values()))), rng)


PLAYERS: dict[str, Callable[[np.random.Generator], Any]] = {name: partial(BlindPlayer, name) for name in ODDS} | {"mixed": make_mixed}
