"""Trials of agents: episodes in the real world, jobs shared out to processes, and what came of them as means, JSON and films."""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import gymnasium
import numpy as np
import torch

import lssvwm_gym  # noqa: F401 - registers the ids
from agents.agent import Agent
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import picture_of
from lssvwm_gym.envs.wrappers import WorldModelObservation
from lssvwm_gym.evaluation.metrics import rank_correlation
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.io.video import write_movie
from lssvwm_gym.io.worker_pool import Done, Failed, run_jobs
from lssvwm_gym.real_envs.experts.maze_explorer import MazeExplorer

Job = TypeVar("Job")
Answer = TypeVar("Answer")

RESAMPLED = 1000  # times, for the interval of a correlation


def as_observed(env: gymnasium.Env, dream: Dream, observation: str) -> gymnasium.Env:
    """A real environment, observed through the model but by those who want its images."""
    return env if observation == "image" else WorldModelObservation(env, dream, observation)


def real_episode(
    env: gymnasium.Env,
    agent: Agent,
    seed: int,
    explored: int = 0,
    show: Callable[[np.ndarray], None] = lambda frame: None,
    options: dict[str, Any] | None = None,
) -> float:
    """An agent's return in one episode; `show` is given its frames (height, width, 3) uint8, the first one too; `options` are `reset`'s.

    Before the agent takes over, the scripted explorer acts for `explored` steps, the same ones whoever the agent is; they don't count.
    """
    torch.manual_seed(seed)  # some agents draw from it
    observation, info = env.reset(seed=seed, options=options)
    explorer = MazeExplorer(np.random.default_rng([seed, explored])) if explored else None
    for _ in range(explored):
        assert explorer is not None
        observation, _, _, _, info = env.step(explorer(picture_of(observation), info))
    earned, over = 0.0, False
    show(_frame(env, observation))
    while not over:
        action = agent.act(torch.from_numpy(picture_of(observation)[None]), info)[0]
        observation, reward, terminated, truncated, info = env.step(action)
        earned, over = earned + float(reward), terminated or truncated
        show(_frame(env, observation))
    return earned


def _frame(env: gymnasium.Env, observation: Any) -> np.ndarray:
    return env.frame if isinstance(env, WorldModelObservation) else picture_of(observation)


def answers(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int, steps: Sequence[int]) -> Iterator[tuple[int, Answer]]:
    """Numbers of jobs and their answers as they come, from as many processes as there are workers; prints the progress.

    A single worker is this process. `steps` says how long each job is, to tell how much is left. Raises `RuntimeError` for a job that
    failed in its process.
    """
    start, printed, done = time.perf_counter(), 0.0, 0
    for count, (number, answer) in enumerate(_answers(work, jobs, workers), 1):
        yield number, answer
        done += steps[number]
        seconds = time.perf_counter() - start
        if seconds - printed > 5 or count == len(jobs):
            printed, left = seconds, seconds / done * (sum(steps) - done)
            print(f"{count} of {len(jobs)} jobs  {done / seconds:.0f} steps/s  {left / 60:.1f} min left", flush=True)


def _answers(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Answer]]:
    if workers == 1:
        yield from enumerate(map(work, jobs))
        return
    for message in run_jobs(range(len(jobs)), functools.partial(_Work, work, jobs), workers):
        if isinstance(message, Failed):
            raise RuntimeError(f"job {message.job} failed: {message.why}")
        if isinstance(message, Done):
            yield message.job, message.answer


class _Work(Generic[Job, Answer]):
    """What a process of the pool does with the number of a job."""

    def __init__(self, work: Callable[[Job], Answer], jobs: Sequence[Job]) -> None:
        torch.set_num_threads(1)
        self._work, self._jobs = work, jobs

    def __call__(self, job: int, report: Callable[[int], None], /) -> Answer:
        return self._work(self._jobs[job])

    def close(self) -> None:
        """Nothing is open."""


def command_line() -> str:
    """The command that started this program, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def write_result(path: Path, result: Any) -> None:
    """Write a result whole or not at all, of a dict with the command that made it; the folder is made."""
    write_json(path, {"command": command_line(), **result} if isinstance(result, dict) else result, allow_nan=False)


def write_film(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames (T, height, width, 3) uint8, four times as large."""
    write_movie(path, frames, fps, 4)
    print(f"film: {path}")


def summary(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error and all returns; None for what so few don't have."""
    mean = float(np.mean(returns)) if returns else None
    error = float(np.std(returns, ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else None
    return {"mean": mean, "standard_error": error, "returns": list(returns)}


def mean_and_error(numbers: dict[str, Any]) -> str:
    """A `summary` as mean ± standard error."""
    mean, error = numbers["mean"], numbers["standard_error"]
    return "-" if mean is None else f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}")


def correlation_of_returns(policies: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Of the mean returns in dream and real world over policies with returns in both; None where fewer than three differ.

    `linear` is Pearson's, `rank` Spearman's, which asks for the order only; `rank_interval` holds nine tenths of the rank
    correlations of episodes drawn anew from those that were played (the bootstrap of Efron, 1979).
    """

    def correlated(means: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        return None if means.shape[1] < 3 or 0.0 in means.std(1) else round(measure(*means), 6)

    def spearman(a: np.ndarray, b: np.ndarray) -> float:
        return rank_correlation(torch.from_numpy(a), torch.from_numpy(b))

    both = [pair for pair in policies if all(pair)]
    means = np.array([[np.mean(returns) for returns in pair] for pair in both]).reshape(-1, 2).T
    linear, rank, interval = correlated(means, lambda a, b: float(np.corrcoef(a, b)[0, 1])), correlated(means, spearman), None
    if rank is not None:
        rng = np.random.default_rng(0)
        drawn = [np.array([[rng.choice(x, len(x)).mean() for x in pair] for pair in both]).T for _ in range(RESAMPLED)]
        found = [value for value in (correlated(some, spearman) for some in drawn) if value is not None]
        interval = np.quantile(found, (0.05, 0.95)).round(3).tolist() if found else None
    return {"policies": len(both), "linear": linear, "rank": rank, "rank_interval": interval}
