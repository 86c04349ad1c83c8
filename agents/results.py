"""What policies earned: means with errors, JSON, and the jobs that many processes share."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import lssvwm_gym  # noqa: F401 - registers the ids
from lssvwm_gym.io.atomic import renamed_when_whole

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def shared_out(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int, steps: Sequence[int]) -> Iterator[tuple[int, Answer]]:
    """Numbers of jobs and their answers as they come, from as many processes as there are workers; says how far it is.

    A single worker is this process. `steps` says how long each job is, to tell how much is left.
    """
    start, said, done = time.perf_counter(), 0.0, 0
    for count, (number, answer) in enumerate(_answers(work, jobs, workers), 1):
        yield number, answer
        done += steps[number]
        seconds = time.perf_counter() - start
        if seconds - said > 5 or count == len(jobs):
            said, left = seconds, seconds / done * (sum(steps) - done)
            print(f"{count} of {len(jobs)} jobs  {done / seconds:.0f} steps/s  {left / 60:.1f} min left", flush=True)


def _answers(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Answer]]:
    if workers == 1:
        yield from ((number, work(job)) for number, job in enumerate(jobs))
        return
    # a fresh process each: renderers don't survive a fork
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as crew:
        waiting = {crew.submit(work, job): number for number, job in enumerate(jobs)}
        for ready in as_completed(waiting):
            yield waiting[ready], ready.result()


def mean_and_error(returns: list[float]) -> tuple[float, float]:
    """Mean and standard error; NaN where there is too little for one."""
    if not returns:
        return float("nan"), float("nan")
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / len(returns) ** 0.5) if len(returns) > 1 else float("nan")


def command_line() -> str:
    """The command that started this program, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def as_json(settings: Any) -> Any:
    """Settings as what JSON can say."""
    return json.loads(json.dumps(asdict(settings), default=str))


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result and the command that made it, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as unfinished:
        unfinished.write_text(json.dumps({"command": command_line(), **result}, indent=2, allow_nan=False) + "\n")


def summary(returns: list[float]) -> dict[str, Any]:
    """Mean, standard error and all returns; numbers that don't exist are null."""
    mean, error = mean_and_error(returns)
    return {"mean": _or_none(mean), "standard_error": _or_none(error), "returns": returns}


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else number
