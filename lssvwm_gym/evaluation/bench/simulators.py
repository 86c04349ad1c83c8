"""The real world's steps a second beside the dream's: random actions, in one process and more.

The real world's processes are Gymnasium's `AsyncVectorEnv`: every step waits for the slowest. The dream's have a batch and a thread each
and don't wait for each other, but all step while they are timed. Both are measured as they come, and as an agent sees them that learns
from the model's features: then nothing is dreamed that is not asked for, and each real frame is encoded and committed. A world that
can't run here is left out, with the reason.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import gymnasium
import numpy as np
import torch

from lssvwm_gym.envs.simulator import open_dream
from lssvwm_gym.envs.wrappers import SeenThroughModelVec
from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.stepping import opened, seconds_of_steps
from lssvwm_gym.evaluation.bench.timing import Times
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.worlds import WORLDS

AS_IT_IS = "all"
OBSERVED = (AS_IT_IS, "features")
DREAMED = "fast"  # the profile that is measured beside the real world
_together: Barrier  # of a process that dreams: all begin their steps here


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
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(context.Barrier(processes),)) as crew:
        seconds = list(crew.map(_dream, [(run, row["observation"])] * processes))
    rate = sum(run.many / each.mean() for each in seconds)
    return {"envs": run.many, "profile": DREAMED, "steps_per_second": float(rate), **asdict(Times.of(np.concatenate(seconds)))}


def _begin(barrier: Barrier) -> None:
    global _together
    _together = barrier
    torch.set_num_threads(1)


def _dream(what: tuple[Benchmark, str]) -> np.ndarray:
    run, observation = what
    try:
        env, step = opened(run, DREAMED, run.many, observation=observation)
        _together.wait()
        seconds = seconds_of_steps(step, run, "")
        _together.wait()  # until here the others have kept their cores busy
    except BaseException:
        _together.abort()  # the others would wait for ever
        raise
    env.close()
    return seconds


def _stepped(real: str, row: dict[str, Any], run: Benchmark) -> dict[str, Any]:
    gymnasium.make(real).close()  # says here, and clearly, what is missing
    processes = row["processes"]
    envs: Any = gymnasium.make_vec(real, processes, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    try:
        if row["observation"] != AS_IT_IS:
            envs = SeenThroughModelVec(envs, open_dream(run.world, DREAMED, run.device, run.weights), row["observation"])
        envs.reset(seed=0)
        rng, actions = np.random.default_rng(0), int(envs.single_action_space.n)
        title = f"{real}, {row['observation']}, {processes} processes"
        seconds = seconds_of_steps(lambda: envs.step(rng.integers(actions, size=processes)), run, title)
    finally:
        envs.close(terminate=True)
    return {"steps_per_second": float(processes / seconds.mean()), **asdict(Times.of(seconds))}
