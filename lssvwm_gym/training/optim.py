"""The optimiser: which weights it moves, its learning rate, precision and moving average, and how it is stored."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lssvwm_gym.io.tensors import TensorFileError, load_strictly, prefixed, under
from lssvwm_gym.models.inference.prepacked import multiplies_bfloat16


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


def make_optimizer(model: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers and AdamW for everything else, or AdamW for all.

    Muon's updates are scaled to match AdamW's (`match_rms_adamw`), so that one learning rate serves both.
    Decay rates, biases, gains and embeddings are not decayed towards zero. The last optimiser is that of the odometry and the compass head.
    """
    matrices, decayed, others, odometry = [], [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith(("odometry_head.", "compass_head.")):
            odometry.append(parameter)
        elif muon and parameter.ndim == 2 and name.startswith("layers.") and "modulation" not in name:
            matrices.append(parameter)
        elif parameter.ndim == 2 and "position" not in name and "discrete" not in name:
            decayed.append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return [*optimizers, torch.optim.AdamW(odometry, weight_decay=0.1, fused=True)]


def product_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """What matrix products of a training step run in.

    `auto` takes bfloat16 where the processor multiplies in it (AVX-512 BF16, AMX, or a GPU of Ampere's generation and later) and float32
    elsewhere, where it would be emulated some fifty times slower. Raises `ValueError` for other names than auto, bfloat16, float32.
    """
    if name not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"precision must be auto, bfloat16 or float32, not {name!r}")
    half = multiplies_bfloat16(device) if name == "auto" else name == "bfloat16"
    return torch.bfloat16 if half else torch.float32


def mixed_precision(name: str, device: str = "cpu") -> torch.autocast:
    """A context in which matrix products run in `product_dtype`; one that changes nothing where that is float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=product_dtype(name, device) is torch.bfloat16)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as named tensors: `<parameter number>.<moment>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, moments in state.items() for name, value in moments.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str | Path = "checkpoint") -> None:
    """Take over moments. Raises `TensorFileError` where they are not those of this optimiser's parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters) or not name:
            raise TensorFileError(f"{source}: this optimiser has no {key}")
        if value.ndim and value.shape != parameters[int(number)].shape:
            raise TensorFileError(f"{source}: {key} is {tuple(value.shape)}, not {tuple(parameters[int(number)].shape)}")
        if not value.isfinite().all():
            raise TensorFileError(f"{source}: {key} has numbers that are not finite")
        state.setdefault(int(number), {})[name] = value
    if len({frozenset((name, value.ndim == 0) for name, value in moments.items()) for moments in state.values()}) > 1:
        raise TensorFileError(f"{source}: not every parameter of this optimiser has the same moments")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def training_tensors(model: nn.Module, average: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What a training step changes, for a checkpoint: `model.*`, `average.*`, and moments under the name of each optimiser."""
    tensors = prefixed("model", model.state_dict()) | prefixed("average", average.state_dict())
    for name, optimizer in optimizers.items():
        tensors |= prefixed(name, optimizer_tensors(optimizer))
    return tensors


def load_training_tensors(
    model: nn.Module, average: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Take over what `training_tensors` gave. Raises `TensorFileError` where it is another model's."""
    load_strictly(model, under("model", tensors), source)
    load_strictly(average, under("average", tensors), source)
    for name, optimizer in optimizers.items():
        load_optimizer_tensors(optimizer, under(name, tensors), source)
