"""How good a dream of CartPole is that one command makes: whether it ends when the pole falls, and whether what is learned in it holds.

python -m experiments.check_cartpole --minutes 20 --learn 8          on one core, half an hour in all

`lssvwm-gym dream` makes the dream from pictures alone, PPO learns in it alone, and then balances the real pole, of which it sees what the
model makes of each frame. Written to `out/cartpole.json`: the scores of `evaluate`, ends among them, and the steps of the real episodes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import lssvwm_gym
from agents import ppo
from agents.policies import load_policy
from lssvwm_gym.data.collect_gym import make
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservation
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.own_world import OwnWorld, dream


@dataclass(frozen=True)
class Args:
    """How long each part may take."""

    out: Path = Path("runs/cartpole")
    minutes: float = 20.0  # for the dream
    learn: float = 8.0  # minutes of PPO
    episode_steps: int = 200  # after which a dreamed episode begins anew
    episodes: int = 100  # real ones
    network: str = "auto"  # of the dream, as in `lssvwm-gym dream`
    profile: str = "fast"
    seed: int = 0
    threads: int = 1


def main(args: Args) -> None:
    world = OwnWorld("CartPole-v1", args.out, args.minutes, network=args.network, seed=args.seed, threads=args.threads)  # type: ignore[arg-type]
    weights = dream(world)
    name, policy = lssvwm_gym.register(weights).name, args.out / "ppo" / "policy.safetensors"
    if not policy.exists():
        ppo.main(
            ppo.Args(
                name, policy.parent, time_limit=60 * args.learn, profile=args.profile, weights=weights, episode_steps=args.episode_steps
            )
        )
    real = {"random": balanced(args, world, None), "learned in the dream": balanced(args, world, policy)}
    for who, steps in real.items():
        print(f"{who}: {np.mean(steps):.1f} ± {np.std(steps) / len(steps) ** 0.5:.1f} real steps, {len(steps)} episodes")
    scores = json.loads((args.out / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    print(f"ends of held-out episodes: {scores.get('ends')}")
    write_json(args.out / "cartpole.json", {"scores": scores, "real_steps": real})


@torch.no_grad()
def balanced(args: Args, world: OwnWorld, policy: Path | None) -> list[int]:
    """Steps of the real episodes, of seeds that nothing was learned from."""
    seen_through = open_dream(lssvwm_gym.register(world.out / "weights").name, args.profile, "cpu", world.out / "weights")
    env, acts = WorldModelObservation(make(world.collecting), seen_through), None if policy is None else load_policy(policy, "cpu")[0]
    generator, lengths = torch.Generator().manual_seed(args.seed), []
    for number in range(args.episodes):
        seen, _ = env.reset(seed=1_000_000 + args.seed + number)
        steps, over = 0, False
        while not over:
            chance = torch.randint(2, (1,), generator=generator)
            action = chance if acts is None else acts.act(torch.as_tensor(seen)[None].float(), generator)
            seen, _, terminated, truncated, _ = env.step(np.int64(action.item()))
            steps, over = steps + 1, terminated or truncated
        lengths.append(steps)
    env.close()
    return lengths


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
