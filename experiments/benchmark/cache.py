"""The model's step beside attention over all frames with a growing cache: time and size of the state by age."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, progress, seconds_of, state_bytes
from experiments.benchmark.models import config_of, dreaming_model, random_episode, training_of
from experiments.benchmark.steps import AGED
from lssvwm_gym.envs.profiles import sampling_steps
from lssvwm_gym.evaluation.rollouts import clips_at, prefill_further
from lssvwm_gym.models.rollout import commit, first_state, imagine
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.world_model import WorldModel

OURS, CAUSAL = "ours", "full-causal"


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
