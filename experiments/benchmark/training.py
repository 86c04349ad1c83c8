"""Training steps: frames a second by length of clips, the share of the machine's peak, where the rest of the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, finish, seconds_of
from experiments.benchmark.models import trainer_of, training_of
from experiments.benchmark.processes import free_bytes, in_processes
from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.inference.backend import chosen_device
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.config import WorldTraining
from lssvwm_gym.training.optim import product_dtype

IN_FLIGHT = 1.6  # bytes that a step takes for a byte that it keeps for the backward pass: gradients of the widest layer, copies
CLIP = 80  # frames, as training has them
PRODUCTS, ELEMENTWISE, OUTSIDE = "matrix products", "elementwise", "outside of operators: Python, autograd's bookkeeping"
LAYOUT = """
copy_ _to_copy to cat stack clone contiguous index _index gather scatter constant_pad repeat flip roll fill_ zero_ zeros ones empty new_
select_backward slice_backward _local embedding _unsafe expand view as_strided reshape transpose permute t unsqueeze squeeze select slice
split chunk flatten unflatten pad unfold unbind detach alias _reshape resize narrow arange eye tril triu
"""
CLASSES = {  # of operators, by what their names begin with; the first that fits
    PRODUCTS: ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "einsum", "mkldnn_linear", "dot", "mv", "addmv", "_scaled_mm"),
    "attention": ("_scaled_dot_product", "_flash", "_efficient"),
    "convolutions": ("convolution", "mkldnn_convolution", "_conv", "thnn_conv", "_slow_conv"),
    "factorisations": ("linalg_cholesky", "linalg_solve", "triangular", "cholesky", "_linalg"),
    "optimiser": ("_fused_adam", "_foreach", "lerp_"),
    "norms": ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", "linalg_vector_norm"),
    "softmax": ("_softmax", "_log_softmax", "nll_loss"),
    "copies and layout": tuple(LAYOUT.split()),
    "sums": ("sum", "mean", "cumsum", "amax", "argmax", "any", "all"),
}


def measure_training(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of variant, frames of a clip, frames a second, milliseconds a step, and bytes kept for the backward pass.

    A length whose step would not fit into memory has `skipped`, the reason, instead of times.
    """
    cases = [(name, frames) for name in run.variants for frames in sorted(run.clips)]
    trainings = [training_of(run, name, frames, run.frames_a_step) for name, frames in cases]
    kept = in_processes([partial(kept_bytes, training, run.objective) for training in trainings], 1)
    rows, first = [], dict[str, float]()
    for (name, frames), size in zip(cases, kept, strict=True):
        row = _length(run, name, frames, size)
        if "ms" in row:
            cost = row["ms"] / row["frames"]
            row["growth"] = cost / first.setdefault(name, cost) - 1  # of the cost of a frame
        rows.append(row)
    return rows


def kept_bytes(training: WorldTraining, objective: str) -> int:
    """Bytes that autograd keeps for the backward pass of a step, in float32; found out with tensors that have shapes and no numbers.

    For a process of its own: constants that the model keeps would be without numbers from then on.
    """
    (stage,) = training.curriculum
    config, rows = training.model, training.rows(stage)
    read_only = None if objective == "diffusion_forcing" else (True, False) * stage.frames
    frames = len(read_only or range(stage.frames))
    kept = SavedForBackward()
    with FakeTensorMode(allow_non_fake_inputs=True), kept:
        inputs, model = inputs_like(config, rows, frames), WorldModel(config)
        model(torch.zeros(rows, frames, config.tokens, config.latent_channels), inputs, model.initial_state(rows), read_only)
    return sum(kept.sizes.values())


def _length(run: Benchmark, name: str, frames: int, kept: int) -> dict[str, Any]:
    training = training_of(run, name, frames, run.frames_a_step)
    clips, free = training.rows(training.curriculum[0]), free_bytes()
    row: dict[str, Any] = {"variant": name, "clip": frames, "clips": clips, "frames": clips * frames, "kept_bytes": kept}
    if chosen_device(run.device) == "cpu" and free is not None and kept * IN_FLIGHT > run.memory * free:
        needs, may = kept * IN_FLIGHT / 1e9, run.memory * free / 1e9
        return row | {"skipped": f"a step would take about {needs:.0f} GB of memory, and --memory {run.memory} leaves {may:.0f} GB"}
    trainer = trainer_of(training)
    times = Times.of(seconds_of(trainer.train_step, run.repeats, 1, str(trainer.device), f"{name}, clips of {frames} frames"))
    return row | asdict(times) | {"frames_per_second": row["frames"] / (times.ms / 1000)}


def measure_peak(run: Benchmark) -> dict[str, Any]:
    """The peak, a training step's arithmetic and time, the share of the peak, and the account of its time by class of operators."""
    device = chosen_device(run.device)
    dtype = product_dtype(run.precision, device)
    peak = matrix_peak(run.peak_size, dtype, device, run.repeats)
    step = trainer_of(training_of(run, "ours", CLIP, run.peak_frames)).train_step
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
    seconds, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for name, spent, count in times:
        seconds[class_of(name)] += spent
        calls[class_of(name)] += count
    seconds[OUTSIDE] += max(0.0, wall - sum(seconds.values()))
    ordered = sorted(seconds, key=lambda kind: -seconds[kind])
    return {kind: {"share": seconds[kind] / wall, "calls": calls[kind] / steps} for kind in ordered}


def class_of(name: str) -> str:
    """The class of an operator, by its name in a profile."""
    if not name.startswith("aten::"):
        return OUTSIDE
    plain = name.removeprefix("aten::")
    fits = (kind for kind, names in CLASSES.items() if any(plain == one or (len(one) > 2 and plain.startswith(one)) for one in names))
    return next(fits, ELEMENTWISE)


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Within it, `sizes` gets what autograd keeps for the backward pass: the bytes of each storage, by its address."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._held: list[Tensor] = []  # a storage that is gone could lend its address to another
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self._held.append(tensor)
        self.sizes[address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


def address(tensor: Tensor) -> int:
    """Of a tensor's storage."""
    return tensor.untyped_storage()._cdata


def inputs_like(config: WorldModelConfig, rows: int, frames: int) -> FrameInputs:
    """What is known of frames (B, T), of which only the shapes matter."""
    numbers = torch.zeros(rows, frames)
    action = torch.zeros(rows, frames, config.action_size) if config.action_size else numbers.long()
    pose, motion = (torch.zeros(rows, frames, size) for size in (config.pose_size, len(config.motion_scale)))
    return FrameInputs(numbers, action, pose, motion, torch.ones(rows, frames), torch.zeros(rows, frames, config.inventory_size))
