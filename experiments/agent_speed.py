"""Where a second of learning goes: steps/s of `agents.ppo` beside those of the dream alone, by processor time.

python -m experiments.agent_speed --out docs/scores/agent_speed.json
python -m experiments.agent_speed --num-envs 16 --no-compile

The dream alone is `Dream.step` on rows that never begin anew, from features, nothing decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from agents import ppo, starts
from agents.policies import PolicyConfig, as_json
from experiments.trials import write_result
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import observed_shape
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.inference.backend import Backend


@dataclass(frozen=True)
class Args:
    """What to measure."""

    world: str = "memory-maze"
    profile: str = "fast"
    map: bool = False  # decide on the map
    dtype: str = "auto"  # of the dream's products: float32 or bfloat16
    compile: bool = True
    num_envs: int = 32
    rounds: int = 6  # rollouts and updates, after one that is not counted
    threads: int = 1
    out: Path = Path("runs/agent_speed.json")


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    backend = Backend(compiled="on" if args.compile else "off")
    dream = open_dream(args.world, args.profile, "cpu", dtype=args.dtype, backend=backend)
    settings = replace(ppo.Args(args.world, map=args.map), num_envs=args.num_envs, bank=2 * args.num_envs, before_rewards=0.0)
    settings = ppo.with_defaults(settings, "cpu")
    envs = starts.dreams(settings, dream, starts.open_bank(settings, dream))
    shape = observed_shape(dream, settings.observation)
    config = PolicyConfig(dream.world.name, settings.observation, shape, len(dream.world.actions), map=args.map)
    learner = ppo.Learner(settings, config, envs, dream.device)
    steps = args.num_envs * settings.rollout_steps

    def dream_alone() -> None:
        state = envs.clone_state().dream
        for _ in range(settings.rollout_steps):
            action = torch.randint(len(dream.world.actions), (args.num_envs,))
            state = dream.step(state, action, torch.randn_like(state.latent)).state

    def environment() -> None:
        for _ in range(settings.rollout_steps):
            envs.step(torch.randint(len(dream.world.actions), (args.num_envs,)))

    alone, stepped = (seconds(part, args.rounds) for part in (dream_alone, environment))
    learner.begin(0)
    rolled = seconds(learner.rollout, args.rounds)
    rollout = learner.rollout()
    advantages = learner.advantages(rollout, learner.following())
    updated = seconds(lambda: learner.update(rollout, advantages), args.rounds)
    whole = rolled + updated
    parts = {"dream": alone, "environment": stepped - alone, "policy": rolled - stepped, "update": updated}
    result = {
        "settings": as_json(args),
        "dream_steps_per_second": steps / alone,
        "learning_steps_per_second": steps / whole,
        "share": alone / whole,
        "of_a_second": {name: part / whole for name, part in parts.items()},
    }
    write_result(args.out, result)
    print(f"the dream alone {steps / alone:.0f} steps/s, learning {steps / whole:.0f}: {100 * alone / whole:.0f} %")
    print(", ".join(f"{name} {100 * part / whole:.0f} %" for name, part in parts.items()))


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Processor time of one call, the mean of some after a first."""
    work()
    began = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - began) / rounds


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
