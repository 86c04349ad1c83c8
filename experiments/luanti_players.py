"""The two scripted players of the block world, by whom the shipped weights' episodes were recorded.

lssvwm-gym collect luanti --player experiments.luanti_players:mixed --out data/luanti/train --episodes 100 --workers 2
"""

from __future__ import annotations

import numpy as np

from experiments.luanti_chopper import LuantiChopper
from experiments.luanti_expert import LuantiExpert
from experiments.luanti_explorer import LuantiExplorer


def mixed(rng: np.random.Generator) -> LuantiExpert:
    """Two explorers for every three choppers."""
    return LuantiExplorer(rng) if rng.random() < 0.4 else LuantiChopper(rng)
