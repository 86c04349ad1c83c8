"""Steps of the environment: by profile and number, by age, beside attention with a growing cache, and beside the real world."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.benchmark.config import Benchmark
from lssvwm_gym.benchmark.machine import Times, in_processes, memory_bytes, progress, seconds_of
from lssvwm_gym.benchmark.models import config_of, dreaming_model, random_episode, training_of
from lssvwm_gym.envs.simulator import open_dream, sampling_steps
from lssvwm_gym.envs.wrappers import WorldModelObservationVec
from lssvwm_gym.evaluation.rollouts import clips_at, prefill_further
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.rollout import DreamState, commit, first_state, imagine
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.worlds import WORLDS

AGED = "balanced"  # the profile whose step is measured by age
OURS, CAUSAL = "ours", "full-causal"
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
    row = {"profile": profile, "passes": env.unwrapped.dream.sampling_steps, "envs": envs, "steps_per_second": float(envs / seconds.mean())}
    return row | asdict(Times.of(seconds)) | {"state_bytes": size, "first_seconds": first}


@torch.no_grad()
def measure_cache(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of model, age, milliseconds and bytes of the state."""
    config = config_of(run)
    ours, rows = dreaming_model(config, run.device), []
    for age, state in _states_at(ours, sorted(run.cache_ages)):
        rows.append(_row(OURS, ours, state, age, run))
    causal = training_of(run, CAUSAL, 2, 2).model
    for age in sorted(run.cache_ages):
        model = dreaming_model(replace(causal, window=age), run.device)
        rows.append(_row(CAUSAL, model, filled_cache(model, age), age, run))
        del model
    first = {row["model"]: row["ms"] for row in reversed(rows)}
    return [row | {"growth": row["ms"] / first[row["model"]] - 1} for row in rows]


def filled_cache(model: WorldModel, age: int) -> DreamState:
    """The state of a model of attention alone and a window of `age`, whose cache holds so many random frames."""
    state, generator = first_state(model, torch.zeros(1, dtype=torch.int64, device=model.token_in.weight.device)), torch.Generator()

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator.manual_seed(like.numel())).to(like)

    layers = tuple(
        layer._replace(keys=F.layer_norm(normal(layer.keys), layer.keys.shape[-1:]), values=normal(layer.values))
        for layer in state.world.layers
    )
    return state._replace(world=state.world._replace(layers=layers, age=state.world.age + age))


def _states_at(model: WorldModel, ages: list[int]) -> list[tuple[int, DreamState]]:
    """Our states after random frames, at each of the ages."""
    device = model.token_in.weight.device
    clip = clips_at([(random_episode(model.config, max(ages)), 0)], max(ages)).to(device)
    state, at, states = first_state(model, torch.zeros(1, dtype=torch.int64, device=device)), 0, []
    for age in progress(ages, f"prefilling {max(ages)} frames"):
        state, at = prefill_further(model, state, clip[at:age]).state, age
        states.append((age, state))
    return states


def _row(name: str, model: WorldModel, state: DreamState, age: int, run: Benchmark) -> dict[str, Any]:
    """What a step from this state costs, taken again and again."""
    config, device = model.config, model.token_in.weight.device
    action = torch.ones(1, dtype=torch.int64, device=device) if config.actions else torch.zeros(1, config.action_size, device=device)

    def step() -> DreamState:
        return commit(model, state, action, imagine(model, state, action, sampling_steps(model, AGED)))

    seconds = seconds_of(step, run.repeats, 2, device.type, f"{name} at age {age}")
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"model": name, "weights": weights, "age": age, **asdict(Times.of(seconds)), "state_bytes": state_bytes(state)}


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
