"""Whether a gradient is wanted: then nothing may be used that was laid out for dreaming alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def is_recorded(module: nn.Module, *inputs: Any) -> bool:
    """Whether a gradient would be recorded of what a module makes of inputs, pytrees of tensors."""
    if not torch.is_grad_enabled():
        return False
    leaves = [*module.parameters(), *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
    return any(leaf.requires_grad for leaf in leaves)
