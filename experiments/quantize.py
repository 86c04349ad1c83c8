"""Make a folder of weights smaller, for devices with little disk or a slow network: `python -m experiments.quantize --out DIR`.

The weights of linear layers and convolutions are stored in 8 bits, all else as it was: whole numbers of -127..127 and one scale an
output channel, symmetric, w[o, ...] ≈ q[o, ...] * scale[o] with scale[o] = max |w[o, ...]| / 127. On disk `name` is int8 and `name_scale`
float32 (out,); `lssvwm_gym.io.tensors` reads it. The result is
an ordinary folder of weights. It saves disk and download alone: once loaded, weights are float32 and take the same memory and
time. A dream of them differs slightly, so states saved with the full weights are refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from lssvwm_gym.checkpoints.checkpoint import Weights, read_weights, save_weights
from lssvwm_gym.io.tensors import into_eight_bits, load_tensors, save_tensors
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.worlds import WORLDS, has_record, read_world, weights_of, write_world

CARD = "README.md"
REMARK = "*These are the weights described below, stored in 8 bits. The scores are those of the full weights.*\n\n"


@dataclass(frozen=True)
class Quantizing:
    """What to make smaller."""

    out: Path  # folder to write
    world: str = "memory-maze"
    weights: Path | None = None  # folder of weights; the world's shipped ones if not given
    bits: int = 8  # of the weights of linear layers and convolutions
    short_contexts: int | None = None  # short contexts to keep; all if not given
    long_contexts: int | None = None  # long contexts to keep, which are the larger part of the contexts; all if not given


def quantize(run: Quantizing) -> dict[str, Any]:
    """Write the folder; print and return its size and error.

    Raises:
        ValueError: other bits than 8, an unknown world, more contexts than there are, or an `out` that is the folder itself;
            `TensorFileError` for a folder that can't be read.
    """
    folder = _checked(run)
    full, full_seconds = _timed(folder)
    info = full.info | {"bits": run.bits}
    short, long = (_first(getattr(full, name), getattr(run, name), name) for name in ("short_contexts", "long_contexts"))
    kept = replace(full, short_contexts=short, long_contexts=long, info=info)
    save_weights(run.out, kept)
    path, models = run.out / "model.safetensors", {"autoencoder": kept.autoencoder, "world_model": kept.world_model}
    names = [f"{name}.{weight}" for name, model in models.items() for weight in multiplied(model)]
    save_tensors(path, into_eight_bits(load_tensors(path)[0], names), {})
    if (folder / CARD).exists():
        (run.out / CARD).write_text(REMARK + (folder / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    if has_record(folder):
        write_world(run.out, read_world(folder))
    compact, compact_seconds = _timed(run.out)
    report: dict[str, Any] = {
        "bytes": {"full": _bytes(folder), "compact": _bytes(run.out)},
        "load_seconds": {"full": full_seconds, "compact": compact_seconds},
        "relative_error": _relative_error(full, compact),
    }
    size, seconds = report["bytes"], report["load_seconds"]
    print(f"{run.out}: {size['compact'] / 1e6:.1f} MB instead of {size['full'] / 1e6:.1f}")
    print(f"read in {seconds['compact']:.2f} s instead of {seconds['full']:.2f}; weights off by {report['relative_error']:.2%}")
    print("in memory, and as quick, as before; see what the dream lost with")
    print(f"  lssvwm-gym evaluate --world {run.world} --weights {run.out} --data DIR")
    return report


def multiplied(model: nn.Module) -> list[str]:
    """Names of the weights of products and convolutions, whose first axis is the output channel."""
    return [f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]


def _checked(run: Quantizing) -> Path:
    if run.bits != 8:
        raise ValueError(f"bits must be 8, not {run.bits}: full weights have 16, and nothing else is stored")
    if run.world not in WORLDS:
        raise ValueError(f"no world named {run.world!r}; there are {', '.join(WORLDS)}")
    folder = weights_of(WORLDS[run.world], run.weights)
    if run.out.exists() and run.out.resolve() == folder.resolve():
        raise ValueError(f"out is {run.out}, the folder of the full weights, which it would overwrite; name another")
    return folder


def _timed(folder: Path) -> tuple[Weights, float]:
    """Weights, read from disk, and the seconds that took."""
    began = time.perf_counter()
    return read_weights(folder), time.perf_counter() - began


def _first(contexts: Segment, count: int | None, name: str) -> Segment:
    if count is None:
        return contexts
    if not 0 <= count <= contexts.batch:
        raise ValueError(f"{name} must be 0..{contexts.batch}, as many as these weights come with, not {count}")
    return contexts.take(slice(count))


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _relative_error(full: Weights, compact: Weights) -> float:
    """Root mean square of the difference of all weights over that of the weights."""
    models = [nn.ModuleList([weights.autoencoder, weights.world_model]) for weights in (full, compact)]
    before, after = (torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in models)
    return float((after - before).norm() / before.norm())


if __name__ == "__main__":
    quantize(tyro.cli(Quantizing, description=__doc__))
