"""What is measured, and for how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.ablations import VARIANTS
from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.inference.backend import DTYPES
from lssvwm_gym.worlds import WORLDS

PARTS = ("speed", "ages", "cache", "training", "peak", "scan", "simulators")
OBJECTIVES = ("diffusion_forcing", "teacher_forcing", "self_rollout")  # of a training step


@dataclass(frozen=True)
class Benchmark:
    """What to measure, and for how long. All but speed, ages and simulators take only the sizes of the weights' model."""

    world: str = "memory-maze"
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    parts: tuple[str, ...] = ("speed", "ages")  # some of those above, or all
    threads: int | None = None  # of torch; its own choice if not given
    device: str = "auto"
    dtype: str = "auto"  # of dreams, as the environments take it: auto, float32, bfloat16
    backend: str = "auto"  # likewise: auto, torch, mamba, compiled
    out: Path | None = None  # where to write the numbers as JSON
    plots: Path | None = None  # folder for pictures
    profiles: tuple[str, ...] = tuple(PROFILES)  # speed: measured with one environment each
    many: int = 16  # speed at the profile fast, simulators: environments in one batch; 0 for none
    steps: int = 100  # speed, simulators: measured a case
    warm_up: int = 10  # speed, simulators: steps before them
    ages: tuple[int, ...] = (50, 1000)  # ages: steps since the reset at which a step of balanced is measured
    rounds: int = 25  # ages: steps at each age, measured in turns so that a busy minute hits all ages alike
    repeats: int = 10  # measured calls a case
    cache_ages: tuple[int, ...] = (10, 100, 300, 1000)  # cache: frames in memory; 3000 take attention 2 GB, 10000 take it 5
    clips: tuple[int, ...] = (100, 200, 400, 1000)  # training: frames of a clip
    frames_a_step: int = 1000  # training: frames of all clips of a step, the same for every length
    variants: tuple[str, ...] = ("ours", "full-causal")  # training: see `experiments.ablations`
    objective: str = "diffusion_forcing"  # training, peak: of every step; or teacher_forcing, self_rollout
    precision: str = "auto"  # training, peak, scan: of products: bfloat16 where the processor has it (in scan float32, too); or by name
    peak_frames: int = 320  # peak: frames of a step, in clips of 80
    peak_size: int = 2048  # peak: rows and columns of the matrices that measure it
    scan_rows: int = 4  # scan: sequences, of as many tokens as `scan_frames` have
    scan_frames: int = 80  # scan
    memory: float = 0.5  # of the free memory that a step of training may take; what would take more is left out
    processes: tuple[int, ...] = (1, 2)  # simulators

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts to measure, in their order."""
        return tuple(part for part in PARTS if part in self.parts or "all" in self.parts)

    def check(self) -> None:
        """Raises `ValueError` for unknown names, and for numbers with which nothing can be measured."""
        check_names("world", (self.world,), WORLDS)
        check_names("part", self.parts, (*PARTS, "all"))
        check_names("profile", self.profiles, PROFILES)
        check_names("dtype", (self.dtype,), DTYPES)
        check_names("variant", self.variants, VARIANTS)
        check_names("objective", (self.objective,), OBJECTIVES)
        check_names("precision", (self.precision,), DTYPES)
        check_bounds(self, repeats=1, clips=2, frames_a_step=2, peak_frames=2, peak_size=16, cache_ages=1, scan_rows=1, scan_frames=1)
        check_bounds(self, steps=1, rounds=1, warm_up=0, many=0, ages=1, processes=1)
        if "ages" in self.chosen and not self.ages:
            raise ValueError("there are no ages to measure a step at: name some, or other parts")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory is a share of what is free, above 0 and at most 1, not {self.memory}")
        too_long = [clip for clip in self.clips if clip > self.frames_a_step]
        if "training" in self.chosen and too_long:
            raise ValueError(f"clips of {too_long[0]} frames are longer than a step of {self.frames_a_step}: raise frames_a_step")


def check_names(what: str, names: tuple[str, ...], known: Collection[str]) -> None:
    """Raises `ValueError` for names that are not known."""
    unknown = [repr(name) for name in names if name not in known]
    if unknown:
        raise ValueError(f"no {what} named {', '.join(unknown)}; there are {', '.join(known)}")
