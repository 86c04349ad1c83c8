"""Proximal policy optimisation with a memory of its own, an LSTM (sb3-contrib), in a dream or in the real world.

python agents/recurrent_ppo.py                                  learn in a dream, try the policy there and in the real maze
python agents/recurrent_ppo.py --observation image              from pictures: the LSTM is then all the memory there is
python agents/recurrent_ppo.py --env MemoryMaze9x9-Real-v0 --observation image
python agents/recurrent_ppo.py --resume --total-timesteps 1000000

As `agents/ppo.py`, in the folder `runs/recurrent_ppo/ENV`.
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

    lstm: int = 256  # units of the policy's memory, and of the critic's


if __name__ == "__main__":
    keep_freed_memory()
    arguments = tyro.cli(Args, description=__doc__)
    run(arguments, "recurrent_ppo", arguments.lstm)
