"""Learning rate and moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Warm-up, plateau, and a linear fall to zero over the last `decay` share of `steps`."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    falling = min(1.0, (steps - step) / max(1.0, decay * steps))
    return peak * max(0.0, min(rising, falling))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group follows the same curve, scaled by its own `scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights, with a shorter memory during the first steps."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)
