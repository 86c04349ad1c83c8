"""What a call of the model costs, counted of tensors that have shapes and no numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.world_model import WorldModelConfig


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Within it, `sizes` gets what autograd keeps for the backward pass: the bytes of each storage, by its address."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._held: list[Tensor] = []  # a storage that is gone could lend its address to another
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self._held.append(tensor)
        self.sizes[address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


def address(tensor: Tensor) -> int:
    """Of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def inputs_like(config: WorldModelConfig, rows: int, frames: int) -> FrameInputs:
    """What is known of frames (B, T), of which only the shapes matter."""
    numbers = torch.zeros(rows, frames)
    action = torch.zeros(rows, frames, config.action_size) if config.action_size else numbers.long()
    pose, motion = (torch.zeros(rows, frames, size) for size in (config.pose_size, len(config.motion_scale)))
    return FrameInputs(numbers, action, pose, motion, torch.ones(rows, frames), torch.zeros(rows, frames, config.vector_size))
