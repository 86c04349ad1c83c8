"""From an environment that this package has never seen to a dream of it, in seconds: collect, train, package, make.

python examples/own_world.py        CartPole, in a size that shows the way and not yet a good dream; docs/own_world.md has more

The five commands are printed as they run, and every one can be typed instead.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

import lssvwm_gym
from lssvwm_gym.cli import main as lssvwm_gym_command


@dataclass(frozen=True)
class OwnWorld:
    """Which world, and how much of it."""

    env: str = "CartPole-v1"  # any environment of Gymnasium with pictures, or that renders some
    collect: str = ""  # more settings of `lssvwm-gym collect gym`
    actions: str = "--model.actions 2"  # settings of `train world` about actions and poses
    out: Path = Path("demo/own_world")
    episodes: int = 6
    frames: int = 12  # of a training clip; episodes have more
    steps: int = 20  # of each training


def main(run: OwnWorld) -> None:
    out = run.out
    command(f"collect gym --env {run.env} --out {out}/data --episodes {run.episodes} --workers 1 --least {run.frames + 1} {run.collect}")
    encoder = "--model.widths 8 16 16 --model.latent-channels 8 --batch 8"
    command(f"train autoencoder --data {out}/data --out {out}/autoencoder --steps {run.steps} {encoder}")
    model = "--model.memory-features 0 --model.latent-channels 8 --model.width 32 --model.head-width 16 --model.heads 2 --model.d-state 8"
    clips = " ".join(f"--curriculum.{stage}.frames {run.frames} --curriculum.{stage}.clips 1" for stage in range(3))
    autoencoder = f"{out}/autoencoder/autoencoder.safetensors"
    command(
        f"train world --data {out}/data --autoencoder {autoencoder} --out {out}/world --steps {run.steps} --frames-a-step {4 * run.frames} "
        f"{model} {clips} {run.actions}"
    )
    starts = "--short-contexts 4 --short-context-frames 8 --long-contexts 1"
    command(
        f"package --autoencoder {autoencoder} --world-model {out}/world/world.safetensors --data {out}/data --out {out}/weights {starts}"
    )
    env = lssvwm_gym.load(out / "weights")  # or gymnasium.make("LSSVWM-Dream-v0", weights=...)
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        observation, *_ = env.step(env.action_space.sample())
    world = env.unwrapped.dream.world  # type: ignore[attr-defined]
    print(f"a dream of {world.name}: {observation.shape}, {env.action_space}, {', '.join(world.actions)}")


def command(words: str) -> None:
    print(f"lssvwm-gym {words}")
    lssvwm_gym_command(shlex.split(words))


if __name__ == "__main__":
    main(tyro.cli(OwnWorld, description=__doc__))
