"""What `agents.ppo` gathers in its environments, and what it learns from: tensors that stay on their device."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Rollout(NamedTuple):
    """What happened, (T, B, ...)."""

    seen: Tensor  # what was decided on, see `agents.policies.Policy.see`
    begins: Tensor  # 1 where it is an episode's first, but for the rollout's first, whose memory knows
    action: Tensor  # int64
    log_probability: Tensor  # of that action
    value: Tensor  # as estimated then
    reward: Tensor  # scaled; where an episode's time was up, with the discounted value of what would have followed
    done: Tensor  # 1 where the step ended an episode
    memory: Tensor  # (B, `Policy.memory_size`) before the first
    reward_per_step: Tensor  # () mean, not scaled


class Batch(NamedTuple):
    """What one step of the optimiser learns from, (T, B, ...), of sequences in a row where the policy has a memory, else (1, B, ...)."""

    seen: Tensor
    begins: Tensor
    action: Tensor
    log_probability: Tensor
    advantage: Tensor
    target: Tensor  # of the value
    anchor: Tensor  # (T, B, actions) log probabilities of the policy that it began with; (T, B, 0) without an anchor

    def rows(self, rows: Tensor) -> "Batch":
        return Batch(*(part[:, rows] for part in self))

    def single_steps(self) -> "Batch":
        """Every step a row of its own, (1, T * B, ...)."""
        return Batch(*(part.flatten(0, 1)[None] for part in self))


class EpisodeReturns:
    """Returns of whole episodes, as the environment's rewards are; nothing here waits for the device but `take`."""

    def __init__(self, episode_steps: np.ndarray, device: torch.device) -> None:
        """`episode_steps` (B,) at the start: an episode that is not at its beginning then doesn't count."""
        self.whole = torch.from_numpy((episode_steps == 0).astype(np.float32)).to(device)
        self.earned, self.totals = torch.zeros_like(self.whole), torch.zeros(2, device=device)  # of present episodes; return and number

    def add(self, reward: Tensor, done: Tensor) -> None:
        """One step's rewards and, 1 or 0, ends, (B,) each."""
        self.earned = self.earned + reward
        self.totals = self.totals + torch.stack([(self.earned * self.whole * done).sum(), (self.whole * done).sum()])
        self.earned, self.whole = self.earned * (1 - done), torch.maximum(self.whole, done)

    def take(self) -> tuple[float, int]:
        """Sum of returns and number of the episodes that ended since the last call."""
        earned, episodes = self.totals.tolist()
        self.totals = torch.zeros_like(self.totals)
        return earned, int(episodes)
