"""What a benchmark measures, and for how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lssvwm_gym.envs.profiles import PROFILES
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.inference.backend import DTYPES
from lssvwm_gym.worlds import WORLDS

PARTS = ("speed", "ages")


@dataclass(frozen=True)
class Settings:
    """What all benchmarks are told."""

    all_parts: ClassVar[tuple[str, ...]]

    world: str = "memory-maze"
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    parts: tuple[str, ...] = ()
    threads: int | None = None  # of torch; its own choice if not given
    device: str = "auto"
    dtype: str = "auto"  # of dreams, as the environments take it: auto, float32, bfloat16
    backend: str = "auto"  # likewise: auto, torch, mamba, compiled
    out: Path | None = None  # where to write the numbers as JSON
    plots: Path | None = None  # folder for pictures

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts to measure, in their order."""
        return tuple(part for part in self.all_parts if part in self.parts or "all" in self.parts)

    def check(self) -> None:
        """Raises `ValueError` for unknown names, and for numbers with which nothing can be measured."""
        check_names("world", (self.world,), WORLDS)
        check_names("part", self.parts, (*self.all_parts, "all"))


@dataclass(frozen=True)
class Benchmark(Settings):
    """What to measure, and for how long."""

    all_parts = PARTS

    parts: tuple[str, ...] = PARTS
    profiles: tuple[str, ...] = ("fast", "balanced", "quality")  # speed: measured with one environment each
    many: int = 16  # speed: environments in one batch, measured at the profile fast; 0 for none
    steps: int = 100  # speed: measured a case
    warm_up: int = 10  # speed: steps before them
    ages: tuple[int, ...] = (50, 1000)  # ages: steps since the reset at which a step of balanced is measured
    rounds: int = 25  # ages: steps at each age, measured in turns so that a busy minute hits all ages alike

    def check(self) -> None:
        super().check()
        check_names("profile", self.profiles, PROFILES)
        check_names("dtype", (self.dtype,), DTYPES)
        check_bounds(self, steps=1, rounds=1, warm_up=0, many=0, ages=1)
        if "ages" in self.chosen and not self.ages:
            raise ValueError("there are no ages to measure a step at: name some, or other parts")


def check_names(what: str, names: tuple[str, ...], known: Collection[str]) -> None:
    """Raises `ValueError` for names that are not known."""
    unknown = [repr(name) for name in names if name not in known]
    if unknown:
        raise ValueError(f"no {what} named {', '.join(unknown)}; there are {', '.join(known)}")
