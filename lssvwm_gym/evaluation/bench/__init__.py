"""Measure the speed of a dream, and of what it is to be compared with: `lssvwm-gym bench`. Tables, JSON, plots.

| part | what is measured |
|---|---|
| `speed` | steps a second of the environment, by profile and number of environments |
| `ages` | what a step costs, and how much memory the process has, so many steps after the reset |
| `cache` | the model's step beside attention over all frames with a growing cache: time and size of the state against age |
| `training` | frames a second of a training step against the length of clips, of both |
| `peak` | the share of the machine's measured matrix-product peak that a training step reaches, and where the rest goes |
| `simulators` | the real world, in one process and more |
| `scan` | the scan alone, and a layer of it, beside transformers' Mamba-2 in plain PyTorch |

    lssvwm-gym bench                                   # speed and ages, a minute
    lssvwm-gym bench --parts all --ages 10 1000 10000 --out FILE --plots DIR
"""

from lssvwm_gym.evaluation.bench.running import PARTS, Benchmark, bench

__all__ = ["PARTS", "Benchmark", "bench"]
