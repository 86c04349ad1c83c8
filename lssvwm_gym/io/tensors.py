"""Tensors on disk: a safetensors file with a JSON header and a checksum, written whole or not at all.

Nothing here is pickled, so a file from a stranger can do no more than be wrong; and what is wrong is refused.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lssvwm_gym.io.atomic import renamed_when_whole
from lssvwm_gym.io.json_config import in_short, parsed

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=nn.Module)

# what is ever written; others can't be compared, moved or checked on every device
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool}

SCALE = "_scale"  # behind the name of the tensor in 8 bits that it belongs to


class TensorFileError(ValueError):
    """A file that can't be read as tensors, or doesn't hold those of this model."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to `path` through a temporary name, so that a reader never sees half a file."""
    path = Path(path).expanduser()
    plain, text = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, json.dumps(header)
    head, content = _with_checksum(save(plain, {"header": text}), checksum(plain, text))
    with renamed_when_whole(path) as unfinished, open(unfinished, "wb") as file:
        file.write(head)
        file.write(content)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, exactly: a changed bit is noticed, but in files from before there were checksums.

    What was stored in 8 bits is float32 again. Raises `TensorFileError` for a file that is missing, cut short, changed or foreign.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise TensorFileError(f"{path}: no such file")
    try:
        return _loaded(str(path))
    except Exception as error:  # whatever a parser of foreign bytes trips over: the file is not one of ours
        raise TensorFileError(f"{path}: not a safetensors file written by lssvwm_gym ({in_short(error)})") from None


def checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    """A hash of names, types, shapes and contents of tensors on the CPU, and of the header."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_checksum(whole: bytes, sha256: str) -> tuple[bytes, memoryview]:
    """A safetensors file with one more entry, as its head and its contents. Left to safetensors, two entries come in any order."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"]["sha256"] = sha256
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # contents begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text, memoryview(whole)[end:]


def _loaded(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # copied into memory that torch has aligned: products of tensors that lie elsewhere differ in their last bit
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    header = parsed(metadata["header"])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    if strange := {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in DTYPES}:
        raise ValueError(f"tensors of a type that is never written: {dict(list(strange.items())[:4])}")
    if metadata.get("sha256", expected := checksum(tensors, metadata["header"])) != expected:
        raise ValueError("its contents have changed since it was written")
    return out_of_eight_bits(tensors), header


def into_eight_bits(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The same tensors, of which those of `names`, (out, ...) floating-point, are int8 with a scale beside them."""
    stored = dict(tensors)
    for name in names:
        weight = tensors[name].float()
        scale = weight.abs().flatten(1).amax(1) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        stored[name] = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(-127, 127).to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def out_of_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which int8 ones and their scales beside them, one an output channel, become float32, all others stay as they are.

    Raises `ValueError` for an int8 tensor without a scale a channel, and for scales that are not finite and above 0.
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
    return plain | {name: number.float() * scales[name].view(-1, *[1] * (number.ndim - 1)) for name, number in whole.items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def load_part(path: str | Path, kind: str, script: str, *names: str) -> dict[str, Tensor]:
    """One part of a world model, a file of a kind that a script wrote. Raises `TensorFileError` for one of another, or without `names`."""
    tensors, header = load_tensors(path)
    if header.get("kind") != kind or not tensors.keys() >= set(names):
        raise TensorFileError(f"{path}: no whole {kind}; `python -m experiments.{script}` writes one")
    return tensors


def load_strictly(module: M, tensors: Mapping[str, Tensor], source: str | Path) -> M:
    """The module, with finite weights of just its names, shapes and kinds of number. Raises `TensorFileError` that names the difference."""
    expected = module.state_dict()
    check_names_and_shapes(expected, tensors, source)
    floats = {k for k, v in expected.items() if tensors[k].is_floating_point() and v.is_floating_point()}  # of any precision
    other = [k for k, v in expected.items() if tensors[k].dtype != v.dtype and k not in floats]
    if kinds := [f"{k} {tensors[k].dtype}, not {expected[k].dtype}" for k in other]:
        raise TensorFileError(f"{source}: wrong type of {'; '.join(kinds[:4])}")
    fitting = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    if not_finite := [name for name, tensor in fitting.items() if not tensor.isfinite().all()]:
        raise TensorFileError(f"{source}: numbers that are not finite in {', '.join(not_finite[:4])}")
    module.load_state_dict(fitting)
    return module


def check_names_and_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises `TensorFileError` where tensors have other names or shapes than expected."""
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        names = f"missing {in_short(sorted(missing)[:4])}, unknown {in_short(sorted(unknown)[:4])}"
        raise TensorFileError(f"{source}: {names}; is this another model's file?")
    if wrong := [f"{k} {tuple(tensors[k].shape)}, not {tuple(v.shape)}" for k, v in expected.items() if tensors[k].shape != v.shape]:
        raise TensorFileError(f"{source}: wrong shape of {in_short('; '.join(wrong[:4]))}")


def check_header(path: Path, header: Mapping[str, Any], **expected: Any) -> None:
    """Raises `TensorFileError` where a checkpoint was made with other settings than expected."""
    for name, mine in json.loads(json.dumps(expected)).items():
        if header.get(name) != mine:
            raise TensorFileError(f"{path} was made with {name} {header.get(name)!s:.500}, not {mine}; choose another --out")


DRAWN = {torch.rand, torch.randn, torch.linspace, torch.zeros, torch.ones, torch.empty, torch.eye}  # of the default type, if of none


class _Float32(TorchFunctionMode):
    """While it is active, what is of the default type is float32, whatever the process has set; only this thread is concerned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWN and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or result.dtype != torch.float64 or func in (torch.from_numpy, Tensor.double):
            return result
        given = tree_leaves((args, kwargs))
        meant = any(value is torch.float64 or (isinstance(value, Tensor) and value.dtype == torch.float64) for value in given)
        return result if meant else result.float()


def independent(function: F) -> F:
    """The same function, whichever default type and device of tensors the process has set."""

    @functools.wraps(function)
    def same(*args: Any, **kwargs: Any) -> Any:
        if torch.get_default_dtype() is torch.float32 and torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"), _Float32():
            return function(*args, **kwargs)

    return same  # type: ignore[return-value]
