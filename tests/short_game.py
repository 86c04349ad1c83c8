"""A game that ends, for tests of those who play it."""

from __future__ import annotations

import gymnasium
import numpy as np


class Game(gymnasium.Env):
    """Pays the same each step, and is over after one to ten steps, as its seed says."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, paid=4.0):
        self.paid = paid

    def reset(self, *, seed=None, options=None):
        self.left = seed % 10 + 1
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self.left -= 1
        return np.full((64, 64, 3), 9, np.uint8), self.paid, self.left == 0, False, {}
