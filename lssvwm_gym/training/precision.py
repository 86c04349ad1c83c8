"""Which arithmetic a training step uses."""

from __future__ import annotations

import torch

from lssvwm_gym.models.inference.prepacked import multiplies_bfloat16


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
