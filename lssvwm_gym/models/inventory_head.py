"""What a committed frame changes in the inventory, in worlds that count things.

The head classifies the change of each count, so that one frame can be certain to add three planks and take one log. Counts are only
ever those before the frame plus the likeliest changes, whether the frame was given or dreamed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding, InventoryEmbedding, head
from lssvwm_gym.models.config import FEATURES, WorldModelConfig


class InventoryHead(nn.Module):
    """Predicts by how much each count changed with a committed frame: logits of the changes -K .. K."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.size, self.most = config.inventory_size, config.max_inventory_change
        self.action = ActionEmbedding(config, FEATURES)
        self.before = InventoryEmbedding(config.inventory_size, FEATURES)
        self.network = head(3 * FEATURES, self.size * (2 * self.most + 1))

    def forward(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """features (..., FEATURES) of a frame, the counts before it (..., V), the action that led to it; logits (..., V, 2K + 1)."""
        logits: Tensor = self.network(torch.cat([features, self.before(before), self.action(action)], -1))
        return logits.unflatten(-1, (self.size, -1))

    def after(self, features: Tensor, before: Tensor, action: Tensor) -> Tensor:
        """The counts (..., V) after the likeliest changes, none below 0."""
        return (before + self(features, before, action).argmax(-1) - self.most).clamp(min=0)

    def loss(self, features: Tensor, before: Tensor, action: Tensor, after: Tensor, weight: Tensor) -> Tensor:
        """Cross entropy of every count's change, a weighted mean over frames (B, T) of a sum over the counts: few change at once."""
        change = (after - before).long() + self.most
        logits = self(features, before, action)
        loss = F.cross_entropy(logits.flatten(0, 2), change.clamp(0, 2 * self.most).flatten(), reduction="none")
        return (loss.view(change.shape).sum(-1) * weight).sum() / weight.sum().clamp(min=1)
