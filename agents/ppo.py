"""Proximal policy optimisation (Stable-Baselines3) in a dream, or in the real world it was learned from.

python agents/ppo.py                                            learn in a dream, try the policy there and in the real maze
python agents/ppo.py --env MemoryMaze9x9-Real-v0                learn in the real maze, seen through the same model
python agents/ppo.py --observation image --frame-stack 4        from pictures instead of the world model's features
python agents/ppo.py --resume --total-timesteps 1000000         go on where the last run stopped

The folder `runs/ppo/ENV` gets policy.safetensors (see `agents.sb3_policy`), checkpoint.safetensors, evaluation.json, films, and logs
for `tensorboard --logdir runs/ppo`. Needs `pip install 'lssvwm_gym[agents]'`, and for the real maze `lssvwm_gym[memory-maze]`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.append(str(Path(__file__).parent.parent))  # for `agents`, wherever this is started

from agents.sb3_run import Run, run
from lssvwm_gym.malloc import keep_freed_memory


@dataclass(frozen=True)
class Args(Run):
    """What to learn, where, and how."""


if __name__ == "__main__":
    keep_freed_memory()
    run(tyro.cli(Args, description=__doc__), "ppo")
