"""The optimiser of a training run as named tensors, to be stored beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lssvwm_gym.io.tensors import TensorFileError


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as named tensors: `<parameter number>.<moment>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, moments in state.items() for name, value in moments.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str | Path = "checkpoint") -> None:
    """Take over moments. Raises `TensorFileError` where they are not those of this optimiser's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters) or not name:
            raise TensorFileError(f"{source}: this optimiser has no {key}")
        if value.ndim and value.shape != parameters[int(number)].shape:
            raise TensorFileError(f"{source}: {key} is {tuple(value.shape)}, not {tuple(parameters[int(number)].shape)}")
        if not value.isfinite().all():
            raise TensorFileError(f"{source}: {key} has numbers that are not finite")
    kinds = {
        frozenset((name.partition(".")[2], value.ndim == 0) for name, value in tensors.items() if name.partition(".")[0] == number)
        for number in {name.partition(".")[0] for name in tensors}
    }
    if len(kinds) > 1:
        raise TensorFileError(f"{source}: not every parameter of this optimiser has the same moments")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
