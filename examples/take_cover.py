"""Survive the fireballs of Doom, learned in a dream alone.

python examples/take_cover.py --minutes 90          dream the game and learn in it, on two cores

A random player's games of *VizDoom Take Cover* are recorded; a world model, an autoencoder and a flow head are trained on them
(`lssvwm-gym dream`); a policy learns by PPO in the dream and never sees the game (`python -m agents.ppo`); then it is tried in both, and a
film shows them side by side. It is the task of "World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122): every tic survived counts 1,
a game has at most 2,100 of them, 750 count as solved. A step lasts four tics. Needs `pip install -e '.[train,agents,doom]'`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from gymnasium.wrappers import TimeLimit

import lssvwm_gym
from agents import ppo
from experiments import check_own_worlds
from experiments.agents_by_name import open_agent
from experiments.check_own_worlds import given_steps
from experiments.trials import as_observed, real_episode, write_film
from lssvwm_gym.data.collect_gym import GymCollecting, make
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.own_world import OwnWorld, dream

TICS, STEPS, FPS = 4, 525, 9  # a step; steps of a game and of a second
NOISES = (0.85, 1.15)  # by which what frames are drawn from is scaled: what a policy exploits holds in none but its own dreams


@dataclass(frozen=True)
class TakeCover:
    """How long each part may take."""

    out: Path = Path("runs/take_cover")
    minutes: float = 90.0  # to record the game and to train the models of its dream
    learn: float = 20.0  # minutes of PPO in the dream
    episodes: int = 100  # that the policy is tried in, in the dream and in the game
    profile: str = "fast"  # of the dream
    threads: int = 0  # 0: leave it to torch
    seed: int = 0

    @property
    def world(self) -> OwnWorld:
        """What is dreamed."""
        game = {"imports": ("vizdoom.gymnasium_wrapper",), "kwargs": f'{{"frame_skip": {TICS}}}', "pixels": "render"}
        sizes = {"steps": STEPS, "fps": FPS, "minutes": self.minutes, "threads": self.threads}
        return OwnWorld("VizdoomTakeCover-v1", self.out, **game, **sizes)  # type: ignore[arg-type]


class Trial(NamedTuple):
    """What came of some episodes."""

    tics: np.ndarray  # (episodes,) survived
    frames: np.ndarray  # (T, height, width, 3) uint8 of the first one


def main(run: TakeCover) -> None:
    weights = dream(run.world)
    policy = run.out / "ppo" / "policy.safetensors"
    if not policy.exists():
        learning = {
            "observation": "features",
            "before_rewards": 0.0,
            "context_every": 0,
            "bank": 64,
            "compile": "off",
            "epochs": 4,
            "episode_steps": STEPS,
            "num_envs": 32,
            "rollout_steps": 64,
            "gamma": 0.995,
            "reward_scale": 0.02,
            "entropy": 0.005,
        }
        name = lssvwm_gym.register(weights).name
        ppo.main(
            ppo.Args(name, policy.parent, time_limit=60 * run.learn, profile=run.profile, weights=weights, seed=run.seed, **learning)  # type: ignore[arg-type]
        )
    dreams = open_dream(lssvwm_gym.register(weights).name, run.profile, "cpu", weights)
    write_film(run.out / "survival.mp4", compare(dreams, policy, run, run.out / "survival.json"), FPS)


def compare(dreams: Dream, policy: Path, run: TakeCover, scores: Path) -> np.ndarray:
    """How long a player that acts at random and the policy survive, in dreams and in games: writes it as JSON.

    Returns the first of each with the policy, side by side, (T, height, 2 * width, 3) uint8.
    """
    results = {}
    for who, acts in (("random", "random"), ("learned in the dream", str(policy))):
        trials = {"dream": in_dreams(dreams, acts, run), "game": in_games(run.world.collecting, dreams, acts, run)}
        results[who] = {where: survival(trial.tics) for where, trial in trials.items()}
        print(f"{who:<22}{told(results[who])}")
    fewer = replace(run, episodes=min(run.episodes, 32))
    by_noise = {f"dream, noise {noise}": survival(in_dreams(dreams, acts, fewer, noise).tics) for noise in NOISES}
    print(f"{who:<22}{told(by_noise)}")
    results[who] |= by_noise
    write_json(scores, results)
    longest = max(len(trial.frames) for trial in trials.values())
    sides = [np.concatenate([trial.frames, trial.frames[-1:].repeat(longest - len(trial.frames), 0)]) for trial in trials.values()]
    return np.concatenate(sides, 2)


def survival(tics: np.ndarray) -> dict[str, float]:
    """Mean, deviation and standard error of the tics survived."""
    return {"mean": tics.mean(), "deviation": tics.std(ddof=1), "error": tics.std(ddof=1) / len(tics) ** 0.5, "episodes": len(tics)}


def told(found: dict[str, dict[str, float]]) -> str:
    return "".join(f"{where} {said['mean']:.0f} ± {said['deviation']:.0f}  " for where, said in found.items())


def in_dreams(dream: Dream, policy: str, run: TakeCover, noise: float = 1.0) -> Trial:
    """Side by side in dreams, each from a beginning of its own; `noise` scales what frames are drawn from."""
    frames = list[np.ndarray]()
    agents = partial(open_agent, policy, dream)
    played = check_own_worlds.in_dreams(dream, agents, run.episodes, STEPS, run.seed, noise, frames.append)
    return Trial(TICS * np.array([given_steps(dream) + one.steps for one in played], float), np.stack(frames))


def in_games(collecting: GymCollecting, dream: Dream, policy: str, run: TakeCover) -> Trial:
    """In games of seeds that nothing was learned from; the policy sees what the world model makes of each frame."""
    agent = open_agent(policy, dream, 1, run.seed)
    env = as_observed(TimeLimit(make(collecting), STEPS), dream, agent.observation)
    first, *others = range(1_000_000 + run.seed, 1_000_000 + run.seed + run.episodes)
    frames = list[np.ndarray]()
    tics = [real_episode(env, agent, first, show=frames.append), *(real_episode(env, agent, seed) for seed in others)]
    env.close()
    return Trial(np.array(tics), np.stack(frames[:-1]))  # the last one is the one before it again


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(TakeCover, description=__doc__))
