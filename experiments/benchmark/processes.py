"""Work in other processes, and the memory that is free for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from experiments.benchmark.machine import first_value
from lssvwm_gym.io.worker_pool import Done, Failed, run_jobs

T = TypeVar("T")


@dataclass(frozen=True)
class _Calls:
    """The work of a process that makes calls, each by its number."""

    calls: Sequence[Callable[[], Any]]

    def __call__(self, job: int, report: Callable[[int], None]) -> Any:
        return self.calls[job]()

    def close(self) -> None: ...


def in_processes(calls: Sequence[Callable[[], T]], processes: int) -> list[T]:
    """What picklable calls return, each made in one of so many new processes. Raises `RuntimeError` for the first that fails."""
    answers: dict[int, T] = {}
    with contextlib.closing(run_jobs(range(len(calls)), functools.partial(_Calls, calls), processes)) as messages:
        for message in messages:
            if isinstance(message, Failed):
                raise RuntimeError(message.why)
            if isinstance(message, Done):
                answers[message.job] = message.answer
    return [answers[job] for job in range(len(calls))]


def free_bytes() -> int | None:
    """What processes could still take; None where the system doesn't tell."""
    available = first_value("/proc/meminfo", "MemAvailable")
    return int(available.split()[0]) * 1024 if available else None
