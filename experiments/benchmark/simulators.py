"""Steps of the real world, in one process and more, and of dreams in as many processes."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import gymnasium
import numpy as np
import torch

from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, seconds_of
from experiments.benchmark.processes import in_processes
from experiments.benchmark.steps import opened
from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservationVec
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.worlds import WORLDS

AS_IT_IS = "all"
OBSERVED = (AS_IT_IS, "features")
DREAMED = "fast"  # the profile that is measured beside the real world


def measure_simulators(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of id, what is observed, processes, steps a second of all together and milliseconds a step; or `skipped`, the reason.

    Rows of the dream have `envs`, dreams a process. There are none with `many` 0, and none on a GPU.
    """
    world = WORLDS[run.world]
    if world.real_id is None:
        return [{"id": world.id, "skipped": "no real environment is known of this world"}]
    dreams = bool(run.many) and chosen_device(run.device) == "cpu"
    rows: list[dict[str, Any]] = []
    for observation, processes in itertools.product(OBSERVED, run.processes):
        row: dict[str, Any] = {"observation": observation, "processes": processes}
        try:
            rows.append({"id": world.real_id, **row, **_stepped(world.real_id, row, run)})
        except (SimulatorUnavailable, SimulatorDied) as error:
            rows.append({"id": world.real_id, **row, "skipped": str(error)})
        rows += [{"id": world.id, **row, **_dreamed(row, run)}] if dreams else []
    return rows


def _dreamed(row: dict[str, Any], run: Benchmark) -> dict[str, Any]:
    processes = row["processes"]
    together = get_context("spawn").Barrier(processes)
    seconds = in_processes([partial(_dream, run, row["observation"], together)] * processes, processes)
    rate = sum(run.many / each.mean() for each in seconds)
    return {"envs": run.many, "profile": DREAMED, "steps_per_second": float(rate), **asdict(Times.of(np.concatenate(seconds)))}


def _dream(run: Benchmark, observation: str, together: Barrier) -> np.ndarray:
    torch.set_num_threads(1)
    env, step = opened(run, DREAMED, run.many, observation=observation)
    together.wait()
    seconds = seconds_of(step, run.steps, run.warm_up)
    together.wait()  # until here the others have kept their cores busy
    env.close()
    return seconds


def _stepped(real: str, row: dict[str, Any], run: Benchmark) -> dict[str, Any]:
    gymnasium.make(real).close()  # says here, and clearly, what is missing
    processes = row["processes"]
    envs: Any = gymnasium.make_vec(real, processes, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    try:
        if row["observation"] != AS_IT_IS:
            envs = WorldModelObservationVec(envs, open_dream(run.world, DREAMED, run.device, run.weights), row["observation"])
        envs.reset(seed=0)
        rng, actions = np.random.default_rng(0), int(envs.single_action_space.n)
        title = f"{real}, {row['observation']}, {processes} processes"
        seconds = seconds_of(lambda: envs.step(rng.integers(actions, size=processes)), run.steps, run.warm_up, title=title)
    finally:
        envs.close(terminate=True)
    return {"steps_per_second": float(processes / seconds.mean()), **asdict(Times.of(seconds))}
