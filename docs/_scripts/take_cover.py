"""How long the shipped policy of Take Cover survives in dreams and in the game: docs/scores/take_cover.json and docs/media/take_cover.gif.

python -m docs._scripts.take_cover          needs `pip install -e '.[agents,doom]'`; a quarter of an hour
"""

from __future__ import annotations

from pathlib import Path

import torch

from examples.take_cover import FPS, TakeCover, compare
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.video import write_movie
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.worlds import WORLDS

DOCS = Path(__file__).parent.parent
SHOWN = 135  # frames, a quarter of a minute

if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    dream = open_dream(WORLDS["take-cover"], "fast", "cpu")
    frames = compare(dream, dream.world.weights / "policy.safetensors", TakeCover(), DOCS / "scores" / "take_cover.json")
    write_movie(DOCS / "media" / "take_cover.gif", frames[:SHOWN], FPS, 3)
