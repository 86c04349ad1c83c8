"""Results of agents: jobs shared out to processes, and what came of them as means, JSON and films."""

from __future__ import annotations

import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.io.worker_pool import Done, Failed, run_jobs

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def check_positive(settings: Any, *names: str) -> None:
    """Raises `ValueError` naming the first of these settings that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(settings, name)}")


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


def summary(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, standard error and all returns; None for what so few don't have."""
    mean = float(np.mean(returns)) if returns else None
    error = float(np.std(returns, ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else None
    return {"mean": mean, "standard_error": error, "returns": list(returns)}


def mean_and_error(numbers: dict[str, Any]) -> str:
    """A `summary` as mean ± standard error."""
    mean, error = numbers["mean"], numbers["standard_error"]
    return "-" if mean is None else f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}")


def command_line() -> str:
    """The command that started this program, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def as_json(settings: Any) -> Any:
    """A dataclass of settings as JSON can hold it."""
    return json.loads(json.dumps(asdict(settings), default=str))


def write_result(path: Path, result: Any) -> None:
    """Write a result whole or not at all, of a dict with the command that made it; the folder is made."""
    write_json(path, {"command": command_line(), **result} if isinstance(result, dict) else result, allow_nan=False)


def write_film(path: Path, frames: np.ndarray, fps: float) -> None:
    """Frames (T, height, width, 3) uint8, four times as large."""
    write_movie(path, enlarged(frames, 4), fps)
    print(f"film: {path}")
