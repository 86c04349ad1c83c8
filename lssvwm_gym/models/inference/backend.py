"""What computes the scans of a model, in which precision, on which device, and whether its step is compiled.

PyTorch's own operations are the reference and run everywhere; what is quicker on CUDA has the same signature beside them
(`ops.mamba_ssm`); a whole step can be compiled or recorded (`compile`). See docs/backends.md.
"""

import copy
import logging
import os
import shutil
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.inference.prepacked import multiplies_bfloat16
from lssvwm_gym.models.ops.mamba_ssm import interpreted, kernels, mamba_scan
from lssvwm_gym.models.ops.ssd import ssd_scan

M = TypeVar("M", bound=nn.Module)

SCANS = {"torch": ssd_scan, "mamba": mamba_scan}
CHOICES = {"scan": ("auto", *SCANS), "graphs": ("auto", "on", "off"), "compiled": ("auto", "on", "off")}
COMPILERS = ("g++", "clang++")
NAMES = (*CHOICES["scan"], "compiled")  # that stand for a whole backend

log = logging.getLogger("lssvwm_gym")

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Backend:
    """What is requested, or what it came to: then nothing is `auto`, which is plain PyTorch everywhere. The rest is asked for by name."""

    scan: str = "auto"  # torch, or mamba: mamba-ssm's kernels, on CUDA
    graphs: str = "auto"  # on: a dream's step is recorded as a CUDA graph; off
    compiled: str = "auto"  # on: a dream's step is compiled, on a CPU, which takes a minute and a C++ compiler; off

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{'backend' if name == 'scan' else name} must be one of {', '.join(choices)}, not {value!r}")

    def __str__(self) -> str:
        said = {"graphs": self.graphs == "on", "compiled": self.compiled == "on"}
        return ", ".join([self.scan, *(name for name, is_so in said.items() if is_so)])


PLAIN = Backend("torch", "off", "off")
COMPILED = Backend(compiled="on")
RECORDED = replace(PLAIN, graphs="on")


def chosen_backend(backend: str | Backend, device: str) -> Backend:
    """For a requested, the name of one's scan, or `compiled`, and a torch device.

    Raises `ValueError` for a name that doesn't exist, what is for CUDA on another device, and what is for a CPU, `ImportError` where
    mamba-ssm is asked for by name and isn't there, `RuntimeError` where steps are to be compiled, and there is no C++ compiler.
    """
    if not isinstance(backend, Backend) and backend not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, not {backend!r}")
    requested = backend if isinstance(backend, Backend) else COMPILED if backend == "compiled" else Backend(scan=backend)
    if requested.graphs == "on" and torch.device(device).type != "cuda":
        raise ValueError(f"graphs='on' is for CUDA devices, not for {device}: leave it at 'auto'")
    if requested.compiled == "on":
        if torch.device(device).type != "cpu":
            raise ValueError(f"compiled='on' is for CPUs, not for {device}: leave it at 'auto', for a GPU there is graphs='on'")
        wanted = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
        if not any(map(shutil.which, wanted)):
            instead = "On Debian: apt-get install g++; or leave backend at 'auto', which compiles nothing"
            raise RuntimeError(f"compiled steps need a C++ compiler, and there is no {' or '.join(wanted)}. {instead}")
    if requested.scan == "mamba":
        if torch.device(device).type != "cuda" and not (device == "cpu" and interpreted()):
            alone = "on a CPU its kernels run in Triton's interpreter alone, for tests: TRITON_INTERPRET=1"
            raise ValueError(f"backend='mamba' is for CUDA devices, not for {device}: take 'torch' ({alone})")
        kernels()
    return Backend(*(default if value == "auto" else value for value, default in zip(astuple(requested), astuple(PLAIN), strict=True)))


def use_backend(model: nn.Module, backend: Backend) -> None:
    """Have a model's scans computed so from now on; `backend` is what `chosen_backend` gave."""
    for module in model.modules():
        if isinstance(module, BlockScan):
            module.scan = SCANS[backend.scan]


def on_backend(model: M, backend: Backend) -> M:
    """The same model, with the same parameters, computed so; itself where that is what it does by itself."""
    if replace(backend, graphs="off", compiled="off") == PLAIN:
        return model
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, weights)  # of all but the weights
    use_backend(other, backend)
    return other


@dataclass(frozen=True)
class Precision:
    """Types of the products with weights; norms, attention, scans, memories and all states are float32 in any case."""

    model: torch.dtype = torch.float32
    pictures: torch.dtype = torch.float32  # and the flow head's, whose samples start from noise

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.model, self.pictures)]
        return names[0] if names[0] == names[1] else f"{names[0]}, samples and pictures {names[1]}"


FLOAT32 = Precision()


def chosen_precision(dtype: str, device: str) -> Precision:
    """For `auto`, `float32` or `bfloat16` and a torch device. Raises `ValueError` for other names, and for bfloat16 but on a CPU."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device != "cpu":
        if dtype == "bfloat16":
            raise ValueError(f"dtype='bfloat16' is for the CPU; on {device} a dream is float32")
        return FLOAT32
    if dtype == "bfloat16":
        return Precision(torch.bfloat16, torch.bfloat16)
    return Precision(pictures=torch.bfloat16 if dtype == "auto" and multiplies_bfloat16("cpu") else torch.float32)


def chosen_device(name: str) -> str:
    """`auto` is cuda where there is one and cpu elsewhere. Raises `ValueError` for a device that isn't there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch says "no such device" in all three
        raise ValueError(f"device must be 'auto', 'cpu' or a device of this machine such as 'cuda', not {name!r} ({error})") from None
    return str(name)
