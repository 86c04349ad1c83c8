"""Whether a dream of Pendulum that one command makes tells good controllers from bad ones: returns in the dream beside real ones.

python -m experiments.check_pendulum --minutes 20          on one core, half an hour in all

`lssvwm-gym dream` makes the dream from pictures of a random player. Eight controllers of different skill, which see nothing but pictures
either, play in the dream and in the environment; written to `pendulum.json` in the dream's folder: their mean returns, the correlation
of those, and the scores of `evaluate`. Each episode begins with a few random steps, which are not counted: those that dreams are given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from torch import Tensor

import lssvwm_gym
from experiments.check_own_worlds import MakeAgent, RandomPlayers, given_steps, in_dreams, in_world
from experiments.trials import command_line, correlation_of_returns, mean_and_error, summary
from lssvwm_gym.data.collect_gym import make
from lssvwm_gym.envs.profiles import DEFAULT
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.own_world import OwnWorld, planned
from lssvwm_gym.own_world import dream as make_dream

STEPS = 200  # of an episode
SECONDS = 0.05  # a step
TORQUE = 2.0  # at most
GRAVITY = 15.0  # acceleration of a level rod, in radians/s²
RED = 30  # by how much a pixel of the rod is redder than white or black

Law = Callable[[np.ndarray, np.ndarray], np.ndarray]  # angle (B,) from upright in radians, its velocity (B,) in 1/s -> torque (B,)


@dataclass(frozen=True)
class Args:
    """How long each part may take."""

    out: Path = Path("runs/pendulum")
    minutes: float = 20.0  # for the dream
    episodes: int = 16  # of each controller, in the dream and in the environment
    network: str = "auto"  # of the dream, as in `lssvwm-gym dream`
    profile: str = DEFAULT
    seed: int = 0
    threads: int = 1


def main(args: Args) -> None:
    world = OwnWorld("Pendulum-v1", args.out, args.minutes, network=args.network, seed=args.seed, threads=args.threads)  # type: ignore[arg-type]
    weights = make_dream(world)
    dream, env = open_dream(lssvwm_gym.register(weights), args.profile, "cpu", weights), make(world.collecting)
    random: MakeAgent = partial(RandomPlayers, env.action_space, (), planned(world).sticky)
    laws: dict[str, MakeAgent] = {name: partial(Controllers, law, chance) for name, (law, chance) in LAWS.items()}
    returns = {}
    for name, make_agent in {**laws, "at random": random}.items():
        dreamed = in_dreams(dream, make_agent, args.episodes, STEPS, args.seed)
        real = in_world(env, random, make_agent, args.episodes, STEPS, given_steps(dream), args.seed)
        both = [[one.earned for one in played] for played in (dreamed, real)]
        returns[name] = dict(zip(("dream", "environment"), map(summary, both), strict=True))
        print(f"{name:<24}" + "  ".join(f"{where} {mean_and_error(said)}" for where, said in returns[name].items()), flush=True)
    env.close()
    correlation = correlation_of_returns([(said["dream"]["returns"], said["environment"]["returns"]) for said in returns.values()])
    print(f"correlation of the means: {correlation}")
    scores = json.loads((args.out / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    write_json(args.out / "pendulum.json", {"command": command_line(), "correlation": correlation, "returns": returns, "scores": scores})


def rod_angle(frames: np.ndarray) -> np.ndarray:
    """The rod's angle (B,) from upright, counter-clockwise in radians, in pictures (B, height, width, 3) uint8: where its red is."""
    red, others = frames[..., 0].astype(float), frames[..., 1:].mean(-1)
    weight = (red - others - RED).clip(min=0) + 1e-9
    y, x = (axis - (size - 1) / 2 for axis, size in zip(np.mgrid[: frames.shape[1], : frames.shape[2]], frames.shape[1:3], strict=True))
    return np.arctan2(-(weight * x).sum((1, 2)), -(weight * y).sum((1, 2)))


def swing_up(gain: float, damping: float, near: float = 0.6) -> Law:
    """Give the rod the energy of standing upright, and hold it there with a spring and a damper, where it is nearer than that."""

    def torque(angle: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        missing = GRAVITY * (1 - np.cos(angle)) - velocity**2 / 2
        return np.where(np.abs(angle) < near, -gain * angle - damping * velocity, TORQUE * np.sign(velocity * missing))

    return torque


LAWS: dict[str, tuple[Law, float]] = {  # and with which chance an action is random instead
    "balances": (swing_up(10, 2), 0.0),
    "balances loosely": (swing_up(6, 0.3), 0.0),
    "balances, half at random": (swing_up(10, 2), 0.5),
    "swings up, holds nothing": (swing_up(0, 0), 0.0),
    "slows down": (lambda angle, velocity: -velocity, 0.0),
    "speeds up": (lambda angle, velocity: TORQUE * np.sign(velocity), 0.0),
    "turns one way": (lambda angle, velocity: np.full_like(angle, TORQUE), 0.0),
}


class Controllers:
    """One law in some episodes side by side, from pictures alone; an agent."""

    observation = "image"

    def __init__(self, law: Law, random: float, episodes: int, seed: int) -> None:
        self._law, self._random, self._rng = law, random, np.random.default_rng([seed, episodes])
        self._last: np.ndarray | None = None

    def act(self, observation: Tensor, info: dict[str, Any] | None) -> np.ndarray:
        angle = rod_angle(observation.cpu().numpy())
        turned = angle - (angle if self._last is None else self._last)
        self._last, velocity = angle, ((turned + np.pi) % (2 * np.pi) - np.pi) / SECONDS
        torque = self._law(angle, velocity).clip(-TORQUE, TORQUE)
        drawn = self._rng.uniform(-TORQUE, TORQUE, torque.shape)
        return np.where(self._rng.random(torque.shape) < self._random, drawn, torque)[:, None].astype(np.float32)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
