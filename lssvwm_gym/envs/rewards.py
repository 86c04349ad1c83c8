"""The reward of a step, and whether it ended the episode: what the heads of the world model say of it, and the world's own rules."""

import functools

import torch
from torch import Tensor

from lssvwm_gym.models.chance import chance_of
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.models.symlog import expected_reward
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.worlds import WorldSpec


def reward(
    world: WorldSpec, before: DreamState, after: DreamState, logits: Tensor, expected: bool = False, bins: Tensor | None = None
) -> Tensor:
    """The reward (B,) float64 of a step from one state to the next; `logits` (B, K) are those of the world's reward values.

    The most probable of these values, or with `expected` their mean. In a world with milestones, what those counts are worth that
    have risen above 0 for the first time. Where rewards are real numbers, the mean over the world model's bins (K,).
    """
    if world.milestones:
        worth = dict(world.milestones)
        risen = (before.inventory_peak == 0) & (after.inventory_peak > 0)
        values = _table(tuple(worth.get(name, 0.0) for name in world.inventory), logits.device)
        return risen.to(values.dtype) @ values
    if bins is not None:
        return expected_reward(logits, bins)
    values = _table(world.reward_values, logits.device)
    return logits.softmax(-1).to(values.dtype) @ values if expected else values[logits.argmax(-1)]


def reward_probability(world: WorldSpec, logits: Tensor) -> Tensor:
    """How probable a reward other than 0 is, (B,), by the logits (B, K) of the world's reward values, or of bins, where it has none."""
    if not world.reward_values:
        return 1 - logits.softmax(-1)[:, logits.shape[1] // 2]
    return logits.softmax(-1) @ _table(tuple(float(value != 0) for value in world.reward_values), logits.device, logits.dtype)


def terminated(model: WorldModel, features: Tensor, action: Tensor, after: DreamState, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the step by actions (B,) to a state ended the episode, (B,) bool, and how probable that was, (B,).

    `features` (B, FEATURES) are those of the state before, `noise` (B, N, C) is the step's. Never, where the world model has no head for
    it. It is a draw and no threshold, or episodes whose end nobody foresees would never end.
    """
    if model.termination_head is None:
        return torch.zeros_like(after.seed, dtype=torch.bool), torch.zeros_like(after.uncertainty)
    logit: Tensor = model.termination_head(features, after.inventory, action)
    return chance_of(noise) < logit.sigmoid(), logit.sigmoid()


@functools.lru_cache(maxsize=64)
def _table(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Copied to the device once: a copy makes a GPU wait."""
    return torch.tensor(numbers, dtype=torch.float32 if device.type == "mps" else dtype, device=device)  # which has no float64
