"""The speed of dreams, what they are compared with, and what the model's parts cost, in dreams and in training. Tables, JSON, plots.

| part | what is measured |
|---|---|
| `speed` | steps a second of the environment, by profile and number of environments |
| `ages` | what a step costs, and how much memory the process has, so many steps after the reset |
| `cache` | the model's step beside attention over all frames with a growing cache: time and size of the state against age |
| `training` | frames a second of a training step against the length of clips, of both |
| `peak` | the share of the machine's measured matrix-product peak that a training step reaches, and where the rest goes |
| `simulators` | steps of the real world, in one process and more, and of as many dreams |
| `scan` | the scan alone, and a layer of it, beside transformers' Mamba-2 in plain PyTorch |

    python -m experiments.benchmark                                    # speed and ages, a minute
    python -m experiments.benchmark --ages 10 1000 10000 --out FILE --plots DIR
    python -m experiments.benchmark --parts cache --cache-ages 10 100 1000
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
import tyro

from experiments.benchmark.cache import measure_cache
from experiments.benchmark.config import Benchmark
from experiments.benchmark.kernels import measure_scans
from experiments.benchmark.machine import machine, peak_memory_bytes
from experiments.benchmark.report import TABLES, draw, print_part
from experiments.benchmark.simulators import measure_simulators
from experiments.benchmark.steps import measure_ages, measure_speed
from experiments.benchmark.training import measure_peak, measure_training
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.worlds import WORLDS

MEASURES: dict[str, Callable[[Benchmark], Any]] = {
    "speed": measure_speed,
    "ages": measure_ages,
    "cache": measure_cache,
    "training": measure_training,
    "peak": measure_peak,
    "scan": measure_scans,
    "simulators": measure_simulators,
}


def bench(run: Benchmark) -> dict[str, Any]:
    """Measure, print tables, write JSON and plots, and return what was written.

    Raises:
        ValueError: an unknown world, part, profile, precision or device, or nothing to measure.
    """
    run.check()
    chosen_device(run.device)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    report: dict[str, Any] = {"world": WORLDS[run.world].id, "settings": dataclasses.asdict(run), "machine": machine(run.device)}
    for part in run.chosen:
        if sys.stderr.isatty():
            print(f"measuring {part} ...", file=sys.stderr)
        report[part] = MEASURES[part](run)
        print_part(part, TABLES[part](report))
    report["peak_memory_bytes"] = peak_memory_bytes()
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
    return report


if __name__ == "__main__":
    keep_freed_memory()
    bench(tyro.cli(Benchmark, description=__doc__))
