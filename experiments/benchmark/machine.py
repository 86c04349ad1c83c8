"""Times, memory, and what they were measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

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


def state_bytes(state: object) -> int:
    """Bytes of all tensors of a state."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


def finish(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def progress(items: Iterable[T], title: str) -> tqdm[T]:
    """The items, with a bar that says how long it will still take, on a terminal."""
    return tqdm(items, desc=title, leave=False, disable=None if title else True)


def machine(device: str = "auto") -> dict[str, Any]:
    """What the numbers were measured on."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
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


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had so far, shared libraries included; None where the system doesn't tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def first_value(file: str, key: str) -> str | None:
    """The first value of a key in a file of /proc; None where there is none."""
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
