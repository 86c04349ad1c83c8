"""Which arithmetic a dream uses: chosen here, once, for a device and a wish.

On a CPU a dream goes frame by frame through weights that are laid out for it (`stepping`, `packing`). The model's own
arithmetic stays float32 unless bfloat16 is asked for, so that a dream is the same on every processor but for rounding;
pictures, from which nothing follows, are decoded in bfloat16 wherever the processor multiplies in it.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lssvwm_gym.models.backends import PLAIN, Backend, on_backend
from lssvwm_gym.models.packing import PackedDecoder, multiplies_bfloat16
from lssvwm_gym.models.stepping import SteppedLayers
from lssvwm_gym.models.weights import Weights, load_weights
from lssvwm_gym.models.world_model import Layer

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Arithmetic:
    """Types of the products with weights; norms, attention, scans, memories and all states are float32 in any case."""

    model: torch.dtype = torch.float32
    pictures: torch.dtype = torch.float32

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.model, self.pictures)]
        return names[0] if names[0] == names[1] else f"{names[0]}, pictures {names[1]}"


FLOAT32 = Arithmetic()


def chosen_arithmetic(dtype: str, device: str) -> Arithmetic:
    """For `auto`, `float32` or `bfloat16` and a torch device. Raises `ValueError` for other names, and for bfloat16 but on a CPU."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device != "cpu":
        if dtype == "bfloat16":
            raise ValueError(f"dtype='bfloat16' is for the CPU; on {device} a dream is float32")
        return FLOAT32
    if dtype == "bfloat16":
        return Arithmetic(torch.bfloat16, torch.bfloat16)
    pictures = torch.bfloat16 if dtype == "auto" and multiplies_bfloat16("cpu") else torch.float32
    return Arithmetic(pictures=pictures)


@functools.lru_cache(maxsize=8)
def load_arranged(folder: Path, device: str, arithmetic: Arithmetic, backend: Backend = PLAIN) -> Weights:
    """`load_weights` on a backend, on a CPU with layers and decoder laid out for dreaming in that arithmetic; once a process."""
    weights = load_weights(folder, device)
    if (world_model := on_backend(weights.world_model, backend)) is not weights.world_model:  # it goes through its own layers
        return replace(weights, world_model=world_model)
    return arranged(weights, arithmetic) if device == "cpu" else weights


def arranged(weights: Weights, arithmetic: Arithmetic) -> Weights:
    """The same weights, shared, with layers and decoder laid out as they are now."""
    world_model, autoencoder = copy.copy(weights.world_model), copy.copy(weights.autoencoder)
    world_model.stepped = SteppedLayers([layer for layer in world_model.layers if isinstance(layer, Layer)], arithmetic.model)
    autoencoder.packed = PackedDecoder(autoencoder.decoder, arithmetic.pictures, autoencoder.config.grid)
    return replace(weights, world_model=world_model, autoencoder=autoencoder)
