"""A scripted explorer of the block world: it walks out, looks around, comes back the same way, and often goes out on it again.

So places are seen twice and more, which is what a memory needs to learn. It earns nothing.
"""

from __future__ import annotations

import numpy as np

from experiments.luanti_expert import TURN, LuantiExpert, Script

TILTS = (-1, 0, 0, 1, 1)  # turns down at which it walks


class LuantiExplorer(LuantiExpert):
    """See `LuantiExpert`."""

    name = "explorer"
    biomes = (("deciduous_forest", 0.45), ("coniferous_forest", 0.3), ("grassland", 0.25))

    def play(self) -> Script:
        while True:
            yield from self.tilt(TURN * int(self.rng.choice(TILTS)))
            yield from self.wander(self.count(25, 60))
            if self.chance(0.35):
                yield from self.look_about()
            if self.chance(0.35):
                yield from self.dig_and_place()
            way = self.crumbs[-len(self.crumbs) // (1 if self.chance(0.6) else 2) :]
            yield from self.go_back(len(way))
            if self.chance(0.3):
                yield from self.look_about()
            if self.chance(0.6):
                yield from self.go_again(way[: self.count(3, 19)])

    def wander(self, steps: int) -> Script:
        """Not on into the dark."""
        for _ in range(steps // 5):
            if self.senses["dark"]:
                return False
            yield from super().wander(5)
        return True

    def go_again(self, way: list[np.ndarray]) -> Script:
        """Out along a way that it has just come back by."""
        for crumb in way:
            self.crumbs.append(crumb)
            if not (yield from self.go_to(crumb[0], crumb[2], 1.0, 14)):
                return False
        return True
