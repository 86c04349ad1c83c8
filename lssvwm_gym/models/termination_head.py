"""Whether a step ends the episode: told from the frames before it, the action, and the numbers that it leads to, such as health.

It can't be told from the step's own frame: many games show nothing, or what was there before, once they are over, so that a model would
learn to end with such a picture, which its dreams never show.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding, InventoryEmbedding, head
from lssvwm_gym.models.config import FEATURES, WorldModelConfig


class TerminationHead(nn.Module):
    """The logit that a step ends the episode."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.action = ActionEmbedding(config, FEATURES)
        self.inventory = InventoryEmbedding(config, FEATURES) if config.inventory_size else None
        self.network = head((2 + bool(config.inventory_size)) * FEATURES, 1)

    def forward(self, features: Tensor, inventory: Tensor, action: Tensor) -> Tensor:
        """features (..., FEATURES) of the frame before the step, the numbers (..., V) after it, and its action; logits (...)."""
        beside = [] if self.inventory is None else [self.inventory(inventory)]
        return self.network(torch.cat([features, self.action(action), *beside], -1)).squeeze(-1)

    def begin_with(self, others: float) -> None:
        """Expect ends as often as there are: each beside so many frames that end nothing."""
        bias = self.network[-1].bias
        assert isinstance(bias, Tensor)
        bias.data.fill_(-math.log(others))

    def loss(self, logit: Tensor, terminated: Tensor, weight: Tensor, end_weight: float) -> Tensor:
        """Cross entropy of the ends of episodes, which are rare, with more weight on them: else hardly a gradient would tell of them.

        So weighed by w, p of ends look like w p / (w p + 1 - p), a logit that is log w too high. That is added here and nowhere else, so
        that the head's own logit remains that of p: dreams end as often as episodes do.
        """
        logit, pos_weight = logit + math.log(end_weight), logit.new_tensor(end_weight)
        loss = F.binary_cross_entropy_with_logits(logit, terminated.to(logit.dtype), reduction="none", pos_weight=pos_weight)
        return (loss * weight).sum() / weight.sum().clamp(min=1)
