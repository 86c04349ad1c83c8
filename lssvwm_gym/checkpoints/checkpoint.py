"""A folder of weights: everything a dream needs, as safetensors and JSON.

config.json         sizes of both models, and where they come from; in folders whose files have no checksum in them, that of each
model.safetensors   float16 weights of autoencoder and world model, or the larger ones in 8 bits
contexts.safetensors  what dreams continue: real frames as latents, many short contexts and a few long ones
README.md           the model card
"""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lssvwm_gym.checkpoints.build import built_autoencoder, built_world_model
from lssvwm_gym.io import legacy
from lssvwm_gym.io.atomic import replaced_together
from lssvwm_gym.io.json_config import bounded, in_short, parsed
from lssvwm_gym.io.tensors import TensorFileError, independent, into_eight_bits, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.inference.backend import PLAIN, Backend, Precision, on_backend
from lssvwm_gym.models.inference.decode import PrepackedAutoencoder, PrepackedWorldModel
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.world_model import WorldModel

CONTEXTS = "contexts.safetensors"
FILES = ("config.json", "model.safetensors", CONTEXTS, legacy.CONTEXTS_FILE)
LARGEST_CONFIG = 1_000_000  # bytes


@dataclass(frozen=True)
class Weights:
    """Both models and the real contexts that dreams can continue: latents in float16, in files in 8 bits, poses in world units."""

    autoencoder: Autoencoder
    world_model: WorldModel
    short_contexts: Segment  # many
    long_contexts: Segment  # a few
    info: dict[str, Any]  # provenance, as in config.json

    def __getattr__(self, name: str) -> Any:
        return legacy.attribute(self, name, legacy.WEIGHTS)


def save_weights(folder: Path, weights: Weights) -> None:
    """Write a folder of weights; `load_weights` reads it back exactly, but for rounding: weights to float16, contexts to 8 bits.

    If that fails, what was in the folder stays. Its files are replaced together: a folder with a config.json is of one model.
    """
    models: dict[str, nn.Module] = {"autoencoder": weights.autoencoder, "world_model": weights.world_model}
    tensors = {k: v for name, model in models.items() for k, v in prefixed(name, model.state_dict()).items()}
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    contexts = {"short": weights.short_contexts, "long": weights.long_contexts}
    config = {"autoencoder": asdict(weights.autoencoder.config), "world_model": asdict(weights.world_model.config), "info": weights.info}
    folder = Path(folder).expanduser()
    with replaced_together(folder, last="config.json") as unfinished:
        save_tensors(unfinished / "model.safetensors", tensors, {})
        pasts = {k: v for name, part in contexts.items() for k, v in prefixed(name, part.parts()).items()}
        save_tensors(unfinished / CONTEXTS, into_eight_bits(pasts, [f"{name}.latent" for name in contexts]), {})
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / legacy.CONTEXTS_FILE).unlink(missing_ok=True)


def load_weights(folder: Path, device: str = "cpu") -> Weights:
    """Read a folder of weights, once a process and device: all who ask share the models, which nobody may change.

    Read again where files in it have been written since. Raises `TensorFileError` if anything is missing, foreign or broken.
    """
    return _shared(*_identity(folder), device)


def _identity(folder: Path) -> tuple[Path, tuple[tuple[int, int, int] | None, ...]]:
    """Where a folder really is, and what tells its files from those that are written there later."""
    folder = Path(folder).expanduser().resolve()
    stats = [path.stat() if path.exists() else None for path in (folder / name for name in FILES)]
    return folder, tuple(stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


@functools.lru_cache(maxsize=4)
def _shared(folder: Path, _files: object, device: str) -> Weights:
    return read_weights(folder, device)


@independent
def read_weights(folder: Path, device: str = "cpu") -> Weights:
    """Read a folder of weights, for the caller alone. Raises as `load_weights` does."""
    folder = Path(folder).expanduser()
    config = _read_config(folder / "config.json")
    _check_files(folder, config.get("sha256", {}))
    file, source = folder / "model.safetensors", folder / "config.json"
    tensors, _ = load_tensors(file)
    autoencoder = built_autoencoder(config.get("autoencoder"), under("autoencoder", tensors), file, source)
    world_model = built_world_model(config.get("world_model"), under("world_model", tensors), file, source)
    before = (folder / legacy.CONTEXTS_FILE).exists() and not (folder / CONTEXTS).exists()
    path = folder / (legacy.CONTEXTS_FILE if before else CONTEXTS)
    contexts = legacy.contexts(load_tensors(path)[0])
    short, long = (_contexts(under(name, contexts), world_model, f"{name} contexts", path).to(device) for name in ("short", "long"))
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Weights(autoencoder, world_model.to(device), short, long, config.get("info", {}))


def load_autoencoder(path: Path) -> Autoencoder:
    """Load an autoencoder that `train_autoencoder` finished, or that of a folder of weights."""
    if path.is_dir():
        return load_weights(path).autoencoder
    tensors, header = load_tensors(path)
    model = built_autoencoder(header.get("config"), tensors, path, path)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parsed(bounded(path, LARGEST_CONFIG))
    except FileNotFoundError:
        missing = f"{path}: no such file" if path.parent.is_dir() else f"{path.parent}: no such folder"
        raise TensorFileError(f"{missing}; a folder of weights is written by `lssvwm-gym package`") from None
    except (OSError, ValueError) as error:
        raise TensorFileError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("info", {}), dict):
        raise TensorFileError(f"{path}: not a JSON object, or its info is none")
    return config


