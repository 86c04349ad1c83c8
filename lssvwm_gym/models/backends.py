"""What computes the scans and the attention of a model, and whether its step is recorded: chosen here, for a device and a wish.

PyTorch's own operations are the reference and run everywhere; what is quicker on CUDA has the same signature beside them
(`mamba`, `flex`, `replay`). See docs/backends.md.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from lssvwm_gym.models.layers import BlockScan, FrameAttention
from lssvwm_gym.models.mamba import interpreted, kernels, mamba_scan
from lssvwm_gym.models.ssd import ssd_scan

M = TypeVar("M", bound=nn.Module)

SCANS = {"torch": ssd_scan, "mamba": mamba_scan}
CHOICES = {"scan": ("auto", *SCANS), "attention": ("auto", "fold", "flex"), "graphs": ("auto", "on", "off")}

log = logging.getLogger("lssvwm_gym")


@dataclass(frozen=True)
class Backend:
    """A wish, or what it came to: then nothing is `auto`."""

    scan: str = "auto"  # torch, or mamba: mamba-ssm's kernels, on CUDA; auto: mamba where it can be used
    attention: str = "auto"  # fold: dense products of folded frames; flex: FlexAttention, on CUDA; auto: fold
    graphs: str = "auto"  # on: a dream's step is recorded as a CUDA graph; off; auto: on on CUDA

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{'backend' if name == 'scan' else name} must be one of {', '.join(choices)}, not {value!r}")

    def __str__(self) -> str:
        return ", ".join([self.scan, *["flex"] * (self.attention == "flex"), *["graphs"] * (self.graphs == "on")])


PLAIN = Backend("torch", "fold", "off")


def chosen_backend(backend: str | Backend, device: str) -> Backend:
    """For a wish, or the name of one's scan, and a torch device.

    Raises:
        ValueError: a name that doesn't exist, or what is for CUDA on another device.
        ImportError: mamba-ssm is asked for by name and isn't there.
    """
    wish = backend if isinstance(backend, Backend) else Backend(scan=backend)
    on_cuda = torch.device(device).type == "cuda"
    for name, value in (("attention", "flex"), ("graphs", "on")):
        if getattr(wish, name) == value and not on_cuda:
            raise ValueError(f"{name}={value!r} is for CUDA devices, not for {device}: leave it at 'auto'")
    return Backend(
        _chosen_scan(wish.scan, device, on_cuda),
        "fold" if wish.attention == "auto" else wish.attention,
        ("on" if on_cuda else "off") if wish.graphs == "auto" else wish.graphs,
    )


def _chosen_scan(wish: str, device: str, on_cuda: bool) -> str:
    if wish == "torch" or (wish == "auto" and not on_cuda):
        return "torch"
    if not on_cuda and not (device == "cpu" and interpreted()):
        raise ValueError(
            f"backend='mamba' is for CUDA devices, not for {device}: take 'torch', or 'auto', which knows (on a CPU its kernels \
run in Triton's interpreter alone, for tests: TRITON_INTERPRET=1)"
        )
    try:
        kernels()
    except ImportError as error:
        if wish == "mamba":
            raise
        log.info("scans are PyTorch's: %s", error)
        return "torch"
    return "mamba"


def use_backend(model: nn.Module, backend: Backend) -> None:
    """Have a model's scans and attention computed so from now on; `backend` is what `chosen_backend` gave."""
    for module in model.modules():
        if isinstance(module, BlockScan):
            module.scan = SCANS[backend.scan]
        elif isinstance(module, FrameAttention):
            module.flex = backend.attention == "flex"


def on_backend(model: M, backend: Backend) -> M:
    """The same model, with the same parameters, computed so; itself where that is what it does by itself."""
    if replace(backend, graphs="off") == PLAIN:
        return model
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, weights)  # of all but the weights
    use_backend(other, backend)
    return other
