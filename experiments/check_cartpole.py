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
import tyro

import lssvwm_gym
from agents import ppo
from experiments.agents_by_name import open_agent
from experiments.trials import as_observed, real_episode
from lssvwm_gym.data.collect_gym import make
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.own_world import OwnWorld
from lssvwm_gym.own_world import dream as make_dream


@dataclass(frozen=True)
class Args:
    """How long each part may take."""

    out: Path = Path("runs/cartpole")
    minutes: float = 20.0  # for the dream
    learn: float = 8.0  # minutes of PPO
    episode_steps: int = 200  # after which a dreamed episode begins anew
    episodes: int = 100  # real ones
    size: int = 128  # pixels a side: at 64 a pole that falls has moved by less than three
    network: str = "auto"  # of the dream, as in `lssvwm-gym dream`
    profile: str = "fast"
    seed: int = 0
    threads: int = 1


def main(args: Args) -> None:
    world = OwnWorld("CartPole-v1", args.out, args.minutes, size=args.size, network=args.network, seed=args.seed, threads=args.threads)  # type: ignore[arg-type]
    weights = make_dream(world)
    name, policy = lssvwm_gym.register(weights).name, args.out / "ppo" / "policy.safetensors"
    if not policy.exists():
        learning = {"observation": "features", "before_rewards": 0.0, "gamma": 0.99, "episode_steps": args.episode_steps}
        ppo.main(ppo.Args(name, policy.parent, time_limit=60 * args.learn, profile=args.profile, weights=weights, **learning))  # type: ignore[arg-type]
    real = {"random": balanced(args, world, "random"), "learned in the dream": balanced(args, world, str(policy))}
    for who, steps in real.items():
        print(f"{who}: {np.mean(steps):.1f} ± {np.std(steps) / len(steps) ** 0.5:.1f} real steps, {len(steps)} episodes")
    scores = json.loads((args.out / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    print(f"ends of held-out episodes: {scores.get('ends')}")
    write_json(args.out / "cartpole.json", {"scores": scores, "real_steps": real})


def balanced(args: Args, world: OwnWorld, policy: str) -> list[int]:
    """Steps of the real episodes, of seeds that nothing was learned from; each step pays 1."""
    dream = open_dream(lssvwm_gym.register(world.out / "weights").name, args.profile, "cpu", world.out / "weights")
    agent = open_agent(policy, dream, 1, args.seed)
    env = as_observed(make(world.collecting), dream, agent.observation)
    lengths = [round(real_episode(env, agent, 1_000_000 + args.seed + number)) for number in range(args.episodes)]
    env.close()
    return lengths


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
