"""The models that a benchmark steps and trains: ours as shipped in size, and its variants, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.ablations import variant
from experiments.benchmark.config import Benchmark
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.inference.decode import PrepackedWorldModel
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import Trainer
from lssvwm_gym.worlds import WORLDS, weights_of

NOWHERE = Path()  # a run that reads and writes no files


def config_of(run: Benchmark) -> WorldModelConfig:
    """The sizes of the world model that is measured."""
    return load_weights(weights_of(WORLDS[run.world], run.weights)).world_model.config


def training_of(run: Benchmark, name: str, frames: int, frames_a_step: int) -> WorldTraining:
    """How a variant is trained on clips of so many frames, every step with the objective that is asked for."""
    settings: dict[str, Any] = {} if run.threads is None else {"threads": run.threads}
    settings |= {objective: float(run.objective == objective) for objective in ("teacher_forcing", "self_rollout")}
    settings |= dict(model=config_of(run), curriculum=(Stage(1.0, frames, 1),), frames_a_step=frames_a_step, steps=1_000_000, warmup=1)
    settings |= dict(precision=run.precision, device=run.device, back=0.0)
    return variant(name, WorldTraining(data=NOWHERE, autoencoder=NOWHERE, out=NOWHERE, **settings))


def trainer_of(training: WorldTraining) -> Trainer:
    """A trainer whose episodes are random: what a step costs does not depend on what is in them."""
    frames = max(stage.frames for stage in training.curriculum)
    return Trainer(training, [random_episode(training.model, frames + 1)])


def random_episode(config: WorldModelConfig, frames: int, seed: int = 0) -> Segment:
    """Latents of unit variance along a random trajectory."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heading = (0.2 * normal(frames)).cumsum(0)
    position = (0.2 * torch.stack([heading.cos(), heading.sin()], -1)).cumsum(0)
    pose = torch.cat([position, heading.cos()[:, None], heading.sin()[:, None], 0.1 * normal(frames, config.pose_size - 4)], -1)
    discrete = bool(config.actions)
    action = torch.randint(config.actions, (frames,), generator=generator) if discrete else normal(frames, config.action_size)
    reward = (torch.rand(frames, generator=generator) < 0.05).float()
    latent = normal(frames, config.tokens, config.latent_channels).half()
    return Segment(latent, action, reward, pose, torch.zeros(frames, config.inventory_size))


def dreaming_model(config: WorldModelConfig, device: str) -> WorldModel:
    """A random model as dreams use it: on a CPU with its layers laid out for one frame at a time."""
    model = WorldModel(config).eval().requires_grad_(False).to(chosen_device(device))
    return PrepackedWorldModel.of(model, torch.float32) if chosen_device(device) == "cpu" else model
