"""mamba-ssm's Triton kernels for CUDA, behind the signature of `ssd_scan`; `inference.backend` chooses between the two.

Source: `mamba_chunk_scan_combined` and `selective_state_update` of mamba-ssm (Dao and Gu, arXiv 2405.21060). The package is
imported when kernels are first asked for, and only these two of it: they need Triton, but no compiled extension.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lssvwm_gym.models.ops.ssd import ssd_scan

MAX_PROGRAMS = 65_535  # along the second axis of a CUDA grid: the kernels have a program there for each chunk of each sequence
SHORTEST_CHUNK = 16  # tokens; the least that Triton multiplies


class Kernels(NamedTuple):
    scan: Callable[..., Any]  # mamba_chunk_scan_combined
    step: Callable[..., Any]  # selective_state_update, in place and without gradient


@functools.cache
def kernels() -> Kernels:
    """The two functions. Raises `ImportError`, with what to install, where there is no mamba-ssm or no Triton for it."""
    if (spec := importlib.util.find_spec("mamba_ssm")) is None:
        raise ImportError("mamba-ssm is not installed: install torch, then pip install --no-build-isolation 'lssvwm_gym[cuda]'")
    others = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "mamba_ssm"}
    sys.modules["mamba_ssm"] = importlib.util.module_from_spec(spec)  # not run: what it imports needs its compiled extension, and more
    try:
        scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
        step = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    except ImportError as error:
        raise ImportError(f"mamba-ssm is installed, but not what its kernels need ({error}): pip install 'lssvwm_gym[cuda]'") from error
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
        sys.modules.update(others)
    return Kernels(scan, step)


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors of the CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def mamba_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, D: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` with its arguments and results, computed by mamba-ssm; with gradients to all arguments, from both results.

    A single token without gradients takes `selective_state_update`; with gradients it is left to `ssd_scan`, as all of it is
    bound by memory. Raises `ValueError` for float64, in which the kernels don't compute.
    """
    if x.dtype == torch.float64:
        raise ValueError("mamba-ssm's kernels compute in float32 or less, not in float64: choose backend='torch'")
    length = x.shape[1]
    given = (tensor for tensor in (x, dt, A, B, C, D, initial_state) if tensor is not None)
    if length == 1 and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return ssd_scan(x, dt, A, B, C, chunk, D, initial_state)
    chunk = min(chunk, max(SHORTEST_CHUNK, 1 << (length - 1).bit_length()))  # no longer than what there is
    run: Callable[..., tuple[Tensor, Tensor]] = _one_token if length == 1 else functools.partial(_many_tokens, chunk=chunk)
    at_once = max(1, MAX_PROGRAMS // -(-length // chunk))
    if len(x) <= at_once:
        return run(x, dt, A, B, C, D, initial_state)
    state = x.new_zeros(len(x), *x.shape[2:], B.shape[-1], dtype=torch.float32) if initial_state is None else initial_state
    parts = zip(*(tensor.split(at_once) for tensor in (x, dt, B, C, state)), strict=True)
    y, final = (torch.cat(results) for results in zip(*(run(x, dt, A, B, C, D, state) for x, dt, B, C, state in parts), strict=True))
    return y, final


def _many_tokens(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    return kernels().scan(x, dt, A, B, C, chunk, D=D, initial_states=state, return_final_states=True)


def _one_token(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    b, _, h, p = x.shape
    n = B.shape[-1]
    state = x.new_zeros(b, h, p, n, dtype=torch.float32) if state is None else state.clone()  # it is written in place
    nothing = A.new_zeros(h)  # a bias is needed where A and dt are the same for a whole head, and D in any case
    y = kernels().step(
        state,
        x[:, 0],
        dt[:, 0, :, None].expand(b, h, p),
        A[:, None, None].expand(h, p, n),
        B[:, 0],
        C[:, 0],
        D=(nothing if D is None else D)[:, None].expand(h, p),
        dt_bias=nothing[:, None].expand(h, p),
    )
    return y.unsqueeze(1), state
