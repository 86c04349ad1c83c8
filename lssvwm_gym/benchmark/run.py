"""Measure the speed of a dream: `lssvwm-gym benchmark`. Tables, JSON, plots.

| part | what is measured |
|---|---|
| `speed` | steps a second of the environment, by profile and number of environments |
| `ages` | what a step costs, and how much memory the process has, so many steps after the reset |

    lssvwm-gym benchmark                                   # speed and ages, a minute
    lssvwm-gym benchmark --ages 10 1000 10000 --out FILE --plots DIR

What a dream is compared with, and what the model's parts cost, is measured by `python -m experiments.benchmark`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lssvwm_gym.benchmark.config import Benchmark, Settings
from lssvwm_gym.benchmark.machine import machine, peak_memory_bytes
from lssvwm_gym.benchmark.report import FIGURES, TABLES, Printed, draw, print_part
from lssvwm_gym.benchmark.step import measure_ages, measure_speed
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.worlds import WORLDS

S = TypeVar("S", bound=Settings)

MEASURES: dict[str, Callable[[Benchmark], Any]] = {"speed": measure_speed, "ages": measure_ages}


def bench(run: Benchmark) -> dict[str, Any]:
    """Measure, print tables, write JSON and plots, and return what was written.

    Raises:
        ValueError: an unknown world, part, profile, precision or device, or nothing to measure.
    """
    return measure(run, MEASURES, TABLES, FIGURES)


def measure(
    run: S,
    measures: Mapping[str, Callable[[S], Any]],
    tables: Mapping[str, Callable[[Mapping[str, Any]], Printed]],
    figures: Mapping[str, Callable[[Any], Any]],
) -> dict[str, Any]:
    """The parts that settings choose, each measured, printed and drawn by what has its name."""
    run.check()
    chosen_device(run.device)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    report: dict[str, Any] = {"world": WORLDS[run.world].id, "settings": dataclasses.asdict(run), "machine": machine(run.device)}
    for part in run.chosen:
        if sys.stderr.isatty():
            print(f"measuring {part} ...", file=sys.stderr)
        report[part] = measures[part](run)
        print_part(part, tables[part](report))
    report["peak_memory_bytes"] = peak_memory_bytes()
    on = report["machine"]
    busy = "" if on["load"] is None else f", load {on['load']:.1f} before"
    print(f"\n{on['device']} ({on['processor']}, {on['cores']} cores, {on['threads']} threads{busy}), torch {on['torch']}, {on['date']}")
    if report["peak_memory_bytes"]:
        print(f"peak memory of the process: {report['peak_memory_bytes'] / 2**20:.0f} MiB")
    if run.out:
        write_json(run.out, report)
    if run.plots:
        for path in draw(report, figures, run.plots):
            print(path)
    return report
