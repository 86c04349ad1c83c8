"""Rewards of any size and sign as a distribution over bins: two-hot classification, after DreamerV3 (arXiv 2301.04104).

The bins lie evenly in symlog(x) = sign(x) log(1 + |x|), so that small and large rewards are told apart alike. A reward between two bins is
shared between them in the proportion whose mean is the reward itself, so the mean of what is predicted is the expected reward, also where
it is a matter of chance; symexp of the mean of symlogs would underestimate it. The outermost bins are those of the data, because a bin far
beyond it makes much of the least probability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 63


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def bin_values(bins: int, limit: float) -> Tensor:
    """The rewards (K,) float32 that the bins stand for, from -symexp(limit) to symexp(limit); that in the middle is 0."""
    values = symexp(torch.linspace(-limit, limit, bins))
    return torch.cat([values[: bins // 2], values.new_zeros(1), values[bins // 2 + 1 :]])


def two_hot(reward: Tensor, values: Tensor) -> Tensor:
    """The shares (..., K) of the bins in rewards (...); those beyond the outermost bins belong to them."""
    reward = reward.clamp(values[0], values[-1]).unsqueeze(-1)
    above = torch.searchsorted(values, reward).clamp(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    share = (reward - low) / (high - low)
    empty = share.new_zeros(*share.shape[:-1], len(values))
    return empty.scatter(-1, above - 1, 1 - share).scatter(-1, above, share)


def two_hot_loss(logits: Tensor, reward: Tensor, values: Tensor) -> Tensor:
    """The cross entropy (...) of logits (..., K) and rewards (...)."""
    return -(two_hot(reward, values) * F.log_softmax(logits.float(), -1)).sum(-1)


def expected_reward(logits: Tensor, values: Tensor) -> Tensor:
    """The mean (...) float64 of what logits (..., K) predict; float32 where a device knows no larger ones."""
    kind = torch.float32 if logits.device.type == "mps" else torch.float64
    return logits.to(kind).softmax(-1) @ values.to(kind)
