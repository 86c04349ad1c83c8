"""Times, memory, and what they were measured on."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from lssvwm_gym.io.worker_pool import Done, Failed, run_jobs

T = TypeVar("T")


@dataclass(frozen=True)
class Times:
    """Milliseconds of calls that were timed one by one."""

    ms: float  # median
    ms_p10: float
    ms_p90: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Times:
        p10, median, p90 = np.percentile(list(seconds), [10, 50, 90]) * 1000
        return cls(float(median), float(p10), float(p90))

    def __str__(self) -> str:
        digits = 2 if self.ms < 10 else 1 if self.ms < 1000 else 0
        return f"{self.ms:.{digits}f} ({self.ms_p10:.{digits}f}, {self.ms_p90:.{digits}f})"


def seconds_of(call: Callable[[], Any], count: int, warm_up: int, device: str = "cpu", title: str = "") -> np.ndarray:
    """Seconds of each of `count` calls after some that are not counted; on a GPU until it has finished."""
    for _ in range(warm_up):
        call()
    finish(device)
    seconds = []
    for _ in progress(range(count), title):
        began = time.perf_counter()
        call()
        finish(device)
        seconds.append(time.perf_counter() - began)
    return np.array(seconds)


def finish(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def progress(items: Iterable[T], title: str) -> tqdm[T]:
    """The items, with a bar that says how long it will still take, on a terminal."""
    return tqdm(items, desc=title, leave=False, disable=None if title else True)


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


def machine(device: str = "auto") -> dict[str, Any]:
    """What the numbers were measured on."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": _first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # processes that wanted a core, over the last minute
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def memory_bytes() -> int | None:
    """What this process holds now, shared libraries included; None where the system doesn't tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def free_bytes() -> int | None:
    """What processes could still take; None where the system doesn't tell."""
    available = _first_value("/proc/meminfo", "MemAvailable")
    return int(available.split()[0]) * 1024 if available else None


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had so far, shared libraries included; None where the system doesn't tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _first_value(file: str, key: str) -> str | None:
    """The first value of a key in a file of /proc; None where there is none."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
