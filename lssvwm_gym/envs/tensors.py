"""What a batch of dreams tells where it is to stay on its device: tensors instead of arrays, the same numbers.

Nothing here waits for a device or copies from it, but `read_back` for worlds whose model can end an episode.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict, Space
from torch import Tensor

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.simulator import SAMPLING_STEPS, Dream
from lssvwm_gym.models.rollout import DreamState, drawn_noise

OUTPUTS = ("numpy", "torch")


def checked_output(output: str) -> str:
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    return output


def checked_actions(actions: Any, dream: Dream, rows: int) -> Tensor:
    """Actions on the dream's device: whole numbers (B,), as int64, or float32 (B, A) where the world's are continuous.

    Raises `ValueError` for anything else, and on a CPU for numbers out of range; elsewhere to look would be to wait, and those end in
    an assertion of the device.
    """
    world, continuous = dream.world, bool(dream.weights.world_model.config.action_size)
    shape = (rows, len(world.actions)) if continuous else (rows,)
    kind = "floating-point" if continuous else "whole"
    if (
        not isinstance(actions, Tensor)
        or actions.shape != shape
        or actions.is_floating_point() != continuous
        or actions.dtype == torch.bool
    ):
        said = f"{tuple(actions.shape)} {actions.dtype}" if isinstance(actions, Tensor) else repr(actions)
        raise ValueError(f"with output='torch' actions are a tensor {shape} of {kind} numbers, not {said}")
    if actions.device.type == "cpu":
        return spaces.checked_actions(actions.detach().numpy(), world, (rows,)).to(dream.device)
    if not continuous:
        torch._assert_async(((actions >= 0) & (actions < len(world.actions))).all(), "an action is out of range")
    return actions.to(dream.device, torch.float32 if continuous else torch.int64)


def observed(space: Space[Any], observation: str, state: DreamState, frame: Tensor | None) -> Any:
    """As `spaces.observed`: uint8 (B, height, width, 3), in a `Dict` space beside int32 counts (B, V); or float32 numbers."""
    if frame is None or not spaces.needs_frame(observation):
        return spaces.numbers_of(state, observation).float().clone()
    image = frame.clone()
    if not isinstance(space, Dict):
        return image
    most = int(space["inventory"].high.max())  # type: ignore[attr-defined]
    return {"image": image, "inventory": state.inventory.clamp(max=most).to(torch.int32)}


def known(dream: Dream, state: DreamState, reward_logits: Tensor) -> dict[str, Tensor]:
    """As `Dream.info`, with float32 for its floats; `reward_logits` are the logits of the reward values, (B, K)."""
    pays = _numbers(tuple(float(value != 0) for value in dream.world.reward_values), dream.device)
    numbers = {"age": state.world.age, "reward_probability": reward_logits.softmax(-1) @ pays}
    if dream.weights.world_model.config.has_spatial_memory:
        numbers["estimated_pose"] = state.pose
        numbers["familiarity"] = 1 - state.posterior_variance
    if dream.world.inventory:
        numbers["inventory"] = state.inventory.clamp(max=dream.world.max_inventory).to(torch.int32)
    if SAMPLING_STEPS[dream.profile] > 1:
        numbers["uncertainty"] = state.uncertainty
    return {name: number.clone() for name, number in numbers.items()}


def paid(dream: Dream, before: DreamState, state: DreamState, reward_logits: Tensor) -> Tensor:
    """What the last step paid, (B,) float32."""
    if dream.world.milestones:
        pays = dict(dream.world.milestones)
        values = _numbers(tuple(pays.get(name, 0.0) for name in dream.world.inventory), dream.device)
        return ((before.inventory_peak == 0) & (state.inventory_peak > 0)).float() @ values
    return _numbers(tuple(dream.world.reward_values), dream.device)[reward_logits.argmax(-1)]


def terminated(dream: Dream, state: DreamState) -> Tensor:
    """Whether the last step ended the episode, (B,) bool."""
    head = dream.weights.world_model.termination_head
    return torch.zeros_like(state.seed, dtype=torch.bool) if head is None else head(state.features)[:, 0] > 0


def read_back(dream: Dream, ended: Tensor) -> np.ndarray:
    """`terminated` as an array; where the model never ends an episode that is known without asking the device."""
    if dream.weights.world_model.termination_head is None:
        return np.zeros(len(ended), bool)
    return ended.cpu().numpy()


def noise_of(dream: Dream, seeds: Sequence[int], ages: Sequence[int]) -> Tensor:
    """`frame_noise` for seeds and ages that are known here: drawn on the CPU and sent, which waits for nothing."""
    return sent(drawn_noise(dream.weights.world_model, seeds, ages), dream.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # from elsewhere it would wait


def masked(info: dict[str, Tensor], mask: Tensor) -> dict[str, Any]:
    """Infos as Gymnasium batches them: zeros where the mask (B,) is False, and each key's mask beside it."""
    batched: dict[str, Any] = {}
    for name, value in info.items():
        batched |= {name: _zeroed(value, mask), f"_{name}": mask.clone()}
    return batched


def final(observations: Any, info: dict[str, Tensor], mask: Tensor) -> dict[str, Any]:
    """The last observations and infos of the rows that ended, in their places; all other rows are zeros."""
    parts = observations if isinstance(observations, dict) else {"": observations}
    seen = {name: _zeroed(part, mask) for name, part in parts.items()}
    last = seen if isinstance(observations, dict) else seen[""]
    return {"final_obs": last, "_final_obs": mask.clone(), "final_info": masked(info, mask), "_final_info": mask.clone()}


def _zeroed(value: Tensor, mask: Tensor) -> Tensor:
    return value * mask.view(-1, *[1] * (value.ndim - 1))


@functools.lru_cache(maxsize=64)
def _numbers(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied to the device once: a copy makes a GPU wait."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)
