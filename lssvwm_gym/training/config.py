"""Settings of a training run of the world model."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.training.distributed import ProcessGroup
from lssvwm_gym.training.objectives import LossOptions


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum."""

    share: float  # of all steps
    frames: int  # T, of a clip
    clips: int  # the longest segment, in clips between which the state is carried


# short clips in longer and longer segments: most frames for the time
CURRICULUM = (Stage(0.05, 80, 1), Stage(0.15, 80, 3), Stage(0.8, 80, 10))


@dataclass(frozen=True)
class WorldTraining:
    """How to train a world model. The same command line goes on exactly where a stopped run was."""

    data: Path  # folder with episodes to learn from
    autoencoder: Path  # autoencoder.safetensors of a finished autoencoder, or a folder of weights
    out: Path  # folder for checkpoint.safetensors, world.safetensors, samples and TensorBoard logs
    val: Path | None = None  # folder with episodes to choose by
    preset: str = ""  # tiny, base or paper: sizes by name instead of `model`
    start: Path | None = None  # world, checkpoint or packaged model.safetensors to begin with, where names and shapes agree
    model: WorldModelConfig = field(default_factory=WorldModelConfig)  # actions, poses and motion are those of the recordings unless given
    curriculum: tuple[Stage, ...] = CURRICULUM
    steps: int = 6000
    frames_a_step: int = 320  # rows times frames of a clip, of all processes together
    learning_rate: float = 1e-3
    muon: bool = False  # Muon for the matrices of the layers; its bf16 products are slow on processors without bf16
    warmup: int = 100  # steps
    decay: float = 0.35  # share of the steps over which the learning rate falls to zero
    average: float = 0.998  # decay of the moving average of the weights, which is what a finished run saves
    teacher_forcing: float = 0.3  # share of steps in which every frame is denoised after a clean past, as in a dream
    self_rollout: float = 0.45  # share of steps in which, besides, a part of that past is the model's own; the rest is diffusion forcing
    noising: LossOptions = field(default_factory=LossOptions)
    back: float = 0.4  # share of segments that run back through the same frames
    picture_weight: float = 0.75  # share of the denoising loss that weighs latent errors as they show in the picture
    reward_weight: float = 0.1
    pose_weight: float = 0.1
    termination_weight: float = 0.1
    odometry_updates: int = 8  # a step, of the odometry head, which learns from pairs of frames apart from all else
    save_every: int = 250  # steps
    inventory_weight: float = 0.5
    augmentation: tuple[int, ...] = ()  # each action's mirror image, such as 0 1 3 2: then every episode is learned from flipped, too
    precision: str = "auto"  # of matrix products: bfloat16 where the processor has it; or float32, bfloat16
    device: str = "auto"  # auto: cuda where there is one, else cpu
    backend: str = "auto"  # of scans: auto or torch; on CUDA also mamba, mamba-ssm's kernels
    seed: int = 0
    threads: int = 0  # 0: leave it to torch

    def __post_init__(self) -> None:
        shares = self.teacher_forcing, self.self_rollout
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"teacher_forcing and self_rollout are shares of the steps, together at most 1; got {shares[0]}, {shares[1]}")
        Backend(self.backend)

    def stage(self, step: int) -> Stage:
        """The stage of the curriculum that a step belongs to."""
        reached = np.cumsum([stage.share for stage in self.curriculum]) * self.steps
        return self.curriculum[min(int(np.searchsorted(reached, step, side="right")), len(self.curriculum) - 1)]

    def rows(self, stage: Stage) -> int:
        """Segments under way in a stage, in all processes together."""
        return max(1, self.frames_a_step // stage.frames)

    def refuse_uneven_rows(self, group: ProcessGroup) -> None:
        """Refuse a process group whose processes could not all have the same number of rows in every stage."""
        for stage in self.curriculum:
            rows = self.rows(stage)
            group.refuse_uneven(rows, f"{rows} rows (--frames-a-step {self.frames_a_step} in clips of {stage.frames} frames)")

    @property
    def checkpoint(self) -> Path:
        """What a stopped run goes on from."""
        return self.out / "checkpoint.safetensors"
