"""The scan of Mamba-2 alone, and a layer of it, beside the public ones in plain PyTorch of Hugging Face's transformers.

Shapes are those of the layers of the world model in training, in float32 and, where the processor multiplies in it, with tokens in
bfloat16, which transformers' function turns into float32 itself. Both get the same numbers; how far their outputs and gradients are
apart is reported. transformers' function runs as it is written, without CUDA kernels, with its own chunk length and with shorter ones,
as suit a CPU; with none that is longer than the sequences, which it would fill up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, seconds_of
from experiments.benchmark.models import config_of
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.ops.ssd import ssd_scan
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.training.optim import product_dtype

CHUNKS = (256, 64, 32)  # the first is transformers' own
NEEDED = "transformers 5.24 or newer is not installed: pip install 'lssvwm_gym[bench]'"
OURS, THEIRS = "ours", "transformers"

Scan = Callable[..., Tensor]


def measure_scans(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of what, shape, implementation, chunk, milliseconds forward and with backward, and how far off ours; or the reason alone."""
    try:
        from transformers import logging
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    except ImportError:
        return [{"skipped": NEEDED}]
    logging.set_verbosity_error()  # it would say that its kernels are missing
    theirs, config, device = inspect.unwrap(mamba2_chunk_scan), config_of(run), chosen_device(run.device)
    if not config.d_state:
        return [{"skipped": "the world model of these weights has no scan"}]
    rows: list[dict[str, Any]] = []
    for block in dict.fromkeys(config.blocks):
        shape, own = _shape(config, block, run), _own_chunk(device)
        scans: dict[tuple[str, int], Scan] = {(OURS, own): functools.partial(ours_scan, chunk=own)}
        scans |= {(THEIRS, chunk): functools.partial(theirs, chunk_size=chunk) for chunk in _chunks(shape[1])}
        for dtype in dict.fromkeys((torch.float32, product_dtype(run.precision, device))):
            given = scan_inputs(*shape, device=device, dtype=dtype)
            what = f"scan, blocks of {block[0]}x{block[1]}" + ("" if dtype is torch.float32 else ", bfloat16")
            rows += _compared(what, shape, {key: (scan, given) for key, scan in scans.items()}, given, run, device)
    return rows + _layers(config, run, device)


def scan_inputs(
    sequences: int, tokens: int, heads: int, width: int, size: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """x (b, l, h, p), dt (b, l, h), A (h,), B and C (b, l, 1, n), as a layer has them, each with a gradient; x, B and C in `dtype`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    dt = nn.functional.softplus(normal(sequences, tokens, heads) - 3)
    A = -torch.linspace(1, 8, heads)
    x, B, C = normal(sequences, tokens, heads, width), normal(sequences, tokens, 1, size), normal(sequences, tokens, 1, size)
    given = x.to(dtype), dt, A, B.to(dtype), C.to(dtype)
    return tuple(tensor.to(device).requires_grad_() for tensor in given)


def ours_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    return ssd_scan(x, dt, A, B, C, chunk)[0]


def _own_chunk(device: str) -> int:
    """The chunk length of ours."""
    return 32 if device == "cpu" else 128


def _chunks(tokens: int) -> list[int]:
    return list(dict.fromkeys(min(chunk, tokens) for chunk in CHUNKS))


def _shape(config: WorldModelConfig, block: tuple[int, int], run: Benchmark) -> tuple[int, int, int, int, int]:
    size, heads = block[0] * block[1], 2 * config.width // config.head_width
    return run.scan_rows * config.tokens // size, run.scan_frames * size, heads, config.head_width, config.d_state


def _layers(config: WorldModelConfig, run: Benchmark, device: str) -> list[dict[str, Any]]:
    """A whole layer of one block and a short convolution, with the same weights."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    ours = BlockScan(config.width, config.grid, (config.grid, config.grid), config.d_state, config.head_width, d_conv=4).to(device)
    frames, state = run.scan_frames, ours.initial_state(run.scan_rows)
    x = torch.randn(run.scan_rows, frames, config.tokens, config.width, generator=torch.Generator().manual_seed(0)).to(device)
    x.requires_grad_()
    calls: dict[tuple[str, int], tuple[Scan, tuple[Any, ...]]] = {(OURS, _own_chunk(device)): (lambda x: ours(x, *state)[0], (x,))}
    settings: dict[str, Any] = dict(num_heads=ours.heads, head_dim=config.head_width, hidden_size=config.width)
    settings |= dict(state_size=config.d_state, n_groups=1, num_hidden_layers=1)
    for chunk in _chunks(frames * config.tokens):
        mixer = Mamba2Mixer(Mamba2Config(**settings, chunk_size=chunk), layer_idx=0).to(device)
        mixer.load_state_dict(ours.state_dict())
        calls[THEIRS, chunk] = (_folded(mixer), (x,))
    shape = (run.scan_rows, frames * config.tokens, ours.heads, config.head_width, config.d_state)
    return _compared("layer, one block", shape, calls, (x,), run, device)


def _folded(mixer: nn.Module) -> Scan:
    return lambda x: mixer(x.flatten(1, 2)).view_as(x)


def _compared(
    what: str,
    shape: tuple[int, ...],
    calls: dict[tuple[str, int], tuple[Scan, tuple[Any, ...]]],
    learned: tuple[Tensor, ...],
    run: Benchmark,
    device: str,
) -> list[dict[str, Any]]:
    """A row a call; the first is ours, from which the others' outputs and gradients are so far, relative to the largest number."""
    rows: list[dict[str, Any]] = []
    outcomes: list[list[Tensor]] = []
    for (name, chunk), (call, given) in calls.items():
        output = call(*given)
        outcomes.append([output.detach(), *torch.autograd.grad(output.sum(), learned)])
        with torch.no_grad():
            forward = Times.of(seconds_of(functools.partial(call, *given), run.repeats, 1, device, f"{what}, {name}"))
        whole = Times.of(seconds_of(functools.partial(_both, call, given, learned), run.repeats, 1, device, f"{what}, {name}, backward"))
        off = max(_apart(mine, theirs) for mine, theirs in zip(outcomes[0], outcomes[-1], strict=True))
        row = {"what": what, "shape": shape, "by": name, "chunk": chunk}
        rows.append(row | {"forward": asdict(forward), "both": asdict(whole), "off": off})
    return rows


def _both(call: Scan, given: tuple[Any, ...], learned: tuple[Tensor, ...]) -> None:
    torch.autograd.grad(call(*given).sum(), learned)


def _apart(a: Tensor, b: Tensor) -> float:
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
