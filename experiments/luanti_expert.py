"""Scripted players of the block world, put together from small scripts.

A script is a generator: it yields an action and, when it goes on, finds in the player what has become of the world. Its
return value says whether it did what it is for. Players cheat: they use what `info["senses"]` tells and no picture shows.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np

TURN = math.radians(15)  # of one step
STEEPEST = 4  # turns up or down
EYE = 1.47  # metres above the feet
WHIM_SHARE = 0.003  # of the steps try to craft anything, mostly in vain
BURST_WEIGHTS = np.array([1, 4, 2, 3, 3, 2, 2, 3, 3, 2, 0.25, 0.25, 0.25, 0.25])
SECOND_THOUGHT = 0.7  # how often it digs through what is in the way, if it can

NOOP, FORWARD, BACK, LEFT, RIGHT, UP, DOWN, JUMP, DIG, PLACE = range(10)  # actions, in the order of the environment's
CRAFT_PLANKS, CRAFT_STICKS, CRAFT_WOODEN_PICKAXE, CRAFT_STONE_PICKAXE = range(10, 14)
LOG, PLANKS, STICK, WOODEN_PICKAXE, COBBLESTONE, STONE_PICKAXE, DIRT = range(7)  # in the inventory
BURST_SHARE, BURST_STEPS = 0.014, (4, 10)  # of the steps begin some random ones

Script = Generator[int, None, bool]


class LuantiExpert:
    """One episode's player, decided by `rng` and by what `LuantiEnv(senses=True)` answers.

    A subclass names itself, says where its episodes are to begin, and plays by `play`.

    Attributes:
        start: options of `reset` with which the episode is to begin.

    Args:
        rng: draws everything that is a matter of chance.
    """

    name = ""
    biomes: tuple[tuple[str, float], ...]  # in which its episodes begin, and their shares
    among_trees = False

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        names, shares = zip(*self.biomes, strict=True)
        self.start = {"biome": str(rng.choice(names, p=shares)), "trees": self.among_trees}
        self.crumbs: list[np.ndarray] = []  # where it has come by, to go back the same way
        self._script = self.play()
        self._burst = 0

    @property
    def facts(self) -> dict[str, np.ndarray]:
        """What is worth recording of it."""
        return {"policy": np.asarray(self.name)}

    def __call__(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> int:
        """The next action, 0..13; the image is not looked at."""
        self.inventory = observation["inventory"]
        self.pos, self.yaw, self.pitch = info["pos"].astype(float), float(info["yaw"]), float(info["pitch"])
        self.senses = info["senses"]
        if self._burst == 0 and self.rng.random() < BURST_SHARE:
            self._burst = int(self.rng.integers(BURST_STEPS[0], BURST_STEPS[1] + 1))
        if self._burst:
            self._burst -= 1
            return int(self.rng.choice(len(BURST_WEIGHTS), p=BURST_WEIGHTS / BURST_WEIGHTS.sum()))
        if self.rng.random() < WHIM_SHARE:
            return int(self.rng.integers(CRAFT_PLANKS, CRAFT_STONE_PICKAXE + 1))
        return next(self._script)

    def play(self) -> Script:
        """The whole episode: never ends."""
        raise NotImplementedError

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def count(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def side(self) -> int:
        return LEFT if self.chance(0.5) else RIGHT

    def moved(self, since: np.ndarray) -> float:
        """Metres over ground from `since` (3,)."""
        return float(np.hypot(*(self.pos - since)[[0, 2]]))

    def pointed(self) -> str:
        """Name of the block that is pointed at, or nothing."""
        return self.senses["pointed"]["name"] if self.senses.get("pointed") else ""

    def pointed_at(self) -> list[int] | None:
        """Its place."""
        return [round(part) for part in self.senses["pointed"]["at"]] if self.senses.get("pointed") else None

    # ---- looking ----

    def repeat(self, action: int, times: int) -> Script:
        for _ in range(times):
            yield action
        return True

    def face(self, yaw: float) -> Script:
        for _ in range(14):
            error = wrapped(yaw - self.yaw)
            if abs(error) <= 0.52 * TURN:
                return True
            yield LEFT if error > 0 else RIGHT
        return False

    def tilt(self, pitch: float) -> Script:
        pitch = float(np.clip(pitch, -STEEPEST * TURN, STEEPEST * TURN))
        for _ in range(2 * STEEPEST + 1):
            error = pitch - self.pitch
            if abs(error) <= 0.52 * TURN:
                return True
            yield DOWN if error > 0 else UP
        return False

    def look_about(self) -> Script:
        """Up, down, to a side and back, or all around."""
        if self.chance(0.25):
            yield from self.repeat(self.side(), 24 if self.chance(0.5) else 12)
            return True
        there, back, most = [(UP, DOWN, 3), (DOWN, UP, 3), (LEFT, RIGHT, 12), (RIGHT, LEFT, 12)][self.count(0, 3)]
        turns = self.count(max(1, most // 4), most)
        yield from self.repeat(there, turns)
        return (yield from self.repeat(back, turns))

    # ---- walking ----

    def stride(self) -> Script:
        """One careful step ahead, or a jump over a single block; false where the way is shut, wet or steep."""
        feet, eyes, above, overhead = self.senses["solid"]
        if self.senses["in_water"]:
            yield JUMP
            return True
        if 0 < self.senses["water"] < 3 or self.senses["drop"] > 3 or eyes or (feet and (above or overhead)):
            return False
        before = self.pos
        yield JUMP if feet else FORWARD
        if self.moved(before) > 0.12:
            return True
        yield JUMP
        return self.moved(before) > 0.2

    def detour(self) -> Script:
        side = self.side()
        yield from self.repeat(side, self.count(3, 6))
        for _ in range(self.count(3, 5)):
            if not (yield from self.stride()):
                yield from self.repeat(side, 2)
        return True

    def go_to(self, x: float, z: float, within: float, steps: int) -> Script:
        shut = 0
        for _ in range(steps):
            away_x, away_z = x - self.pos[0], z - self.pos[2]
            distance = math.hypot(away_x, away_z)
            if distance < within:
                return True
            error = wrapped(math.atan2(-away_x, away_z) - self.yaw)
            if abs(error) > 0.6 * TURN:
                yield LEFT if error > 0 else RIGHT
                continue
            if (yield from self.stride()):
                continue
            shut += 1
            if shut > 5 or distance < within + 0.5:
                return shut <= 5
            yield from self.make_way()
        return False

    def make_way(self) -> Script:
        """Through what is in the way, or around it."""
        has_pickaxe = self.inventory[WOODEN_PICKAXE] + self.inventory[STONE_PICKAXE] > 0
        if has_pickaxe and self.chance(SECOND_THOUGHT):
            return (yield from self.dig_ahead())
        if "leaves" in self.pointed() and self.chance(SECOND_THOUGHT):
            return (yield from self.repeat(DIG, 4))
        return (yield from self.detour())

    def wander(self, steps: int) -> Script:
        """Ahead, with a turn now and then, leaving crumbs."""
        side = self.side()
        for _ in range(steps):
            self.drop_crumb(1.5)
            luck = self.rng.random()
            if luck < 0.1:
                side = self.side()
                yield from self.repeat(side, self.count(1, 3))
            elif luck < 0.12:
                yield from self.look_about()
            elif not (yield from self.stride()):
                yield from self.repeat(side, self.count(2, 4))
        return True

    def drop_crumb(self, apart: float) -> None:
        if not self.crumbs or self.moved(self.crumbs[-1]) > apart:
            self.crumbs.append(self.pos)

    def go_back(self, crumbs: int) -> Script:
        """By the last crumbs, which are picked up."""
        for _ in range(min(crumbs, len(self.crumbs))):
            x, _, z = self.crumbs.pop()
            if not (yield from self.go_to(x, z, 1.0, 14)):
                yield from self.detour()
        return True

    # ---- digging ----

    def dig_pointed(self, steps: int) -> Script:
        """Hold dig until another block is pointed at."""
        block = self.pointed_at()
        for _ in range(steps if block else 0):
            yield DIG
            if self.pointed_at() != block:
                return True
        return False

    def dig_ahead(self) -> Script:
        """What shuts the way: at the eyes, at the feet, or overhead where it hinders a jump."""
        feet, eyes, above, overhead = self.senses["solid"]
        yield from self.tilt(0 if eyes or not feet else -3 * TURN if above or overhead else 3 * TURN)
        dug = yield from self.dig_pointed(12)
        yield from self.tilt(0)
        return dug

    def dig_and_place(self) -> Script:
        """Take up some ground, and put it back."""
        yield from self.tilt(TURN * self.count(2, 4))
        yield from self.repeat(DIG, self.count(5, 13))
        yield from self.repeat(NOOP, self.count(0, 2))
        if self.inventory[DIRT] or self.inventory[PLANKS]:
            yield from self.repeat(PLACE, self.count(1, 2))
            yield NOOP
        return (yield from self.tilt(0))


def wrapped(angle: float) -> float:
    """The same angle in -pi..pi."""
    return (angle + math.pi) % (2 * math.pi) - math.pi
