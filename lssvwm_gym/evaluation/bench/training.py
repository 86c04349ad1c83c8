"""Training steps, whole as `lssvwm-gym train world` makes them: frames a second by length of clips, and the share of the peak.

Learning to see, which does not depend on the clips, is done as often a step as there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lssvwm_gym.evaluation.bench.counting import Kept, inputs_like
from lssvwm_gym.evaluation.bench.models import trainer_of, training_of
from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.timing import Times, free_bytes, seconds_of
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.config import WorldTraining

IN_FLIGHT = 1.6  # bytes that a step takes for a byte that it keeps for the backward pass: gradients of the widest layer, copies


def measure_training(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of variant, frames of a clip, frames a second, milliseconds a step, and bytes kept for the backward pass.

    A length whose step would not fit into memory has `skipped`, the reason, instead of times.
    """
    cases = [(name, frames) for name in run.variants for frames in sorted(run.clips)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        kept = list(apart.map(kept_bytes, *zip(*[_shape(run, name, frames) for name, frames in cases], strict=True)))
    rows, first = [], dict[str, float]()
    for (name, frames), size in zip(cases, kept, strict=True):
        row = _length(run, name, frames, size)
        if "ms" in row:
            cost = row["ms"] / row["frames"]
            row["growth"] = cost / first.setdefault(name, cost) - 1  # of the cost of a frame
        rows.append(row)
    return rows


def kept_bytes(config: WorldModelConfig, rows: int, frames: int, way: str) -> int:
    """Bytes that autograd keeps for the backward pass of a step, in float32; found out with tensors that have shapes and no numbers.

    For a process of its own: constants that the model keeps would be without numbers from then on.
    """
    peeks = None if way == "forcing" else (True, False) * frames
    frames = frames if peeks is None else 2 * frames
    kept = Kept()
    with FakeTensorMode(allow_non_fake_inputs=True), kept:
        inputs, model = inputs_like(config, rows, frames), WorldModel(config)
        model(torch.zeros(rows, frames, config.tokens, config.latent_channels), inputs, model.initial_state(rows), peeks)
    return sum(kept.sizes.values())


def stepping(run: Benchmark, name: str, frames: int, frames_a_step: int) -> Callable[[], Any]:
    """The training step of a variant on random clips, again and again."""
    trainer = trainer_of(training_of(run, name, frames, frames_a_step))
    return trainer.train_step


def _training(run: Benchmark, name: str, frames: int) -> WorldTraining:
    training = training_of(run, name, frames, run.frames_a_step)
    if name == "full-causal":  # sees all of a clip, and no more than that
        training = replace(training, model=replace(training.model, window=frames))
    return training


def _shape(run: Benchmark, name: str, frames: int) -> tuple[WorldModelConfig, int, int, str]:
    training = _training(run, name, frames)
    return training.model, training.rows(training.curriculum[0]), frames, run.way


def _length(run: Benchmark, name: str, frames: int, kept: int) -> dict[str, Any]:
    training = _training(run, name, frames)
    clips, free = training.rows(training.curriculum[0]), free_bytes()
    row: dict[str, Any] = {"variant": name, "clip": frames, "clips": clips, "frames": clips * frames, "kept_bytes": kept}
    if chosen_device(run.device) == "cpu" and free is not None and kept * IN_FLIGHT > run.memory * free:
        needs, may = kept * IN_FLIGHT / 1e9, run.memory * free / 1e9
        return row | {"skipped": f"a step would take about {needs:.0f} GB of memory, and --memory {run.memory} leaves {may:.0f} GB"}
    trainer = trainer_of(training)
    seconds = seconds_of(trainer.train_step, run.repeats, 1, str(trainer.device), f"{name}, clips of {frames} frames")
    times = Times.of(seconds)
    return row | asdict(times) | {"frames_per_second": row["frames"] / (times.ms / 1000)}
