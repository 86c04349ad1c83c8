"""A scripted chopper: trees, planks, sticks, a wooden pickaxe, stone, a stone pickaxe, all six rewards where luck allows.

Then it climbs out, chops, builds and mines on.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from experiments import luanti_expert as luanti
from experiments.luanti_expert import EYE, TURN, LuantiExpert, Script, wrapped

REACH = 2.3  # metres from a tree at which it begins
TRUNK = (2, 1, 3, 4)  # metres above its foot, which is in the ground, in the order of digging
SOFT = ("leaves", "grass", "tree", "dirt", "needles", "bush", "fern", "flower", "apple")  # dug where it hides a trunk
CENTRED = 0.19  # metres from the middle of a block at which the player, 0.6 wide, still falls through a hole of one


class LuantiChopper(LuantiExpert):
    """See `LuantiExpert`."""

    name = "chopper"
    biomes = (("deciduous_forest", 0.6), ("coniferous_forest", 0.4))
    among_trees = True

    def play(self) -> Script:
        while True:
            if self.inventory[luanti.STONE_PICKAXE]:
                yield from self.live()
            elif self.inventory[luanti.WOODEN_PICKAXE]:
                yield from self.work_stone()
            elif 4 * self.inventory[luanti.LOG] + self.inventory[luanti.PLANKS] >= self.planks_needed():
                yield from self.make_wooden_pickaxe()
            else:
                yield from self.chop()

    def planks_needed(self) -> int:
        return 3 if self.inventory[luanti.STICK] >= 2 else 4

    def live(self) -> Script:
        """All is made."""
        luck = self.rng.random()
        if luck < 0.15:
            return (yield from self.mine(int(self.inventory[luanti.COBBLESTONE]) + self.count(1, 4)))
        if luck < 0.8:
            yield from self.tilt(0)
            yield from self.go_back(40)
            return (yield from self.chop())
        if luck < 0.9:
            return (yield from self.dig_and_place())
        yield from self.tilt(0)
        return (yield from self.wander(20))

    # ---- wood ----

    def make_wooden_pickaxe(self) -> Script:
        for _ in range(12):
            if self.inventory[luanti.WOODEN_PICKAXE]:
                return True
            if self.inventory[luanti.PLANKS] < self.planks_needed() and self.inventory[luanti.LOG]:
                yield luanti.CRAFT_PLANKS
            elif self.inventory[luanti.STICK] < 2 and self.inventory[luanti.PLANKS]:
                yield luanti.CRAFT_STICKS
            elif self.inventory[luanti.PLANKS] >= 3:
                yield luanti.CRAFT_WOODEN_PICKAXE
            else:
                return False
            if self.chance(0.3):
                yield luanti.NOOP
        return False

    def chop(self) -> Script:
        """Walk to a near tree and dig some blocks of its trunk."""
        trees = self.senses["trees"]
        if not trees:
            return (yield from self.wander(25))
        x, y, z = map(round, trees[0] if self.chance(0.75) else trees[self.count(0, min(4, len(trees)) - 1)])
        yield from self.tilt(0)
        if not (yield from self.go_to(x, z, REACH, 60)):
            return (yield from self.wander(8))
        wanted, got = self.count(1, 4), 0
        for height in TRUNK:
            if got == wanted:
                break
            if (yield from self.dig_block([x, y + height, z])):
                got += 1
            elif height == 1 and not got:
                return (yield from self.detour())
        if got and self.inventory[luanti.DIRT] and self.chance(0.2):
            yield luanti.PLACE
        return got > 0

    def dig_block(self, block: list[int]) -> Script:
        """Face a block and dig it, and what is soft in front of it."""
        for _ in range(5):
            away_x, away_z = block[0] - self.pos[0], block[2] - self.pos[2]
            yield from self.face(math.atan2(-away_x, away_z))
            distance = max(math.hypot(away_x, away_z) - 0.5, 0.15)
            yield from self.tilt(TURN * round(math.atan2(self.pos[1] + EYE - block[1], distance) / TURN))
            if not self.pointed():
                yield luanti.FORWARD
                continue
            is_it = self.pointed_at() == block
            if not is_it and not any(soft in self.pointed() for soft in SOFT):
                return False
            if (yield from self.dig_pointed(24 if is_it else 8)) and is_it:
                return True
        return False

    # ---- stone ----

    def work_stone(self) -> Script:
        """With a wooden pickaxe: three cobblestones and two sticks, and the better one."""
        if self.inventory[luanti.COBBLESTONE] < 3:
            return (yield from self.mine(self.count(3, 5)))
        if self.inventory[luanti.STICK] >= 2:
            yield luanti.CRAFT_STONE_PICKAXE
        elif self.inventory[luanti.PLANKS]:
            yield luanti.CRAFT_STICKS
        elif self.inventory[luanti.LOG]:
            yield luanti.CRAFT_PLANKS
        else:
            yield from self.go_back(40)
            yield from self.chop()
        return True

    def mine(self, cobblestones: int) -> Script:
        """Dig stairs down along an axis until it has so many; it can climb them again."""
        heading = yield from self._find_heading()
        if heading is None:
            return (yield from self.detour())
        yield from self.face(heading)
        failures = 0
        for _ in range(40):
            if self.inventory[luanti.COBBLESTONE] >= cobblestones:
                return True
            if self.senses["water"] or self.senses["in_water"]:
                yield from self.tilt(0)
                yield from self.repeat(luanti.LEFT, 6)
                return (yield from self.wander(12))
            self.drop_crumb(0.7)
            yield from self.face(heading)
            if (yield from self._next_stair(heading)):
                continue
            failures += 1
            feet, eyes = self.senses["solid"][:2]
            yield luanti.JUMP if feet and not eyes else luanti.BACK if failures % 2 else luanti.FORWARD
            if failures > 3:
                yield from self.tilt(0)
                return (yield from self.detour())
        return False

    def _find_heading(self) -> Generator[int, None, float | None]:
        """The nearest direction along an axis in whose shafts it fits."""
        for _ in range(8):
            off_centre = np.abs(self.pos - self.pos.round())[[0, 2, 0, 2]]
            fits = np.flatnonzero(off_centre <= CENTRED).tolist()
            before_a_tree = self.senses["solid"][1] and "tree" in self.pointed()
            if fits and not before_a_tree:
                return min((quarter * math.pi / 2 for quarter in fits), key=lambda heading: abs(wrapped(heading - self.yaw)))
            yield from self.tilt(0)
            yield from self.repeat(self.side(), self.count(1, 3))
            yield from self.stride()
            yield luanti.NOOP
        return None

    def _next_stair(self, heading: float) -> Script:
        """Clear what is ahead from top to bottom, then step down."""
        feet, eyes = self.senses["solid"][:2]
        x, z = round(self.pos[0] - math.sin(heading)), round(self.pos[2] + math.cos(heading))
        y = math.floor(self.pos[1] + 1)  # of the block at the feet
        if eyes:
            return (yield from self._dig_ahead_at(x, y + 1, z))
        if feet:
            return (yield from self._dig_ahead_at(x, y, z))
        if self.senses["drop"] == 0:
            return (yield from self._dig_ahead_at(x, y - 0.5, z))  # at the top of the floor
        before = self.pos
        yield luanti.FORWARD
        return bool(np.abs(self.pos - before).max() >= 0.1)

    def _dig_ahead_at(self, x: int, y: float, z: int) -> Script:
        distance = max(abs(x - self.pos[0]), abs(z - self.pos[2])) - 0.5
        distance = max(distance, 0.1) + (0 if y == int(y) else 0.3)
        yield from self.tilt(TURN * round(math.atan2(self.pos[1] + EYE - y, distance) / TURN))
        return (yield from self.dig_pointed(24))
