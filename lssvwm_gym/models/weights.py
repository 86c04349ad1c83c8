"""A folder of weights: everything a dream needs, as safetensors and JSON.

config.json         sizes of both models, and where they come from
model.safetensors   float16 weights of autoencoder and world model
starts.safetensors  real openings (short) and walks (long), as latents
README.md           the model card
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lssvwm_gym.data.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True)
class Starts:
    """Real pasts for a dream to begin with. Entry t speaks of frame t; the pose is in world units."""

    latent: Tensor  # (K, T, N, C) float16
    action: Tensor  # (K, T) int64
    pose: Tensor  # (K, T, 4 or 6) float32
    vector: Tensor  # (K, T, V) float32, counts that go with a frame

    def __len__(self) -> int:
        return len(self.latent)


@dataclass(frozen=True)
class Weights:
    """Both models and the real pasts they can begin with."""

    autoencoder: Autoencoder
    world_model: WorldModel
    openings: Starts  # short ones, many
    walks: Starts  # long ones, a few
    info: dict[str, Any]  # provenance, as in config.json


def save_weights(folder: Path, weights: Weights) -> None:
    """Write a folder of weights; `load_weights` reads it back exactly, but for rounding to float16."""
    models: dict[str, nn.Module] = {"autoencoder": weights.autoencoder, "world_model": weights.world_model}
    tensors = {k: v for name, model in models.items() for k, v in prefixed(name, _halved(model)).items()}
    save_tensors(folder / "model.safetensors", tensors, {})
    starts = {"openings": weights.openings, "walks": weights.walks}
    save_tensors(folder / "starts.safetensors", {k: v for name, part in starts.items() for k, v in prefixed(name, vars(part)).items()}, {})
    config = {
        "autoencoder": asdict(weights.autoencoder.config),
        "world_model": asdict(weights.world_model.config),
        "info": weights.info,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@functools.lru_cache(maxsize=4)
def load_weights(folder: Path, device: str = "cpu") -> Weights:
    """Read a folder of weights, once a process. Raises `TensorFileError` if anything is missing, foreign or broken."""
    config = _read_config(folder / "config.json")
    try:
        autoencoder_config = AutoencoderConfig(**{**config["autoencoder"], "widths": tuple(config["autoencoder"]["widths"])})
        world_config = WorldModelConfig.from_json(config["world_model"])
    except (KeyError, TypeError, ValueError) as error:
        raise TensorFileError(f"{folder / 'config.json'}: not a configuration of this version ({error})") from None
    tensors, _ = load_tensors(folder / "model.safetensors")
    autoencoder = _filled(Autoencoder(autoencoder_config), "autoencoder", tensors, folder).to(device, memory_format=torch.channels_last)
    world_model = _filled(WorldModel(world_config), "world_model", tensors, folder).to(device)
    starts, _ = load_tensors(folder / "starts.safetensors")
    openings, walks = (_starts(under(name, starts), folder, device) for name in ("openings", "walks"))
    return Weights(autoencoder, world_model, openings, walks, config.get("info", {}))


def _halved(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file; a folder of weights is written by `lssvwm-gym ship`") from None
    except (OSError, ValueError) as error:
        raise TensorFileError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise TensorFileError(f"{path}: not a JSON object")
    return config


def _filled(model: nn.Module, name: str, tensors: dict[str, Tensor], folder: Path) -> Any:
    load_strictly(model, under(name, tensors), folder / "model.safetensors")
    return model.eval().requires_grad_(False)


def _starts(tensors: dict[str, Tensor], folder: Path, device: str) -> Starts:
    try:
        tensors = {"vector": tensors["latent"].new_zeros(*tensors["latent"].shape[:2], 0).float(), **tensors}
        return Starts(**{name: tensor.to(device) for name, tensor in tensors.items()})
    except (KeyError, TypeError) as error:
        raise TensorFileError(f"{folder / 'starts.safetensors'}: not a bank of starts ({error})") from None
