"""Weights in the order in which a CPU multiplies with them, laid out once instead of at every call, in float32 or bfloat16.

What is packed is a copy: later changes to the weights are not seen. All of it is without gradients.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.autoencoder import ResidualBlock

oneDNN = torch.ops.mkldnn  # what torch.compile's frozen graphs call, too; not in every build


def multiplies_bfloat16(device: str) -> bool:
    """Whether a processor multiplies in bfloat16: AVX-512 BF16, AMX, or a GPU of Ampere's generation and later.

    Others emulate it, some fifty times slower than float32.
    """
    if device != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, and so optional
    return bool(supported and supported())


class PrepackedLinear:
    """`nn.Linear` without gradients: x (..., in) of any type to (..., out) of the weights' type."""

    @torch.no_grad()
    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bias = None if bias is None else bias.to(dtype)
        # lies in memory as (in, out): up to seven times faster for few rows where it has to come from afar
        self.weight = weight.T.to(dtype).contiguous().T
        self.packed = oneDNN._reorder_linear_weight(self.weight, None) if dtype == torch.bfloat16 and _packs("_linear") else None

    def __call__(self, x: Tensor) -> Tensor:
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        if self.packed is not None and not torch.compiler.is_compiling():  # a compiler lays it out by itself
            return cast(Tensor, oneDNN._linear_pointwise(x, self.packed, self.bias, "none", [], ""))
        return F.linear(x, self.weight, self.bias)


class PrepackedConv2d:
    """`nn.Conv2d` without gradients, and SiLU after it if wanted: x (B, C, side, side) of the weights' type, channels last."""

    @torch.no_grad()
    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, side: int, silu: bool = False) -> None:
        """`side`, of the images, decides the layout; any will do, but some take a hundred times as long in the wrong one."""
        self.silu, self.shape = silu, [list(map(int, x)) for x in (convolution.padding, convolution.stride, convolution.dilation)]
        weight = convolution.weight.to(dtype, memory_format=torch.channels_last)
        self.bias = None if convolution.bias is None else convolution.bias.to(dtype)
        self.packs = _packs("_convolution")
        size = [1, convolution.in_channels, side, side]
        self.weight = oneDNN._reorder_convolution_weight(weight, *self.shape, 1, size) if self.packs else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packs:
            after = "swish" if self.silu else "none"
            return cast(Tensor, oneDNN._convolution_pointwise(x, self.weight, self.bias, *self.shape, 1, after, [], ""))
        padding, stride, dilation = self.shape
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation)
        return F.silu(y) if self.silu else y


class PrepackedDecoder:
    """The decoder of an autoencoder: latents (B, C, grid, grid) of any type to images (B, 3, height, width) float32."""

    def __init__(self, decoder: nn.Sequential, dtype: torch.dtype, grid: int) -> None:
        self.dtype = dtype
        self.parts = []
        for part in decoder:
            self.parts.append(_packed(part, dtype, grid))
            grid *= part.upscale_factor if isinstance(part, nn.PixelShuffle) else 1

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        for part in self.parts:
            x = part(x)
        return x.float()


class _PrepackedResidual:
    def __init__(self, block: ResidualBlock, dtype: torch.dtype, side: int) -> None:
        self.inner, self.outer = PrepackedConv2d(block.inner, dtype, side, silu=True), PrepackedConv2d(block.outer, dtype, side)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(F.silu(x)))


def _packed(part: nn.Module, dtype: torch.dtype, side: int) -> Callable[[Tensor], Tensor]:
    if isinstance(part, nn.Conv2d):
        return PrepackedConv2d(part, dtype, side)
    return _PrepackedResidual(part, dtype, side) if isinstance(part, ResidualBlock) else part


def _packs(what: str) -> bool:
    """Whether to lay out weights for oneDNN: this build of torch has the operations for it, and this processor AVX-512.

    Without AVX-512 they refuse bfloat16, and packed float32 convolutions are ten times slower than plain ones.
    """
    names = (f"_reorder{what}_weight", f"{what}_pointwise")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and all(hasattr(oneDNN, name) for name in names)
