"""CUDA graphs: a step of many small kernels is recorded once and then replayed without Python in between.

Only for functions without gradients whose shapes do not change and that never wait for the device.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_recorded: weakref.WeakKeyDictionary[nn.Module, dict[Callable[..., Any], Replay]] = weakref.WeakKeyDictionary()


def replayed(function: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    """`function(model, ...)` as `f(model, ...)` that records itself at the first call with arguments of new shapes.

    Where the model is not on a CUDA device, the function itself.
    """
    if next(model.parameters()).device.type != "cuda":
        return function
    replays = _recorded.setdefault(model, {})
    if function not in replays:
        replays[function] = Replay(function)
    return replays[function]


class Replay:
    """A function of a module and of pytrees of tensors; returns pytrees of tensors that are the caller's own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = {}

    @torch.no_grad()
    def __call__(self, model: nn.Module, *arguments: Any) -> Any:
        leaves, shape = tree_flatten(arguments)
        mixed = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (str(shape), tuple((leaf.shape, leaf.dtype) for leaf in leaves), mixed)
        if key not in self.graphs:
            self.graphs[key] = self._record(functools.partial(self.function, weakref.proxy(model)), leaves, shape, mixed)
        graph, inputs, outputs = self.graphs[key]
        torch._foreach_copy_(inputs, leaves)
        graph.replay()
        return tree_map(torch.clone, outputs)

    def _record(
        self, function: Callable[..., Any], leaves: list[Tensor], shape: Any, mixed: torch.dtype | None
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        inputs = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves]
        arguments = tree_unflatten(inputs, shape)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        # no cache: it would keep the weights of today in lower precision for all replays to come
        with torch.autocast("cuda", dtype=mixed, enabled=mixed is not None, cache_enabled=False):
            with torch.cuda.stream(aside):
                for _ in range(3):  # libraries set themselves up in the first calls
                    function(*arguments)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = function(*arguments)
        return graph, inputs, outputs
