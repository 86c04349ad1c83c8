"""From an environment that this package has never seen to a dream of it, in a minute: `lssvwm-gym dream`, small.

python examples/own_world.py        CartPole, in a size that shows the way and not yet a good dream; docs/own_world.md has more

For a good one, on one CPU core: python examples/own_world.py --network auto --minutes 30 --episodes 0 --out demo/cartpole
The commands beneath are printed as they run, and every one can be typed instead.
"""

from __future__ import annotations

from pathlib import Path

import tyro

import lssvwm_gym
from lssvwm_gym.own_world import OwnWorld, dream

SMALL = OwnWorld("CartPole-v1", Path("demo/own_world"), network="tiny", episodes=6)


def main(run: OwnWorld) -> None:
    env = lssvwm_gym.load(dream(run))  # or gymnasium.make("LSSVWM-Dream-v0", weights=...)
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation, _ = env.reset()
    world = env.unwrapped.dream.world  # type: ignore[attr-defined]
    print(f"a dream of {world.name}: {observation.shape}, {env.action_space}, {', '.join(world.actions)}")


if __name__ == "__main__":
    main(tyro.cli(OwnWorld, default=SMALL, description=__doc__))
