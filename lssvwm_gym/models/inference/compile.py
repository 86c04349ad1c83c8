"""A dream's step as one piece: compiled for a CPU, or recorded as a CUDA graph.

Compiling takes some 40 s, at the first step of every number of rows, of every profile. PyTorch keeps the result in its cache folder
(`TORCHINDUCTOR_CACHE_DIR`), with which another process takes a few seconds.
"""

import functools
import logging
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lssvwm_gym.models.inference.backend import Backend
from lssvwm_gym.models.state import DreamState, LayerState
from lssvwm_gym.models.world_model import WorldModel

# weights are constants, laid out once; what calls the kernels is C++, too
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"freezing": True, "cpp_wrapper": True}

log = logging.getLogger("lssvwm_gym")


def compile_step(step: Callable[..., Any], model: WorldModel, backend: Backend) -> Callable[..., Any]:
    """A step, `step(model, state, action, noise)`, as a backend runs it: recorded as a CUDA graph, compiled for a CPU, or as it is.

    What is recorded or compiled is kept for the model, and made at the first call with arguments of new shapes.
    """
    kind = Replay if backend.graphs == "on" else CompiledStep if backend.compiled == "on" else None
    if kind is None:
        return step
    steps = _steps.setdefault(model, {})
    if (kind, step) not in steps:
        steps[kind, step] = kind(step)
    return steps[kind, step]


_steps: weakref.WeakKeyDictionary[nn.Module, dict[Any, Callable[..., Any]]] = weakref.WeakKeyDictionary()


class CompiledStep:
    """A step of one model, compiled by PyTorch for a CPU: one C++ program for so many rows, instead of some hundred calls into torch.

    States go in as steps leave them, so that a reset, a branch or a loaded state compiles nothing anew.
    """

    def __init__(self, step: Callable[..., tuple[DreamState, Tensor]]) -> None:
        self.step = step
        self.programs: dict[tuple[int, int], Callable[..., tuple[DreamState, Tensor]]] = {}

    def __call__(self, model: WorldModel, state: DreamState, action: Tensor, noise: Tensor) -> tuple[DreamState, Tensor]:
        arguments = laid_out(state), _row_major(action), _row_major(noise)
        size = len(action), torch.get_num_threads()  # a program uses as many threads as there were when it was compiled
        if size in self.programs:
            return self.programs[size](*arguments)
        log.warning("compiling a dream's step for %d rows, which may take a minute", len(action))
        begun, program = time.monotonic(), self._program(model)
        result = program(*arguments)
        log.warning("compiled in %.0f s", time.monotonic() - begun)
        self.programs[size] = program
        return result

    def _program(self, model: WorldModel) -> Callable[..., tuple[DreamState, Tensor]]:
        def program(state: DreamState, action: Tensor, noise: Tensor) -> tuple[DreamState, Tensor]:
            return self.step(model, state, action, noise)

        # a code of its own: PyTorch compiles one only so many times
        own = types.FunctionType(program.__code__.replace(), program.__globals__, closure=program.__closure__)
        return torch.compile(own, fullgraph=True, dynamic=False, options=OPTIONS)


def laid_out(state: DreamState) -> DreamState:
    """The same state, laid out in memory as a step leaves it: row-major, but keys and values with their heads first."""
    world = state.world
    layers = tuple(
        LayerState(_row_major(ssm), _row_major(conv), _heads_first(keys), _heads_first(values)) for ssm, conv, keys, values in world.layers
    )
    rest: DreamState = tree_map(_row_major, state._replace(world=world._replace(layers=())))
    return rest._replace(world=rest.world._replace(layers=layers))


def _heads_first(x: Tensor) -> Tensor:
    """Keys or values (B, W, H, N, P) that lie in memory as (B, H, W, N, P); what a layer without attention has, as it is."""
    return _row_major(x.transpose(1, 2)).transpose(1, 2) if x.ndim > 2 else x


def _row_major(x: Tensor) -> Tensor:
    """The same, contiguous, and with the strides of its shape in axes of one entry, too."""
    strides = _strides(x.shape)
    return x if x.stride() == strides else x.contiguous().as_strided(x.shape, strides)


@functools.cache
def _strides(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


class Replay:
    """A function of a module and of pytrees of tensors, recorded as a CUDA graph: replayed without Python between its kernels.

    Only for functions without gradients whose shapes do not change and that never wait for the device. Results are the caller's own.
    """

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
