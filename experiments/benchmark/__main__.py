"""What a dream is compared with, and what the model's parts cost, in dreams and in training. Tables, JSON, plots.

| part | what is measured |
|---|---|
| `cache` | the model's step beside attention over all frames with a growing cache: time and size of the state against age |
| `training` | frames a second of a training step against the length of clips, of both |
| `peak` | the share of the machine's measured matrix-product peak that a training step reaches, and where the rest goes |
| `simulators` | steps of the real world, in one process and more, and of as many dreams |
| `scan` | the scan alone, and a layer of it, beside transformers' Mamba-2 in plain PyTorch |

    python -m experiments.benchmark --parts cache --cache-ages 10 100 1000 --out FILE --plots DIR
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro

from experiments.benchmark.cache import measure_cache
from experiments.benchmark.config import ModelBenchmark
from experiments.benchmark.kernels import measure_scans
from experiments.benchmark.report import FIGURES, TABLES
from experiments.benchmark.simulators import measure_simulators
from experiments.benchmark.training import measure_peak, measure_training
from lssvwm_gym.benchmark.run import measure
from lssvwm_gym.malloc import keep_freed_memory

MEASURES: dict[str, Callable[[ModelBenchmark], Any]] = {
    "cache": measure_cache,
    "training": measure_training,
    "peak": measure_peak,
    "scan": measure_scans,
    "simulators": measure_simulators,
}


def bench(run: ModelBenchmark) -> dict[str, Any]:
    """Measure, print tables, write JSON and plots, and return what was written. Raises `ValueError` as `ModelBenchmark.check` does."""
    return measure(run, MEASURES, TABLES, FIGURES)


if __name__ == "__main__":
    keep_freed_memory()
    bench(tyro.cli(ModelBenchmark, description=__doc__))
