"""Measure the speed of a dream, and of what it is to be compared with: `lssvwm-gym benchmark`. Tables, JSON, plots.

| part | what is measured |
|---|---|
| `speed` | steps a second of the environment, by profile and number of environments |
| `ages` | what a step costs, and how much memory the process has, so many steps after the reset |
| `cache` | the model's step beside attention over all frames with a growing cache: time and size of the state against age |
| `training` | frames a second of a training step against the length of clips, of both |
| `peak` | the share of the machine's measured matrix-product peak that a training step reaches, and where the rest goes |
| `simulators` | the real world, in one process and more |
| `scan` | the scan alone, and a layer of it, beside transformers' Mamba-2 in plain PyTorch |

    lssvwm-gym benchmark                                   # speed and ages, a minute
    lssvwm-gym benchmark --parts all --ages 10 1000 10000 --out FILE --plots DIR
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch

from lssvwm_gym.benchmark.config import Benchmark
from lssvwm_gym.benchmark.kernels import measure_scans
from lssvwm_gym.benchmark.machine import machine, peak_memory_bytes
from lssvwm_gym.benchmark.report import draw, print_part
from lssvwm_gym.benchmark.step import measure_ages, measure_cache, measure_simulators, measure_speed
from lssvwm_gym.benchmark.training import measure_peak, measure_training
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.worlds import WORLDS

MEASURES: dict[str, Callable[[Benchmark], Any]] = {
    "speed": measure_speed,
    "ages": measure_ages,
    "cache": measure_cache,
    "training": measure_training,
    "peak": measure_peak,
    "simulators": measure_simulators,
    "scan": measure_scans,
}


def bench(run: Benchmark) -> dict[str, Any]:
    """Measure, print tables, write JSON and plots, and return what was written.

    Raises:
        ValueError: an unknown world, part, profile, variant, precision or device, or nothing to measure.
    """
    run.check()
    chosen_device(run.device)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    report: dict[str, Any] = {"world": WORLDS[run.world].id, "settings": dataclasses.asdict(run), "machine": machine(run.device)}
    report |= {"speeds": [], "ms_by_age": {}}
    for part in run.chosen:
        if (part == "ages" and not run.ages) or (part == "cache" and not run.cache_ages):
            continue
        if sys.stderr.isatty():
            print(f"measuring {part} ...", file=sys.stderr)
        report["speeds" if part == "speed" else part] = MEASURES[part](run)
        if part == "ages":
            report["ms_by_age"] = {row["age"]: row["ms"] for row in report["ages"]}
        print_part(part, report)
    report["peak_memory_bytes"] = peak_memory_bytes()
    _write(run, report)
    return report


def _write(run: Benchmark, report: dict[str, Any]) -> None:
    on = report["machine"]
    busy = "" if on["load"] is None else f", load {on['load']:.1f} before"
    print(f"\n{on['device']} ({on['processor']}, {on['cores']} cores, {on['threads']} threads{busy}), torch {on['torch']}, {on['date']}")
    if report["peak_memory_bytes"]:
        print(f"peak memory of the process: {report['peak_memory_bytes'] / 2**20:.0f} MiB")
    if run.out:
        write_json(run.out, report)
    if run.plots:
        for path in draw(report, run.plots):
            print(path)
