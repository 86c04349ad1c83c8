"""Several processes that train one model together, as `accelerate launch` starts them; one alone needs no accelerate.

Every process has the same weights and an equal share of the rows. Random numbers are drawn for all rows and a process keeps
those of its own, losses are weighed by how much of the whole batch they speak of, and gradients are added up: so the
weights become the same, up to rounding, whatever the number of processes.
"""

import atexit
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import Tensor, nn

from lssvwm_gym.io.json_config import needed
from lssvwm_gym.models.inference.backend import chosen_device

PATIENCE = timedelta(hours=3)  # how long a process waits for another, which may be reading episodes or scoring


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together. All of them must call what exchanges something, in the same order."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one process that writes files, shows progress and scores."""
        return self.process_index == 0

    def share(self, count: int) -> slice:
        """Which of `count` things are this process's."""
        return slice(self.process_index * count // self.num_processes, (self.process_index + 1) * count // self.num_processes)

    def summed(self, tensor: Tensor) -> Tensor:
        if self.num_processes == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, "sum")

    def gathered(self, tensor: Tensor) -> Tensor:
        """The rows (B, ...) of all processes in their order, (num_processes * B, ...)."""
        if self.num_processes == 1:
            return tensor
        if not tensor.numel():
            return tensor.new_zeros(self.num_processes * len(tensor), *tensor.shape[1:])
        from accelerate.utils import gather

        return gather(tensor)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients, in one exchange."""
        if self.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = self.summed(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)])

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.num_processes > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def main_process_first(self) -> AbstractContextManager[None]:
        """A block that the main process has been through when the others begin it, and find what it left on disk."""
        if self.num_processes == 1:
            return nullcontext()
        from accelerate import PartialState

        return PartialState().main_process_first()

    def refuse(self, message: str) -> NoReturn:
        """Raise `ValueError` for what is wrong in all processes alike; of several, the main one says it and all end with status 1."""
        if self.num_processes == 1:
            raise ValueError(message)
        if self.is_main_process:
            print(f"lssvwm-gym: {message}", file=sys.stderr, flush=True)
        self.wait()
        raise SystemExit(1)

    def refuse_uneven(self, rows: int, what: str) -> None:
        """Refuse rows that can't be divided among the processes in equal shares; `what` says where they come from."""
        if rows % self.num_processes:
            self.refuse(f"{what} can't be divided evenly among {self.num_processes} processes: choose a multiple of {self.num_processes}")

    def agree(self, number: int, what: str) -> None:
        """Refuse to go on where processes have come to different numbers."""
        numbers = self.gathered(torch.tensor([number], device=self.device)).tolist()
        if len(set(numbers)) > 1:
            self.refuse(f"{what} differs between processes ({numbers}): they must see the same files, in folders that all machines share")


ALONE = ProcessGroup(torch.device("cpu"))


def assemble(device: str) -> ProcessGroup:
    """The group that this process was launched into, on `device`: auto, cpu, cuda.

    Each process of a machine gets a GPU of its own. Raises `ImportError` if several processes were launched without accelerate
    being installed, `ValueError` if they are all to use one and the same GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup(torch.device(chosen_device(device)))
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"of several processes each takes a GPU of its own: device must be auto, cpu or cuda, not {device!r}")
    problem = f"{os.environ['WORLD_SIZE']} processes were launched, and without accelerate each would train for itself"
    accelerate = needed("accelerate", f"{problem}: pip install accelerate, or 'lssvwm_gym[train]', or launch one process")
    state = accelerate.PartialState(cpu=chosen_device(device) == "cpu", timeout=PATIENCE)
    atexit.unregister(state.destroy_process_group)
    atexit.register(state.destroy_process_group)
    return ProcessGroup(state.device, state.process_index, state.num_processes)


@dataclass(frozen=True)
class ShardedRNG:
    """Random numbers for this process's share of the rows: drawn for all rows, of which the share is kept."""

    generator: torch.Generator  # in the same state in all processes
    process_index: int = 0  # which of the shares is kept
    num_processes: int = 1  # shares, all of the same number of rows

    def uniform(self, *shape: int, axis: int = 0) -> Tensor:
        """Numbers from 0 to 1, of a shape whose `axis` is this share's rows."""
        return self.shard(torch.rand(self._whole(shape, axis), generator=self.generator, device=self.generator.device), axis)

    def normal(self, *shape: int, axis: int = 0) -> Tensor:
        """Numbers from a normal distribution, of a shape whose `axis` is this share's rows."""
        return self.shard(torch.randn(self._whole(shape, axis), generator=self.generator, device=self.generator.device), axis)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high` - 1, the same for all rows."""
        return int(torch.randint(low, high, (), generator=self.generator, device=self.generator.device))

    def shard(self, drawn: Tensor, axis: int = 0) -> Tensor:
        """This share of what was drawn for all rows."""
        return drawn.chunk(self.num_processes, axis)[self.process_index]

    def _whole(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return tuple(size * self.num_processes if number == axis else size for number, size in enumerate(shape))
