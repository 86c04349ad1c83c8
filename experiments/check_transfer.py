"""Does what was learned in a dream hold in the real world? Policies are tried in both, and their returns compared.

python -m experiments.check_transfer --policies random wander runs/ppo/memory-maze/policy.safetensors
python -m experiments.check_transfer --policies random runs/ppo_sb3/LSSVWM-MemoryMaze-v0/policy.safetensors --video runs/transfer.mp4

A policy is one of

random            any action, each as likely
wander            forward, with turns now and then; looks at nothing
player:NAME       in the block world: a player that looks at nothing, as `lssvwm-gym collect luanti --player NAME`
explorer, seeker  scripted players of Memory Maze, see docs/training.md; they are told where they are, so they play in the real world only
follower          goes the way that the map of Memory Maze shows, and has learned nothing
planner           plans in the dream, see experiments/mpc.py
PATH.safetensors  written by agents/ppo.py, agents/ppo_sb3.py or experiments/behavior_cloning.py

Dreams begin after the short contexts that come with the weights, with `--data` after long recorded ones, in mazes that they then
know, or with `--made-up` after nothing; real episodes at the start of a maze, of seeds from `--seed` on, or with `--walked` after the
scripted explorer has shown the maze for so many steps. Needs
`pip install -e '.[agents,memory-maze]'`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro

from agents.policies import as_json
from experiments.agents_by_name import EXPERTS, open_agent
from experiments.planner import Planning
from experiments.trials import answers, as_observed, correlation_of_returns, mean_and_error, real_episode, summary, write_film, write_result
from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.envs.simulator import Dream, open_dream
from lssvwm_gym.envs.wrappers import observed
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.state import DreamState, join_rows
from lssvwm_gym.real_envs.experts.block_players import random_bag
from lssvwm_gym.worlds.minecraft import MINECRAFT


@dataclass(frozen=True)
class Args:
    """Which policies, and how long to try each."""

    policies: tuple[str, ...] = ("random", "wander")
    episodes: int = 16  # of each policy in the dream, and as many in the real world
    steps: int = 250  # of an episode, in both
    world: str = "memory-maze"
    weights: Path | None = None  # of the dream; the shipped ones if not given
    profile: str = "balanced"  # of the dream: fast, balanced or quality
    device: str = "auto"  # of the dream; what real episodes need of a model runs on the CPU
    dream_seed: int = 0  # of the first dream
    data: Path | None = None  # folder of recorded episodes that dreams begin after, one each in turn; short contexts if not given
    made_up: bool = False  # dreams begin with nothing, each in a world that it makes up, as real episodes do
    context: int = 500  # frames of such an episode that the dream is conditioned on
    batch: int = 16  # dreams side by side; a GPU takes hundreds
    seed: int = 1_000_000  # of the first real episode, far from those of the training data
    walked: int = 0  # steps of the scripted explorer before a policy takes over in the real world; what they earn doesn't count
    dream: bool = True  # --no-dream leaves dreams out
    real: bool = True  # --no-real leaves the real world out
    bags: bool = False  # in the block world: begin with things in the bag, drawn by the number of the episode, the same in both
    workers: int = 1  # processes that episodes are shared out to; 1: all are played in this one
    planning: Planning = field(default_factory=Planning)  # of the planner, where it is one of the policies
    out: Path = Path("runs/transfer.json")
    video: Path | None = None  # .mp4 of every policy's first episode: dream on the left, real on the right


@dataclass(frozen=True)
class Trial:
    """What a process needs to know to try one policy: in the real world in one episode, in dreams in as many as there are seeds."""

    where: str  # "dream" or "real"
    policy: str
    seeds: range
    args: Args

    @property
    def filmed(self) -> bool:
        first = self.args.dream_seed if self.where == "dream" else self.args.seed
        return self.args.video is not None and self.seeds[0] == first


class TrialResult(NamedTuple):
    """What came of a trial."""

    returns: list[float]
    frames: list[np.ndarray]  # (height, width, 3) uint8, of the first episode, where it is filmed


class PolicyReturns(NamedTuple):
    """The returns of one policy."""

    dream: list[float]
    real: list[float]


def main(args: Args) -> None:
    try:
        check(args)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None
    results = {policy: PolicyReturns([], []) for policy in args.policies}
    films: dict[tuple[str, str], list[np.ndarray]] = {}
    jobs = list(trials(args))
    outcomes = dict(answers(run, jobs, args.workers, [len(job.seeds) * args.steps for job in jobs]))
    for number, job in enumerate(jobs):  # in the order of their seeds, whoever was ready first
        getattr(results[job.policy], job.where).extend(outcomes[number].returns)
        films |= {(job.policy, job.where): outcomes[number].frames} if job.filmed else {}
    policies = [{"policy": name, "dream": summary(one.dream), "real": summary(one.real)} for name, one in results.items()]
    correlation = correlation_of_returns(list(results.values()))
    write_result(args.out, {"settings": as_json(args), "policies": policies, "correlation": correlation})
    print(table(results))
    if args.video is not None:
        film_side_by_side(args.video, args.policies, films, open_dream(args.world).world.fps)


def check(args: Args) -> None:
    """Raises `ValueError` or `ImportError` for what is wrong with the command line, before anything takes time."""
    dream = dream_of(args)
    check_bounds(args, episodes=1, steps=1, batch=1, workers=1, walked=0)
    if args.walked and dream.world.name != "memory-maze":
        raise ValueError(f"the scripted explorer that walks first knows its way in memory-maze, not in {dream.world.name}")
    if (most := dream.world.max_episode_steps) < args.steps + args.walked:
        walked = f" of which {args.walked} are walked first" if args.walked else ""
        raise ValueError(f"an episode of {args.world} has at most {most} steps, not {args.steps + args.walked}{walked}")
    if len(set(args.policies)) < len(args.policies) or not args.policies:
        raise ValueError(f"name each policy once, not {' '.join(args.policies) or 'none'}")
    if args.bags and dream.world.name != MINECRAFT.name:
        raise ValueError(f"bags are drawn for the block world, {MINECRAFT.name}, not for {dream.world.name}")
    if args.bags and args.data is not None:
        raise ValueError("with bags dreams begin after short contexts: leave --data out")
    if args.made_up and (args.bags or args.data is not None):
        raise ValueError("a dream that is made up begins with nothing: leave --data and --bags out")
    if not (args.dream or args.real):
        raise ValueError("nothing is left to try policies in: give one of --no-dream and --no-real, not both")
    if args.real and dream.world.real_id is None:
        raise ValueError(f"{args.world} has no real environment here: leave it out with --no-real")
    for path in recordings(args):
        frames = len(read_arrays(path).get("action", ()))
        if not 1 <= args.context <= frames:
            raise ValueError(f"context must be from 1 to the {frames} frames of {path}, not {args.context}")
    for policy in args.policies:
        open_agent(policy, dream, 1, 0, args.planning)


def dream_of(args: Args, device: str | None = None) -> Dream:
    return open_dream(args.world, args.profile, device or args.device, args.weights)


def recordings(args: Args) -> tuple[Path, ...]:
    """The recordings that dreams begin after; none: short contexts. Raises `ValueError` for a folder without any."""
    return () if args.data is None else tuple(episode_paths(args.data))


def trials(args: Args) -> Iterator[Trial]:
    """What is to be tried. Policies take turns in the real world, so that all are tried alike if it is stopped."""
    for first in range(0, args.episodes * args.dream, args.batch):
        seeds = range(args.dream_seed + first, args.dream_seed + min(first + args.batch, args.episodes))
        for policy in args.policies:
            if policy.partition("@")[0] not in EXPERTS:
                yield Trial("dream", policy, seeds, args)
    for seed in range(args.seed, args.seed + args.episodes * args.real):
        for policy in args.policies:
            yield Trial("real", policy, range(seed, seed + 1), args)


def run(trial: Trial) -> TrialResult:
    return dreams(trial) if trial.where == "dream" else real(trial)


def dreams(trial: Trial) -> TrialResult:
    """Some dreams of one policy side by side."""
    args, dream, num_envs, seed = trial.args, dream_of(trial.args), len(trial.seeds), trial.seeds[0]
    agent = open_agent(trial.policy, dream, num_envs, seed, args.planning)
    torch.manual_seed(seed)  # some agents draw from it
    state, earned, goes_on, frames = beginnings(dream, trial), np.zeros(num_envs), np.ones(num_envs, bool), []
    for step in range(args.steps + 1):
        if trial.filmed:
            frames.append(dream.frame(state)[0].cpu().numpy())
        if step < args.steps:
            action = agent.act(observed(dream, state, agent.observation), None)
            state, reward, terminated, *_ = dream.step(state, torch.from_numpy(action))
            earned += reward.cpu().numpy() * goes_on
            goes_on &= ~terminated.cpu().numpy()
    return TrialResult(earned.tolist(), frames)


def beginnings(dream: Dream, trial: Trial) -> DreamState:
    """The states that dreams of these seeds begin with."""
    seeds, paths = torch.tensor(trial.seeds), recordings(trial.args)
    if trial.args.bags:
        return join_rows([dream.reset(seeds[row : row + 1], bag(seed - trial.args.dream_seed)) for row, seed in enumerate(trial.seeds)])
    if not paths:
        return dream.reset(seeds, {"start": "cold"} if trial.args.made_up else {})
    rows = [after_recording(dream, paths[seed % len(paths)], trial.args.context) for seed in trial.seeds]
    return join_rows(rows)._replace(seed=seeds.to(dream.device))


def bag(number: int) -> dict[str, Any]:
    """The options of `reset` that begin an episode of this number with a bag of its own, in a dream and in the game."""
    return {"inventory": random_bag(np.random.default_rng(number))}


@functools.lru_cache(maxsize=64)
def after_recording(dream: Dream, path: Path, frames: int) -> DreamState:
    """The state after the first frames of a recorded episode, whichever policy goes on from it."""
    return dream.reset(torch.tensor([0]), {"episode": path, "context_frames": frames})


def real(trial: Trial) -> TrialResult:
    """One episode in the real world, observed as the policy wants it."""
    (seed,), args, dream = trial.seeds, trial.args, dream_of(trial.args, "cpu")
    agent = open_agent(trial.policy, dream, 1, seed, args.planning)
    env = as_observed(gymnasium.make(dream.world.real_id or "", max_episode_steps=args.walked + args.steps), dream, agent.observation)
    frames: list[np.ndarray] = []
    try:
        options = bag(seed - args.seed) if args.bags else None
        earned = real_episode(env, agent, seed, args.walked, frames.append if trial.filmed else lambda frame: None, options)
    finally:
        env.close()
    return TrialResult([earned], frames)


def table(results: dict[str, PolicyReturns]) -> str:
    width = max(map(len, ("policy", *results)))
    lines = [f"{'policy':<{width}}  {'dream':>15}  {'real':>15}"]
    for name, one in results.items():
        cells = (mean_and_error(summary(returns)) for returns in (one.dream, one.real))
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
    found = correlation_of_returns(list(results.values()))
    if found["rank"] is None:
        return "\n".join([*lines, "correlation over policies: needs three that differ"])
    low, high = found["rank_interval"] or (float("nan"),) * 2
    said = f"linear {found['linear']:.3f}, of ranks {found['rank']:.3f} ({low:.2f} to {high:.2f} in 9 of 10 redrawings)"
    return "\n".join([*lines, f"correlation over {found['policies']} policies: {said}"])


def film_side_by_side(path: Path, policies: tuple[str, ...], films: dict[tuple[str, str], list[np.ndarray]], fps: int) -> None:
    """One after the other, every policy's dream beside its real episode; black where it has none."""
    scenes = []
    for policy in policies:
        pair = [np.array(films.get((policy, where), [])) for where in ("dream", "real")]
        longest = max(pair, key=len)
        if len(longest):
            scenes.append(np.concatenate([film if len(film) else np.zeros_like(longest) for film in pair], 2))
    write_film(path, np.concatenate(scenes), 3 * fps)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
