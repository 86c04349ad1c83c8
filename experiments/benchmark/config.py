"""What is measured of the model, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from lssvwm_gym.benchmark.config import Settings, check_names
from lssvwm_gym.io.json_config import check_bounds
from lssvwm_gym.models.inference.backend import DTYPES
from lssvwm_gym.training.ablations import VARIANTS

PARTS = ("cache", "training", "peak", "scan", "simulators")
OBJECTIVES = ("diffusion_forcing", "teacher_forcing", "self_rollout")  # of a training step


@dataclass(frozen=True)
class ModelBenchmark(Settings):
    """What to measure, and for how long. Of weights the sizes of the model are taken, and for simulators the dreams."""

    all_parts = PARTS

    parts: tuple[str, ...] = PARTS
    repeats: int = 10  # measured calls a case
    cache_ages: tuple[int, ...] = (10, 100, 300, 1000)  # cache: frames in memory; 3000 take attention 2 GB, 10000 take it 5
    clips: tuple[int, ...] = (100, 200, 400, 1000)  # training: frames of a clip
    frames_a_step: int = 1000  # training: frames of all clips of a step, the same for every length
    variants: tuple[str, ...] = ("ours", "full-causal")  # training: see `lssvwm_gym.training.ablations`
    objective: str = "diffusion_forcing"  # training, peak: of every step; or teacher_forcing, self_rollout
    precision: str = "auto"  # training, peak, scan: of products: bfloat16 where the processor has it (in scan float32, too); or by name
    peak_frames: int = 320  # peak: frames of a step, in clips of 80
    peak_size: int = 2048  # peak: rows and columns of the matrices that measure it
    scan_rows: int = 4  # scan: sequences, of as many tokens as `scan_frames` have
    scan_frames: int = 80  # scan
    memory: float = 0.5  # of the free memory that a step of training may take; what would take more is left out
    many: int = 16  # simulators: dreams in one batch; 0 for none
    steps: int = 100  # simulators: measured a case
    warm_up: int = 10  # simulators: steps before them
    processes: tuple[int, ...] = (1, 2)  # simulators

    def check(self) -> None:
        super().check()
        check_names("variant", self.variants, VARIANTS)
        check_names("objective", (self.objective,), OBJECTIVES)
        check_names("precision", (self.precision,), DTYPES)
        check_bounds(self, repeats=1, clips=2, frames_a_step=2, peak_frames=2, peak_size=16, cache_ages=1, scan_rows=1, scan_frames=1)
        check_bounds(self, many=0, steps=1, warm_up=0, processes=1)
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory is a share of what is free, above 0 and at most 1, not {self.memory}")
        too_long = [clip for clip in self.clips if clip > self.frames_a_step]
        if "training" in self.chosen and too_long:
            raise ValueError(f"clips of {too_long[0]} frames are longer than a step of {self.frames_a_step}: raise frames_a_step")
