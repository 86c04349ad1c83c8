"""How alike an environment and the dream of it that one command makes are under the player that the dream was learned from.

python -m experiments.check_own_worlds --env ALE/Breakout-v5 --import ale_py --steps 500 --minutes 15 --out runs/breakout --threads 1

`lssvwm-gym dream` makes the dream, the checkers of Gymnasium and Stable-Baselines3 look at its environment, and a random player, as sticky
as the one that was recorded, plays in both. Dreams begin with the first frames of recordings; real episodes count from the same frame on,
those that end before it don't count. Written to `random_player.json` in the dream's folder: steps, ends and returns of both, and the scores
of `evaluate`.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import lssvwm_gym
from agents.agent import Agent
from experiments.trials import command_line, mean_and_error, summary
from lssvwm_gym.data.collect_gym import make
from lssvwm_gym.envs.profiles import DEFAULT
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.spaces import picture_of
from lssvwm_gym.envs.wrappers import observed
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.models.state import take_rows
from lssvwm_gym.own_world import OwnWorld, planned
from lssvwm_gym.own_world import dream as make_dream
from lssvwm_gym.real_envs.experts.maze_players import Sticky

FIRST_SEED = 1_000_000  # of real episodes, from which nothing was learned

MakeAgent = Callable[[int, int], Agent]  # for so many episodes side by side, with a seed


@dataclass(frozen=True)
class Args:
    """Which world, as for `lssvwm-gym dream`, and how long it is tried."""

    world: Annotated[OwnWorld, tyro.conf.arg(name="")]
    trials: int = 100  # episodes in the dream, and as many in the environment
    profile: str = DEFAULT  # of the dream


class Played(NamedTuple):
    """An episode, after the frames that were given."""

    steps: int
    ended: bool  # by itself
    earned: float


class RandomPlayers:
    """The player of `lssvwm-gym dream` in some episodes side by side; an agent."""

    observation = "latent"  # which costs least, for it looks at nothing

    def __init__(self, space: gymnasium.Space[Any], odds: tuple[float, ...], sticky: float, players: int, seed: int) -> None:
        self._players = [Sticky(space, odds, sticky, np.random.default_rng([seed, number])) for number in range(players)]

    def act(self, observation: Any, info: dict[str, Any] | None) -> np.ndarray:
        return np.stack([player(None, {}) for player in self._players])


def main(args: Args) -> None:
    run, weights = args.world, make_dream(args.world)
    warned = checked(lssvwm_gym.load(weights, profile=args.profile, render_mode="rgb_array"))
    dream, env = open_dream(lssvwm_gym.register(weights), args.profile, "cpu", weights), make(run.collecting)
    random = partial(RandomPlayers, env.action_space, run.odds, planned(run).sticky)
    dreamed = in_dreams(dream, random, args.trials, run.steps, run.seed)
    real = in_world(env, random, random, args.trials, run.steps, given_steps(dream), run.seed)
    env.close()
    found = {"dream": compared(dreamed), "environment": compared(real)}
    for where, said in found.items():
        print(f"{where:<12}" + "  ".join(f"{name} {mean_and_error(numbers)}" for name, numbers in said.items()))
    scores = json.loads((run.out / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    write_json(
        run.out / "random_player.json",
        {"command": command_line(), "warnings": warned, "given_steps": given_steps(dream), **found, "scores": scores},
    )


def checked(env: gymnasium.Env) -> list[str]:
    """What the checkers of Gymnasium and Stable-Baselines3 warn of; what is wrong they raise."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
        check_env_for_sb3(env.unwrapped, skip_render_check=False)
    return sorted({str(one.message) for one in warned})


def given_steps(dream: Dream) -> int:
    """Steps of a recording with which each dream begins."""
    return int(dream.reset(torch.tensor([0])).world.age[0]) - 1


@torch.no_grad()
def in_dreams(
    dream: Dream,
    make_agent: MakeAgent,
    episodes: int,
    steps: int,
    seed: int,
    noise: float = 1.0,
    show: Callable[[np.ndarray], None] | None = None,
) -> list[Played]:
    """Side by side, until each ends or has so many steps, with those that are given.

    `noise` scales what frames are drawn from; `show` is given the frames (height, width, 3) of the first dream before each of its steps.
    """
    agent, state, given = make_agent(episodes, seed), dream.reset(torch.arange(seed, seed + episodes)), given_steps(dream)
    alive, taken, earned = torch.ones(episodes, dtype=torch.bool), torch.zeros(episodes).long(), torch.zeros(episodes).double()
    for _ in range(steps - given):
        if show is not None and alive[0]:
            show(dream.frame(take_rows(state, torch.tensor([0])))[0].numpy())
        action = torch.from_numpy(agent.act(observed(dream, state, agent.observation), None))
        state, reward, ended, *_ = dream.step(state, action, noise * frame_noise(state, dream.weights.world_model))
        taken, earned, alive = taken + alive, earned + reward * alive, alive & ~ended
        if not alive.any():
            break
    return list(map(Played, taken.tolist(), (~alive).tolist(), earned.tolist()))


def in_world(
    env: gymnasium.Env, random: MakeAgent, make_agent: MakeAgent, episodes: int, steps: int, given: int, seed: int
) -> list[Played]:
    """One after the other; the steps that are given to a dream are a random player's, and only what follows them counts."""
    played = list[Played]()
    for number in itertools.count(FIRST_SEED + seed):
        before, agent = random(1, number), make_agent(1, number)
        observation, info = env.reset(seed=number)
        earned = 0.0
        for step in range(steps):
            action = (before if step < given else agent).act(torch.from_numpy(picture_of(observation)[None]), info)[0]
            observation, reward, terminated, truncated, info = env.step(action)
            earned += float(reward) * (step >= given)
            if terminated or truncated:
                break
        played += [Played(step + 1 - given, terminated, earned)] if step >= given else []
        if len(played) == episodes:
            return played
    raise AssertionError


def compared(played: list[Played]) -> dict[str, Any]:
    return {name: summary([float(getattr(one, name)) for one in played]) for name in Played._fields}


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
