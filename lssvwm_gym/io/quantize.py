"""Weights in 8 bits: whole numbers of -127..127 and one scale an output channel, symmetric; what multiplies stays floating-point.

    w[o, ...] ≈ q[o, ...] * scale[o]        scale[o] = max |w[o, ...]| / 127

On disk `name` is int8 and `name_scale` float32 (out,). That takes a half of the disk, and of the way through a network, that float16
does. Read back they are float32 again, so that a model takes the same memory and the same time as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

LARGEST = 127
SCALE = "_scale"  # behind the name of the tensor that it belongs to


def in_eight_bits(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The same tensors, of which those of `names`, (out, ...) floating-point, are int8 with a scale beside them."""
    stored = dict(tensors)
    for name in names:
        weight = tensors[name].float()
        largest = weight.abs().flatten(1).amax(1)
        scale = largest / LARGEST
        scale = torch.where(scale > 0, scale, 1.0)
        stored[name] = (weight / _along(scale, weight)).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def out_of_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: int8 tensors and their scales become float32, all others stay as they are.

    Raises:
        ValueError: an int8 tensor without a scale a channel, or scales that are not finite and above 0.
    """
    whole = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    scales = {name: tensors[name + SCALE] for name in whole if name + SCALE in tensors}
    for name, number in whole.items():
        scale = scales.get(name)
        if scale is None or number.ndim < 2 or scale.dtype != torch.float32 or scale.shape != number.shape[:1]:
            raise ValueError(f"{name} is in 8 bits, but beside it is no {name + SCALE} of one float32 a channel")
        if not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"{name + SCALE} has scales that are not finite and above 0")
    plain = {name: tensor for name, tensor in tensors.items() if name.removesuffix(SCALE) not in scales or not name.endswith(SCALE)}
    return plain | {name: number.float() * _along(scales[name], number) for name, number in whole.items()}


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale (out,) that multiplies weights (out, ...)."""
    return scale.view(-1, *[1] * (weight.ndim - 1))
