"""How much of what the machine can multiply a training step makes use of, and where the rest of its time goes.

The peak is what one large matrix product reaches, in the type that training multiplies in. The step's own arithmetic is
counted by PyTorch (products and convolutions, forward and backward; factorisations are not counted), and the profiler says which
operators its time goes to.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.timing import Times, finish, seconds_of
from lssvwm_gym.evaluation.bench.training import stepping
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.training.optim import product_dtype

CLIP = 80  # frames, as training has them
PRODUCTS = "matrix products"
CLASSES = {  # of operators, by what their names begin with; the first that fits
    PRODUCTS: ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "einsum", "mkldnn_linear", "dot", "mv", "addmv", "_scaled_mm"),
    "attention": ("_scaled_dot_product", "_flash", "_efficient"),
    "convolutions": ("convolution", "mkldnn_convolution", "_conv", "thnn_conv", "_slow_conv"),
    "factorisations": ("linalg_cholesky", "linalg_solve", "triangular", "cholesky", "_linalg"),
    "optimiser": ("_fused_adam", "_foreach", "lerp_"),
    "norms": ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", "linalg_vector_norm"),
    "softmax": ("_softmax", "_log_softmax", "nll_loss"),
    "copies and layout": (
        *("copy_", "_to_copy", "to", "cat", "stack", "clone", "contiguous", "index", "_index", "gather", "scatter", "constant_pad"),
        *("repeat", "flip", "roll", "fill_", "zero_", "zeros", "ones", "empty", "new_", "select_backward", "slice_backward", "_local"),
        *("embedding", "_unsafe", "expand", "view", "as_strided", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze"),
        *(
            "select",
            "slice",
            "split",
            "chunk",
            "flatten",
            "unflatten",
            "pad",
            "unfold",
            "unbind",
            "detach",
            "alias",
            "_reshape",
            "resize",
            "narrow",
            "arange",
            "eye",
            "tril",
            "triu",
        ),
    ),
    "sums": ("sum", "mean", "cumsum", "amax", "argmax", "any", "all"),
}
ELEMENTWISE, OUTSIDE = "elementwise", "outside of operators: Python, autograd's bookkeeping"


def measure_peak(run: Benchmark) -> dict[str, Any]:
    """The peak, a training step's arithmetic and time, the share of the peak, and the account of its time by class of operators."""
    device = chosen_device(run.device)
    dtype = product_dtype(run.precision, device)
    peak = matrix_peak(run.peak_size, dtype, device, run.repeats)
    step = stepping(run, "ours", CLIP, run.peak_frames)
    step()
    flops = counted(step)
    times = Times.of(seconds_of(step, run.repeats, 1, device, "training steps"))
    account = where_it_goes(step, max(1, run.repeats // 3), device)
    reached = flops / (times.ms / 1000)
    in_products = account[PRODUCTS]["share"] * times.ms / 1000 if PRODUCTS in account else 0.0
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "peak_flops": peak,
        "frames": run.peak_frames,
        "step_flops": flops,
        **asdict(times),
        "reached_flops": reached,
        "share": reached / peak,
        "products_share_of_peak": flops / in_products / peak if in_products else None,  # how quick products are while they run
        "account": account,
    }


def matrix_peak(size: int, dtype: torch.dtype, device: str, repeats: int) -> float:
    """FLOP/s of a product of two square matrices, median."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.mm(a, b, out=out), repeats, 3, device)
    return 2 * size**3 / float(Times.of(seconds).ms / 1000)


def counted(step: Callable[[], Any]) -> int:
    """FLOPs of one step."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return int(counter.get_total_flops())


def where_it_goes(step: Callable[[], Any], steps: int, device: str) -> dict[str, dict[str, float]]:
    """By class of operators: share of a step's time and operators a step. On a GPU, of the time that it works."""
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    finish(device)
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        finish(device)
        wall = time.perf_counter() - began
    events = [event for event in profiled.key_averages() if event.device_type == DeviceType.CPU]  # kernels count for what launched them
    times = [(event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count) for event in events]
    return shares(times, wall, steps)


def shares(times: Iterable[tuple[str, float, int]], wall: float, steps: int) -> dict[str, dict[str, float]]:
    """What names of operators, seconds in them and calls come to, of a time by the clock."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for name, spent, count in times:
        kind = class_of(name)
        seconds[kind] += spent
        calls[kind] += count
    if OUTSIDE not in seconds:
        seconds[OUTSIDE] = calls[OUTSIDE] = 0
    seconds[OUTSIDE] += max(0.0, wall - sum(seconds.values()))
    ordered = sorted(seconds, key=lambda kind: -seconds[kind])
    return {kind: {"share": seconds[kind] / wall, "calls": calls[kind] / steps} for kind in ordered}


def class_of(name: str) -> str:
    """The class of an operator, by its name in a profile."""
    if not name.startswith("aten::"):
        return OUTSIDE
    plain = name.removeprefix("aten::")
    for kind, beginnings in CLASSES.items():
        if any(plain == one or (len(one) > 2 and plain.startswith(one)) for one in beginnings):
            return kind
    return ELEMENTWISE
