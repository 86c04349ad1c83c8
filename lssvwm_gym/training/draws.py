"""Random numbers that do not depend on how many processes share the rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Draws for a share of the rows: made for all rows, of which the share is kept."""

    generator: torch.Generator  # in the same state in all processes
    number: int = 0  # which of the shares
    shares: int = 1  # all of the same number of rows

    def uniform(self, *shape: int, axis: int = 0) -> Tensor:
        """Numbers from 0 to 1, of a shape whose `axis` is this share's rows."""
        return self.mine(torch.rand(self._whole(shape, axis), generator=self.generator, device=self.generator.device), axis)

    def normal(self, *shape: int, axis: int = 0) -> Tensor:
        """Numbers from a normal distribution, of a shape whose `axis` is this share's rows."""
        return self.mine(torch.randn(self._whole(shape, axis), generator=self.generator, device=self.generator.device), axis)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high` - 1, the same for all rows."""
        return int(torch.randint(low, high, (), generator=self.generator, device=self.generator.device))

    def mine(self, drawn: Tensor, axis: int = 0) -> Tensor:
        """This share of what was drawn for all rows."""
        return drawn.chunk(self.shares, axis)[self.number]

    def _whole(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return tuple(size * self.shares if number == axis else size for number, size in enumerate(shape))
