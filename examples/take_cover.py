"""Survive the fireballs of Doom, learned in a dream alone.

python examples/take_cover.py --minutes 90          dream the game and learn in it, on two cores

A random player's games of *VizDoom Take Cover* are recorded; a world model, an autoencoder and a flow head are trained on them
(`lssvwm-gym dream`); a policy learns by PPO in the dream and never sees the game (`python -m agents.ppo`); then it is tried in both, and a
film shows them side by side. It is the task of "World Models" (Ha and Schmidhuber 2018, arXiv 1803.10122): every tic survived counts 1,
a game has at most 2,100 of them, 750 count as solved. A step lasts four tics. Needs `pip install 'lssvwm_gym[train,agents,doom]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

import lssvwm_gym
from agents import ppo
from agents.policies import Policy, load_policy
from experiments.trials import write_film
from lssvwm_gym.data.collect_gym import GymCollecting, make
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservation, observed
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.own_world import OwnWorld, dream

TICS, STEPS, FPS = 4, 525, 9  # a step; steps of a game and of a second


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
        learning = {"episode_steps": STEPS, "num_envs": 32, "rollout_steps": 64, "gamma": 0.995, "reward_scale": 0.02, "entropy": 0.005}
        name = lssvwm_gym.register(weights).name
        ppo.main(
            ppo.Args(name, policy.parent, time_limit=60 * run.learn, profile=run.profile, weights=weights, seed=run.seed, **learning)  # type: ignore[arg-type]
        )
    results = {}
    dreams = open_dream(lssvwm_gym.register(weights).name, run.profile, "cpu", weights)
    for who, acts in (("random", None), ("learned in the dream", load_policy(policy, "cpu")[0])):
        trials = {"dream": in_dreams(dreams, acts, run.episodes, run.seed), "game": in_games(run.world.collecting, dreams, acts, run)}
        results[who] = {where: survival(trial.tics) for where, trial in trials.items()}
        print(f"{who:<22}" + "".join(f"{where} {said['mean']:.0f} ± {said['deviation']:.0f}  " for where, said in results[who].items()))
    write_json(run.out / "survival.json", results)
    longest = max(len(trial.frames) for trial in trials.values())
    sides = [np.concatenate([trial.frames, trial.frames[-1:].repeat(longest - len(trial.frames), 0)]) for trial in trials.values()]
    write_film(run.out / "survival.mp4", np.concatenate(sides, 2), FPS)


def survival(tics: np.ndarray) -> dict[str, float]:
    """Mean, deviation and standard error of the tics survived."""
    return {"mean": tics.mean(), "deviation": tics.std(ddof=1), "error": tics.std(ddof=1) / len(tics) ** 0.5, "episodes": len(tics)}


@torch.no_grad()
def in_dreams(dream: Dream, policy: Policy | None, episodes: int, seed: int) -> Trial:
    """Side by side in dreams, each from a beginning of its own."""
    state, generator = dream.reset(torch.arange(seed, seed + episodes)), torch.Generator().manual_seed(seed)
    alive, steps, frames = torch.ones(episodes, dtype=torch.bool), state.world.age.clone(), []
    while alive.any() and steps.max() < STEPS:
        frames += [dream.frame(state)[0].numpy()] if alive[0] else []
        action = drawn(policy, torch.as_tensor(observed(dream, state, "features")), generator)
        state, _, ended, _ = dream.step(state, action)
        steps, alive = steps + alive, alive & ~ended
    return Trial(TICS * steps.numpy().astype(float), np.stack(frames))


def in_games(collecting: GymCollecting, dream: Dream, policy: Policy | None, run: TakeCover) -> Trial:
    """In games of seeds that nothing was learned from; the policy sees what the world model makes of each frame."""
    env, generator = WorldModelObservation(make(collecting), dream), torch.Generator().manual_seed(run.seed)
    tics, frames = np.zeros(run.episodes), []
    for number in range(run.episodes):
        seen, _ = env.reset(seed=1_000_000 + run.seed + number)
        for _ in range(STEPS):
            frames += [env.frame] if number == 0 else []
            seen, reward, terminated, truncated, _ = env.step(np.int64(drawn(policy, torch.as_tensor(seen)[None], generator).item()))
            tics[number] += reward
            if terminated or truncated:
                break
    env.close()
    return Trial(tics, np.stack(frames))


def drawn(policy: Policy | None, seen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Actions (B,), for observations (B, ...); without a policy any of the three."""
    return torch.randint(3, (len(seen),), generator=generator) if policy is None else policy.act(seen.float(), generator)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(TakeCover, description=__doc__))
