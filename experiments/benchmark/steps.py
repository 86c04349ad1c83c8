"""Steps of the environment: by profile and number, and by age."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np

from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, memory_bytes, progress, seconds_of, state_bytes
from lssvwm_gym.worlds import WORLDS

AGED = "balanced"  # the profile whose step is measured by age


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


def opened(run: Any, profile: str, envs: int, **more: Any) -> tuple[Any, Callable[[], Any]]:
    """An environment that never ends, after its reset, and a function that steps it at random.

    `run` has settings like `Benchmark`; `more` are settings of the environment.

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
    row = {"profile": profile, "passes": env.unwrapped.dream.sampling_steps, "envs": envs, "steps_per_second": float(envs / seconds.mean())}
    return row | asdict(Times.of(seconds)) | {"state_bytes": size, "first_seconds": first}
