"""What a committed frame changes in the numbers that go with it: counts, such as an inventory, or others, such as health or speed.

The head classifies the change of each number, so that one frame can be certain to add three planks and take one log. Counts change by
whole numbers, and are ever those before the frame plus the likeliest changes. Of other numbers the changes are those that the data has
shown, each a class, or where they are many some between which all others are shared, as rewards are between bins; a dream draws them, for
by how much a hit hurts is a matter of chance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding, InventoryEmbedding, head
from lssvwm_gym.models.config import FEATURES, WorldModelConfig
from lssvwm_gym.models.symlog import two_hot_loss


class InventoryHead(nn.Module):
    """Predicts by how much each number changed with a committed frame, as logits of its changes."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        whole = tuple(float(change) for change in range(-config.max_inventory_change, config.max_inventory_change + 1))
        changes = config.inventory_changes or (whole,) * config.inventory_size
        self.is_drawn, most = bool(config.inventory_changes), max(map(len, changes))
        table = torch.tensor([[*values, *[torch.inf] * (most - len(values))] for values in changes])
        self.changes = nn.Buffer(table, persistent=False)  # (V, K), those of a number in order; infinite where it has fewer than K
        bounds = config.inventory_range or ((0.0, torch.inf),) * config.inventory_size
        self.range = nn.Buffer(torch.tensor(bounds).T.contiguous(), persistent=False)  # (2, V) the least and the most of each number
        self.action = ActionEmbedding(config, FEATURES)
        self.before = InventoryEmbedding(config, FEATURES)
        self.network = head(3 * FEATURES, table.numel())

    def forward(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """features (..., FEATURES) of a frame, the numbers before it (..., V), the action that led to it; logits (..., V, K)."""
        logits: Tensor = self.network(torch.cat([features, self.before(before), self.action(action)], -1))
        logits = logits.unflatten(-1, self.changes.shape)
        return logits.masked_fill(self.changes.isinf(), -torch.inf) if self.is_drawn else logits

    def after(self, features: Tensor, before: Tensor, action: Tensor, chance: Tensor | None = None) -> Tensor:
        """The numbers (..., V) after the likeliest changes; with `chance` (..., V), uniform from 0 to 1, after those that it draws."""
        logits = self(features, before, action)
        if chance is None:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            chosen = (logits.softmax(-1).cumsum(-1) <= chance.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        change = self.changes.expand(logits.shape).gather(-1, chosen).squeeze(-1)
        return (before + change.nan_to_num(posinf=0)).clamp(self.range[0], self.range[1])

    def loss(self, features: Tensor, before: Tensor, action: Tensor, after: Tensor, weight: Tensor) -> Tensor:
        """Cross entropy of every number's change, a weighted mean over frames (B, T) of a sum over the numbers: few change at once."""
        logits, change = self(features, before, action), after - before
        changes = [row[row.isfinite()] for row in self.changes]
        losses = [two_hot_loss(logits[..., n, : len(values)], change[..., n], values) for n, values in enumerate(changes)]
        return (torch.stack(losses).sum(0) * weight).sum() / weight.sum().clamp(min=1)