def _check_files(folder: Path, sha256: Any) -> None:
    """Compare files with the hashes that config.json has of them: those written before tensors had checksums have them there."""
    if not isinstance(sha256, dict) or sha256.keys() - {"model.safetensors", legacy.CONTEXTS_FILE}:
        raise TensorFileError(f"{folder / 'config.json'}: its sha256 is not that of model.safetensors and {legacy.CONTEXTS_FILE}")
    for path, expected in ((folder / name, expected) for name, expected in sha256.items()):
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise TensorFileError(f"{path}: its contents have changed since config.json was written")


def _contexts(tensors: dict[str, Tensor], model: WorldModel, name: str, path: Path) -> Segment:
    if "latent" in tensors and "inventory" not in tensors:  # older weights, of worlds without counts
        tensors = {**tensors, "inventory": tensors["latent"].new_zeros(*tensors["latent"].shape[:2], 0).float()}
    config = model.config
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {  # shapes behind (B, T)
        "latent": ((config.tokens, config.latent_channels), torch.float16),  # rounded once more if it comes from 8 bits
        "action": ((config.action_size,), torch.float32) if config.action_size else ((), torch.int64),
        "pose": ((config.pose_size,), torch.float32),
        "inventory": ((config.inventory_size,), torch.float32),
    }
    if "inventory_peak" in tensors:  # not in older weights, of which nobody knows what was reached before a context
        expected["inventory_peak"] = expected["inventory"]
    if "latent" in tensors and tensors["latent"].dtype == torch.float32:
        tensors = tensors | {"latent": tensors["latent"].half()}
    if tensors.keys() != expected.keys():
        raise TensorFileError(f"{path}: {name} are {in_short(sorted(tensors))}, not {sorted(expected)}")
    first = tensors["action"].shape[:2]
    wrong = [f"{k} {tuple(tensors[k].shape)}" for k, (shape, _) in expected.items() if tensors[k].shape != (*first, *shape)]
    if len(first) != 2 or wrong or (first[0] and not first[1]):
        raise TensorFileError(f"{path}: {name} don't fit this model or each other: {in_short(', '.join(wrong) or tuple(first))}")
    types = {k: kind for k, (_, kind) in expected.items()}
    if any(tensors[k].dtype != kind for k, kind in types.items()):
        raise TensorFileError(f"{path}: {name} are of other types than {types}")
    action, inventory, counted = tensors["action"], tensors["inventory"], not config.inventory_changes
    if not tensors["latent"].isfinite().all() or not inventory.isfinite().all() or (counted and (inventory < 0).any()):
        raise TensorFileError(f"{path}: {name} with latents or counts that are not finite, or counts below 0")
    if config.actions and not ((action >= 0) & (action <= config.actions)).all():
        raise TensorFileError(f"{path}: {name} with actions other than 0..{config.actions}")
    if action.is_floating_point() and action.isinf().any():
        raise TensorFileError(f"{path}: {name} with actions that are not finite")
    return Segment(**tensors)


def load_prepacked(folder: Path, device: str, precision: Precision, backend: Backend = PLAIN) -> Weights:
    """`load_weights` on a backend, on a CPU with layers and decoder laid out for dreaming in that precision; once a process."""
    return _prepacked(*_identity(folder), device, precision, backend)


@functools.lru_cache(maxsize=8)
def _prepacked(folder: Path, files: object, device: str, precision: Precision, backend: Backend) -> Weights:
    weights = _shared(folder, files, device)
    if (world_model := on_backend(weights.world_model, backend)) is not weights.world_model:  # it goes through its own layers
        return replace(weights, world_model=world_model)
    return prepack(weights, precision) if device == "cpu" else weights


@independent
def prepack(weights: Weights, precision: Precision) -> Weights:
    """The same weights, shared, with layers and decoder laid out as they are now."""
    world_model = PrepackedWorldModel.of(weights.world_model, precision.model, precision.pictures)
    return replace(weights, world_model=world_model, autoencoder=PrepackedAutoencoder.of(weights.autoencoder, precision.pictures))
