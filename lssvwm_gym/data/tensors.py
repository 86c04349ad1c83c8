"""Tensors on disk: a safetensors file with a JSON header, written whole or not at all.

Nothing here is pickled, so a file from a stranger can do no more than be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lssvwm_gym.data.whole_file import renamed_when_whole


class TensorFileError(ValueError):
    """A file that can't be read as tensors, or doesn't hold those of this model."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to `path` through a temporary name, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(path) as unfinished:
        unfinished.write_bytes(save({k: v.detach().contiguous().clone() for k, v in tensors.items()}, {"header": json.dumps(header)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `TensorFileError` for a file that is missing, cut short or foreign."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            # copied into memory that torch has aligned: products of tensors that lie elsewhere differ in their last bit
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise TensorFileError(f"{path}: no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TensorFileError(f"{path}: not a safetensors file written by lssvwm_gym ({error})") from None


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Load weights whose names and shapes are exactly the module's. Raises `TensorFileError` naming the difference."""
    expected = module.state_dict()
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        raise TensorFileError(f"{source}: missing {sorted(missing)[:4]}, unknown {sorted(unknown)[:4]}; is this another model's file?")
    wrong = [f"{k} {tuple(tensors[k].shape)}, not {tuple(v.shape)}" for k, v in expected.items() if tensors[k].shape != v.shape]
    if wrong:
        raise TensorFileError(f"{source}: wrong shape of {'; '.join(wrong[:4])}")
    module.load_state_dict(dict(tensors))
