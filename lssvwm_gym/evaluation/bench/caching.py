"""A step of the model beside one of attention over all frames, whose cache grows with every frame.

Both are random weights of the same code and nearly the same number (`full-causal` of `lssvwm_gym.training.ablations`), dream with
as many passes as the profile balanced and commit; decoder and reward, which they share, are left out. Ours has remembered as
many frames as its age says. The cache of the other holds so many keys and values and no more: a step reads each of them once,
and appends its own, by which the next step's cache is longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.envs.simulator import SAMPLING_STEPS
from lssvwm_gym.evaluation.bench.models import config_of, dreaming_model, random_episode, training_of
from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.stepping import AGED
from lssvwm_gym.evaluation.bench.timing import Times, progress, seconds_of
from lssvwm_gym.models.geometry import relative_to
from lssvwm_gym.models.rollout import DreamState, commit, first_state, imagine, remember
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.models.world_model import WorldModel

OURS, CAUSAL = "ours", "full-causal"
TOGETHER = 128  # frames remembered in one go


@torch.no_grad()
def measure_cache(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of model, age, milliseconds and bytes of the state."""
    config = config_of(run)
    ours, rows = dreaming_model(config, run.device), []
    for age, state in _walked(ours, sorted(run.cache_ages)):
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


def _walked(model: WorldModel, ages: list[int]) -> list[tuple[int, DreamState]]:
    """Our states after random frames, at each of the ages."""
    device = model.token_in.weight.device
    episode = random_episode(model.config, max(ages))
    action, pose = episode.action.to(device)[None], relative_to(episode.pose, episode.pose[:1]).to(device)[None]
    latent, vector = episode.latent.float().to(device)[None], episode.vector.to(device)[None]
    state, at, states = first_state(model, torch.zeros(1, dtype=torch.int64, device=device)), 0, []
    stops = sorted({*ages, *range(TOGETHER, max(ages), TOGETHER)})
    for stop in progress(stops, f"remembering {max(ages)} frames"):
        part = slice(at, stop)
        state, at = remember(model, state, latent[:, part], action[:, part], pose[:, part], vector[:, part]), stop
        if stop in ages:
            states.append((stop, state))
    return states


def _row(name: str, model: WorldModel, state: DreamState, age: int, run: Benchmark) -> dict[str, Any]:
    device = model.token_in.weight.device
    seconds = seconds_of(_step_of(model, state), run.repeats, 2, device.type, f"{name} at age {age}")
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"model": name, "weights": weights, "age": age, **asdict(Times.of(seconds)), "state_bytes": state_bytes(state)}


def _step_of(model: WorldModel, state: DreamState) -> Callable[[], DreamState]:
    """The step from this state, again and again."""
    config, device = model.config, model.token_in.weight.device
    action = torch.ones(1, dtype=torch.int64, device=device) if config.actions else torch.zeros(1, config.action_size, device=device)
    return lambda: commit(model, state, action, imagine(model, state, action, SAMPLING_STEPS[AGED]))
