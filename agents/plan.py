"""Plan in the dream, act in the real maze: how much does a planner earn there that has never learned to act?

python -m agents.plan                                                     # 10 real episodes of 250 steps, and as many of a random player
python -m agents.plan --planning.method cem --planning.futures 32 --workers 2 --video runs/plan.mp4

`agents/planner.py` says how it plans. The film shows the real maze on the left, and on the right what the plan hoped that the same action
leads to. Needs `pip install 'lssvwm_gym[agents,memory-maze]'`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.planner import Planner, Planning
from agents.players import PLANNER, opened_player
from agents.seen import SeenThroughModel
from agents.transfer import as_json, shared_out, summary, write_json
from lssvwm_gym.envs.simulator import open_dream


@dataclass(frozen=True)
class Args:
    """Where to plan, and beside whom."""

    planning: Planning = field(default_factory=Planning)
    env: str = "MemoryMaze9x9-Real-v0"
    beside: tuple[str, ...] = ("random",)  # other players in the same mazes, as in agents/transfer.py
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


class Job(NamedTuple):
    """One real episode of one player."""

    player: str
    seed: int
    args: Args


class Outcome(NamedTuple):
    """What came of it."""

    earned: float
    seconds: list[float]  # that each decision took; none of players that don't plan
    hoped: list[float]  # score of each plan
    film: np.ndarray | None  # (steps, height, 2 * width, 3) uint8


def main(args: Args) -> None:
    check(args)
    players = (PLANNER, *args.beside)
    jobs = [Job(player, args.seed + number, args) for number in range(args.episodes) for player in players]
    outcomes = {}
    for number, outcome in shared_out(play, jobs, args.workers, [args.steps] * len(jobs)):
        outcomes[number] = outcome
        print(f"{jobs[number].player} in maze {jobs[number].seed}: {outcome.earned:g}", flush=True)
    of = {player: [outcomes[number] for number, job in enumerate(jobs) if job.player == player] for player in players}
    result = {player: summary([outcome.earned for outcome in some]) for player, some in of.items()}
    seconds = [second for outcome in of[PLANNER] for second in outcome.seconds]
    hoped = [score for outcome in of[PLANNER] for score in outcome.hoped]
    decisions = {"decisions": len(seconds), "seconds_mean": float(np.mean(seconds)), "seconds_90": float(np.quantile(seconds, 0.9))}
    write_json(args.out, {"settings": as_json(args), "players": result, **decisions, "hoped_mean": float(np.mean(hoped))})
    for player, numbers in result.items():
        error = numbers["standard_error"]
        print(f"{player}: {numbers['mean']:.2f}" + ("" if error is None else f" ± {error:.2f}"))
    print(f"{len(seconds)} decisions of {np.mean(seconds):.2f} s")
    if args.video is not None:
        _write_film(args.video, outcomes[0].film)


def check(args: Args) -> None:
    """End the program with what is wrong with the command line, before anything takes time."""
    for name in ("episodes", "steps", "workers"):
        if getattr(args, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(args, name)}")
    try:
        dream = open_dream(args.world, args.profile, args.device, args.weights)
        if PLANNER in args.beside or len(set(args.beside)) < len(args.beside):
            raise ValueError(f"name each player beside the planner once, not {' '.join(args.beside)}")
        for player in (PLANNER, *args.beside):
            opened_player(player, dream, 1, 0, args.planning)
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None


def play(job: Job) -> Outcome:
    """One episode of it in the real environment."""
    args = job.args
    torch.manual_seed(job.seed)  # some players draw from it
    dream = open_dream(args.world, args.profile, args.device, args.weights)
    player = opened_player(job.player, dream, 1, job.seed, args.planning)
    filmed = args.video is not None and isinstance(player, Planner) and job.seed == args.seed
    env: gymnasium.Env = gymnasium.make(args.env, max_episode_steps=args.steps)
    env = env if player.observation == "pixels" else SeenThroughModel(env, dream, player.observation)
    try:
        seen, info = env.reset(seed=job.seed)
        earned, film, over = 0.0, [], False
        while not over:
            action = player.act(torch.from_numpy(seen[None]), info)[0]
            seen, reward, terminated, truncated, info = env.step(action)
            earned, over = earned + float(reward), terminated or truncated
            if filmed and isinstance(player, Planner):
                film.append(np.concatenate([seen, player.hoped_for().cpu().numpy()], 1))
    finally:
        env.close()
    seconds, hoped = (player.seconds, player.hoped) if isinstance(player, Planner) else ([], [])
    return Outcome(earned, seconds, hoped, np.stack(film) if film else None)


def _write_film(path: Path, film: Any) -> None:
    from lssvwm_gym.io.video import enlarged, write_movie

    write_movie(path, enlarged(film, 4), 12)
    print(f"film: {path}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
