"""Which optimiser moves which weights."""

from __future__ import annotations

import torch
from torch import nn


def make_optimizer(model: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers and AdamW for everything else, or AdamW for all.

    Muon's updates are scaled to match AdamW's (`match_rms_adamw`), so that one learning rate serves both.
    Decay rates, biases, gains and embeddings are not decayed towards zero. The last optimiser is that of the sight head.
    """
    matrices, decayed, others = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("sight_head."):
            continue
        if muon and parameter.ndim == 2 and name.startswith("layers.") and "modulation" not in name:
            matrices.append(parameter)
        elif parameter.ndim == 2 and "position" not in name and "discrete" not in name:
            decayed.append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    sight = [parameter for name, parameter in model.named_parameters() if name.startswith("sight_head.")]
    return [*optimizers, torch.optim.AdamW(sight, weight_decay=0.1, fused=True)]
