"""Steps of the environment: by profile and number of environments, and by age.

A step is everything that `env.step` does: the denoising passes, the commit, the decoder, the reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from lssvwm_gym.envs.simulator import SAMPLING_STEPS
from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.timing import Times, memory_bytes, progress
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.worlds import WORLDS

AGED = "balanced"  # the profile whose step is measured by age


@dataclass(frozen=True)
class Speed:
    """How fast one case is."""

    profile: str
    passes: int  # denoising passes a step; one more commits the frame
    envs: int
    steps_per_second: float  # of all environments together
    ms: float  # a step of the whole batch, median
    ms_p10: float
    ms_p90: float
    state_bytes: int  # a row
    first_seconds: float  # the first step after a reset takes, in which a backend may compile


def measure_speed(run: Benchmark) -> list[dict[str, Any]]:
    """All profiles with one environment, and `fast` with many."""
    cases = [*((profile, 1) for profile in run.profiles), *([("fast", run.many)] if run.many else [])]
    return [asdict(_speed(run, profile, envs)) for profile, envs in cases]


def measure_ages(run: Benchmark) -> list[dict[str, Any]]:
    """A step at each age of one long dream, and what the process and the state hold there.

    The dream is walked through once, and its state kept at each age. Then steps from these states are timed in turns: what else
    the machine does in the meantime falls on all ages alike.
    """
    env, step = opened(run, AGED, 1)
    moments, memory = {}, {}
    for age in progress(range(1, max(run.ages) + 1), f"dreaming up to age {max(run.ages)}"):
        step()
        if age in run.ages:
            moments[age], memory[age] = env.unwrapped.clone_state(), memory_bytes()
    seconds: dict[int, list[float]] = {age: [] for age in moments}
    for _ in progress(range(run.rounds), "steps at each age, in turns"):
        for age, moment in moments.items():
            env.unwrapped.restore_state(moment)
            began = time.perf_counter()
            step()
            seconds[age].append(time.perf_counter() - began)
    env.close()
    sizes = {age: state_bytes(moment.dream) for age, moment in moments.items()}
    rows = [{"age": age, **asdict(Times.of(seconds[age])), "memory_bytes": memory[age], "state_bytes": sizes[age]} for age in moments]
    return [row | {"growth": row["ms"] / rows[0]["ms"] - 1} for row in rows]


def opened(run: Benchmark, profile: str, envs: int, **more: Any) -> tuple[Any, Callable[[], Any]]:
    """An environment that never ends, after its reset, and a function that steps it at random; `more` are settings of the environment.

    What a step returns lies in the memory of the CPU, so a GPU has finished when it returns.
    """
    settings: dict[str, Any] = {
        "profile": profile,
        "weights": run.weights,
        "device": run.device,
        "dtype": run.dtype,
        "backend": run.backend,
        **more,
    }
    id, rng = WORLDS[run.world].id, np.random.default_rng(0)
    env: Any
    if envs == 1:
        env = gymnasium.make(id, max_episode_steps=-1, **settings)
    else:
        env = gymnasium.make_vec(id, envs, **settings)
    actions = int(env.unwrapped.single_action_space.n if envs > 1 else env.action_space.n)
    env.reset(seed=0)
    return env, lambda: env.step(rng.integers(actions, size=() if envs == 1 else envs))


def seconds_of_steps(step: Callable[[], Any], run: Benchmark, title: str) -> np.ndarray:
    """Seconds of each step after the warm-up, from the end of the one before."""
    moments = []
    for _ in progress(range(run.warm_up + run.steps + 1), title):
        moments.append(time.perf_counter())
        step()
    return np.diff(moments)[run.warm_up :]


def _speed(run: Benchmark, profile: str, envs: int) -> Speed:
    env, step = opened(run, profile, envs)
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    seconds = seconds_of_steps(step, run, f"{profile}, {envs} envs")
    times = Times.of(seconds)
    size = state_bytes(env.unwrapped.clone_state().dream) // envs
    env.close()
    return Speed(profile, SAMPLING_STEPS[profile], envs, float(envs / seconds.mean()), times.ms, times.ms_p10, times.ms_p90, size, first)
