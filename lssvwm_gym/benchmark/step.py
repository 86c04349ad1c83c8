"""Steps of the environment: by profile and number, by age, and beside the real world."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import gymnasium
import numpy as np
import torch

from lssvwm_gym.benchmark.config import Benchmark
from lssvwm_gym.benchmark.machine import Times, in_processes, memory_bytes, progress, seconds_of
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, open_dream
from lssvwm_gym.envs.wrappers import WorldModelObservationVec
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.worlds import WORLDS

AGED = "balanced"  # the profile whose step is measured by age
AS_IT_IS = "all"
OBSERVED = (AS_IT_IS, "features")
DREAMED = "fast"  # the profile that is measured beside the real world


def measure_speed(run: Benchmark) -> list[dict[str, Any]]:
    """All profiles with one environment, and `fast` with many. Steps a second are those of all environments together."""
    cases = [*((profile, 1) for profile in run.profiles), *([("fast", run.many)] if run.many else [])]
    return [_speed(run, profile, envs) for profile, envs in cases]


def measure_ages(run: Benchmark) -> list[dict[str, Any]]:
    """A step at each age of one long dream, and what the process and the state hold there.

    One dream is stepped to the last age, and its state kept at each. Then steps from these states are timed in turns, so that other
    load of the machine falls on all ages alike.
    """
    env, step = opened(run, AGED, 1)
    states, memory = {}, {}
    for age in progress(range(1, max(run.ages) + 1), f"dreaming up to age {max(run.ages)}"):
        step()
        if age in run.ages:
            states[age], memory[age] = env.unwrapped.clone_state(), memory_bytes()
    seconds: dict[int, list[float]] = {age: [] for age in states}
    for _ in progress(range(run.rounds), "steps at each age, in turns"):
        for age, state in states.items():
            env.unwrapped.restore_state(state)
            began = time.perf_counter()
            step()
            seconds[age].append(time.perf_counter() - began)
    env.close()
    sizes = {age: state_bytes(state.dream) for age, state in states.items()}
    rows = [{"age": age, **asdict(Times.of(seconds[age])), "memory_bytes": memory[age], "state_bytes": sizes[age]} for age in states]
    return [row | {"growth": row["ms"] / rows[0]["ms"] - 1} for row in rows]


def opened(run: Benchmark, profile: str, envs: int, **more: Any) -> tuple[Any, Callable[[], Any]]:
    """An environment that never ends, after its reset, and a function that steps it at random; `more` are settings of the environment.

    What a step returns lies in the memory of the CPU, so a GPU has finished when it returns.
    """
    settings = dict(profile=profile, weights=run.weights, device=run.device, dtype=run.dtype, backend=run.backend) | more
    id, rng = WORLDS[run.world].id, np.random.default_rng(0)
    env: Any = gymnasium.make(id, max_episode_steps=-1, **settings) if envs == 1 else gymnasium.make_vec(id, envs, **settings)
    actions, size = (env.action_space, ()) if envs == 1 else (env.single_action_space, envs)
    env.reset(seed=0)
    return env, lambda: env.step(rng.integers(actions.n, size=size))


def _speed(run: Benchmark, profile: str, envs: int) -> dict[str, Any]:
    env, step = opened(run, profile, envs)
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began  # a backend may compile in it
    seconds = seconds_of(step, run.steps, run.warm_up, title=f"{profile}, {envs} envs")
    size = state_bytes(env.unwrapped.clone_state().dream) // envs
    env.close()
    row = {"profile": profile, "passes": SAMPLING_STEPS[profile], "envs": envs, "steps_per_second": float(envs / seconds.mean())}
    return row | asdict(Times.of(seconds)) | {"state_bytes": size, "first_seconds": first}


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
