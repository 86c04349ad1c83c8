"""Which arithmetic a training step uses."""

from __future__ import annotations

import torch

from lssvwm_gym.models.packing import multiplies_bfloat16


def mixed_precision(name: str, device: str = "cpu") -> torch.autocast:
    """A context in which matrix products run in bfloat16, or one that changes nothing.

    `auto` takes bfloat16 where the processor multiplies in it (AVX-512 BF16, AMX, or a GPU of Ampere's generation and later) and float32
    elsewhere, where it would be emulated some fifty times slower. Raises `ValueError` for other names than auto, bfloat16, float32.
    """
    if name not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"precision must be auto, bfloat16 or float32, not {name!r}")
    wanted = multiplies_bfloat16(device) if name == "auto" else name == "bfloat16"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)
