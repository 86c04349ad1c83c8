"""Measure the speed of a dream: `lssvwm-gym bench`. Prints tables and writes JSON.

A step is everything that `env.step` does: the denoising passes, the commit, the decoder, the reward.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lssvwm_gym.envs.dream import SAMPLING_STEPS
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.worlds import WORLDS

AROUND = 25  # steps up to an age that tell how long a step takes there


@dataclass(frozen=True)
class Benchmark:
    """What to measure, and for how long."""

    world: str = "memory-maze"
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    profiles: tuple[str, ...] = ("fast", "balanced", "quality")  # measured with one environment each
    many: int = 16  # environments in one batch, measured at the profile fast
    steps: int = 100  # measured a case
    warm_up: int = 10  # steps before them
    ages: tuple[int, ...] = (50, 1000)  # steps since the reset at which a step of balanced is measured; none to leave it out
    threads: int | None = None  # of torch; its own choice if not given
    device: str = "auto"
    out: Path | None = None  # where to write the numbers as JSON


@dataclass(frozen=True)
class Speed:
    """How fast one case is."""

    profile: str
    passes: int  # denoising passes a step; one more commits the frame
    envs: int
    steps_per_second: float  # of all environments together
    ms: float  # a step of the whole batch, median
    ms_p10: float
    ms_p90: float
    state_bytes: int  # a row


def bench(run: Benchmark) -> dict[str, Any]:
    """Measure, print tables, write JSON, and return what was written.

    Raises:
        ValueError: an unknown world, profile or device, or nothing to measure.
    """
    _check(run)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    cases = [*((profile, 1) for profile in run.profiles), *([("fast", run.many)] if run.many else [])]
    speeds = [_announced(measure, run, profile, envs) for profile, envs in cases]
    ages = _announced(measure_ages, run) if run.ages else {}
    report = {
        "world": WORLDS[run.world].id,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(run).items()},
        "machine": machine(run.device),
        "speeds": [dataclasses.asdict(speed) for speed in speeds],
        "ms_by_age": ages,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    _print(speeds, report)
    if run.out:
        run.out.parent.mkdir(parents=True, exist_ok=True)
        run.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


def measure(run: Benchmark, profile: str, envs: int) -> Speed:
    """Time steps of random actions in one environment, or in a batch of them."""
    env, step = _opened(run, profile, envs)
    times = _times(step, run.warm_up + run.steps)[run.warm_up :]
    p10, median, p90 = np.percentile(times, [10, 50, 90]) * 1000
    size = state_bytes(env.unwrapped.clone_state().dream) // envs
    env.close()
    return Speed(profile, SAMPLING_STEPS[profile], envs, float(envs / times.mean()), float(median), float(p10), float(p90), size)


def measure_ages(run: Benchmark) -> dict[int, float]:
    """Median milliseconds of a step, by steps since the reset, in one long dream at the profile balanced."""
    env, step = _opened(run, "balanced", 1)
    times = _times(step, max(run.ages)) * 1000
    env.close()
    return {age: float(np.median(times[max(0, age - AROUND) : age])) for age in run.ages}


def machine(device: str = "auto") -> dict[str, Any]:
    """What the numbers were measured on."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had so far, shared libraries included; None where the system doesn't tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _opened(run: Benchmark, profile: str, envs: int) -> tuple[Any, Callable[[], Any]]:
    """An environment that never ends, after its reset, and a function that steps it at random."""
    settings: dict[str, Any] = {"profile": profile, "weights": run.weights, "device": run.device}
    id, rng = WORLDS[run.world].id, np.random.default_rng(0)
    env: Any
    if envs == 1:
        env = gymnasium.make(id, max_episode_steps=-1, **settings)
    else:
        env = gymnasium.make_vec(id, envs, **settings)
    actions = int(env.unwrapped.single_action_space.n if envs > 1 else env.action_space.n)
    env.reset(seed=0)
    return env, lambda: env.step(rng.integers(actions, size=() if envs == 1 else envs))


def _times(step: Callable[[], Any], steps: int) -> np.ndarray:
    """Seconds of each step; what it returns lies in the memory of the CPU, so a GPU has finished too."""
    moments = [time.perf_counter()]
    for _ in range(steps):
        step()
        moments.append(time.perf_counter())
    return np.diff(moments)


def _announced(function: Callable[..., Any], run: Benchmark, *arguments: Any) -> Any:
    """Call, and say so on a terminal, where it would otherwise be silent for long."""
    if sys.stderr.isatty():
        print(" ".join([function.__name__.replace("_", " "), *map(str, arguments)]), "...", file=sys.stderr)
    return function(run, *arguments)


def _processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _check(run: Benchmark) -> None:
    if run.world not in WORLDS:
        raise ValueError(f"no world named {run.world!r}; there are {', '.join(WORLDS)}")
    unknown = set(run.profiles) - SAMPLING_STEPS.keys()
    if unknown:
        raise ValueError(f"no profile named {', '.join(sorted(unknown))}; there are {', '.join(SAMPLING_STEPS)}")
    for name, value, least in (
        ("steps", run.steps, 1),
        ("warm_up", run.warm_up, 0),
        ("many", run.many, 0),
        ("ages", min(run.ages, default=1), 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def _print(speeds: list[Speed], report: dict[str, Any]) -> None:
    on = report["machine"]
    title = f"{report['world']} on {on['device']} ({on['processor']}, {on['cores']} cores, {on['threads']} threads)"
    table = Table(title=title, title_justify="left")
    for name in ("profile", "passes", "envs", "steps/s", "ms/step", "p10", "p90", "state KiB/row"):
        table.add_column(name, justify="left" if name == "profile" else "right")
    for speed in speeds:
        table.add_row(*_row(speed))
    Console(width=120).print(table)
    for age, ms in report["ms_by_age"].items():
        print(f"balanced, around step {age}: {ms:.1f} ms")
    if report["peak_memory_bytes"]:
        print(f"peak memory of the process: {report['peak_memory_bytes'] / 2**20:.0f} MiB")


def _row(speed: Speed) -> tuple[str, ...]:
    times = (speed.ms, speed.ms_p10, speed.ms_p90)
    counts = (str(speed.passes), str(speed.envs), f"{speed.steps_per_second:.1f}")
    return (speed.profile, *counts, *(f"{ms:.1f}" for ms in times), f"{speed.state_bytes / 1024:.0f}")
