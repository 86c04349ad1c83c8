"""The planner of `experiments.planner` in real mazes, beside other agents: model-predictive control without having learned to act.

python -m experiments.mpc                                       10 real episodes of 250 steps, and as many of the agents beside it
python -m experiments.mpc --planning.seconds 0.5 --video runs/plan.mp4
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import tyro

from agents.policies import as_json
from experiments.agents_by_name import PLANNER, open_agent
from experiments.planner import Planner, Planning
from experiments.trials import answers, as_observed, mean_and_error, real_episode, summary, write_film, write_result
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.malloc import keep_freed_memory


@dataclass(frozen=True)
class Args:
    """Where to plan, and beside whom."""

    planning: Planning = field(default_factory=Planning)
    env: str = "MemoryMaze9x9-Real-v0"
    beside: tuple[str, ...] = ("random",)  # other agents in the same mazes, as in experiments/check_transfer.py
    episodes: int = 10
    steps: int = 250  # of an episode
    seed: int = 1_000_000  # of the first maze
    world: str = "memory-maze"  # that the planner dreams of
    profile: str = "fast"  # of its dreams, which are short and begin at real frames; balanced takes nearly twice the time
    device: str = "cpu"  # that it dreams on
    weights: Path | None = None  # the shipped ones if not given
    workers: int = 1  # processes that episodes are shared out to
    out: Path = Path("runs/plan.json")
    video: Path | None = None  # .mp4 of the first episode


class MpcJob(NamedTuple):
    """One real episode of one agent."""

    agent: str
    seed: int
    args: Args


class PlannedEpisode(NamedTuple):
    """What came of it."""

    earned: float
    seconds: list[float]  # that each decision took; none of agents that don't plan
    hoped: list[float]  # score of each plan
    film: list[np.ndarray]  # (height, 2 * width, 3) uint8: what was seen, and what was hoped for


def main(args: Args) -> None:
    try:
        check(args)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None
    agents = (PLANNER, *args.beside)
    jobs = [MpcJob(agent, args.seed + number, args) for number in range(args.episodes) for agent in agents]
    outcomes: dict[int, PlannedEpisode] = {}
    for number, outcome in answers(play, jobs, args.workers, [args.steps] * len(jobs)):
        outcomes[number] = outcome
        print(f"{jobs[number].agent} in maze {jobs[number].seed}: {outcome.earned:g}", flush=True)
    result = {name: summary([outcomes[n].earned for n, job in enumerate(jobs) if job.agent == name]) for name in agents}
    seconds, hoped = (np.concatenate([getattr(outcome, name) for outcome in outcomes.values()]) for name in ("seconds", "hoped"))
    took = {"decisions": len(seconds), "seconds_mean": float(seconds.mean()), "seconds_90": float(np.quantile(seconds, 0.9))}
    write_result(args.out, {"settings": as_json(args), "players": result, **took, "hoped_mean": float(hoped.mean())})
    for name, numbers in result.items():
        print(f"{name}: {mean_and_error(numbers)}")
    print(f"{len(seconds)} decisions of {seconds.mean():.2f} s")
    if args.video is not None:
        write_film(args.video, np.stack(outcomes[0].film), 12)


def check(args: Args) -> None:
    """Raises `ValueError` or `ImportError` for what is wrong with the command line, before anything takes time."""
    check_bounds(args, episodes=1, steps=1, workers=1)
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    if PLANNER in args.beside or len(set(args.beside)) < len(args.beside):
        raise ValueError(f"name each agent beside the planner once, not {' '.join(args.beside)}")
    for name in (PLANNER, *args.beside):
        open_agent(name, dream, 1, 0, args.planning)


def play(job: MpcJob) -> PlannedEpisode:
    """One episode of it in the real environment."""
    args, film = job.args, list[np.ndarray]()
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    agent = open_agent(job.agent, dream, 1, job.seed, args.planning)
    planner = agent if isinstance(agent, Planner) else None

    def show(frame: np.ndarray) -> None:
        if args.video is not None and job.seed == args.seed and planner is not None and planner.plans[0] is not None:
            film.append(np.concatenate([frame, planner.hoped_for().cpu().numpy()], 1))

    env = as_observed(gymnasium.make(args.env, max_episode_steps=args.steps), dream, agent.observation)
    try:
        earned = real_episode(env, agent, job.seed, show=show)
    finally:
        env.close()
    return PlannedEpisode(earned, planner.seconds if planner else [], planner.hoped if planner else [], film)


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Args, description=__doc__))
