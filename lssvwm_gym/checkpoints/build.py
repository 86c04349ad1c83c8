"""Models built from sizes and weights that a file claims: checked before memory is spent on them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lssvwm_gym.io import legacy
from lssvwm_gym.io.json_config import Bounds, fields_of, in_short
from lssvwm_gym.io.tensors import TensorFileError, load_strictly
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig

M = TypeVar("M", bound=nn.Module)

LARGEST_STATE = 2**27  # numbers that one dream remembers; preset paper: 2**26
BESIDE = 10_000  # numbers that a model holds beside its weights
LARGEST_SIZE = 2**16  # of any number in a configuration
MAY_BE_ZERO = (
    *("heads", "d_state", "memory_features", "actions", "action_size", "inventory_size", "max_inventory_change"),
    *("flow_width", "reward_bins", "map_objects", "layout_width"),
)
SIZES = Bounds(
    numbers=(0, LARGEST_SIZE),
    most=128,
    whole={"residual_blocks": (0, 128), **dict.fromkeys(MAY_BE_ZERO, (0, LARGEST_SIZE))},
    any_whole=(1, LARGEST_SIZE),
    as_written=True,  # states know the model by how its sizes are written
    above_zero=frozenset({"motion_scale", "memory_scales", "memory_noise", "reward_limit"}),  # what others are divided by
    signed=frozenset({"class_rewards", "inventory_changes", "inventory_range"}),
)
MAKERS = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty}


def built_autoencoder(config: Any, tensors: Mapping[str, Tensor], file: Path, source: Path) -> Autoencoder:
    """The autoencoder of a parsed JSON object of sizes, with its weights; `file` holds those, `source` the sizes.

    Raises `TensorFileError` for sizes that are none or not those of the weights, and for weights that are not finite.
    """
    return _built(lambda sizes: Autoencoder(AutoencoderConfig(**sizes)), AutoencoderConfig, config, tensors, file, source)


def built_world_model(config: Any, tensors: Mapping[str, Tensor], file: Path, source: Path) -> WorldModel:
    """The same for a world model; a dream of it must have a state that fits into memory, too."""
    try:
        config = legacy.sizes(config)
    except ValueError as error:
        raise TensorFileError(f"{source}: {error}") from None
    model = _built(lambda sizes: WorldModel(WorldModelConfig(**sizes)), WorldModelConfig, config, legacy.parameters(tensors), file, source)
    try:
        with AtMost(LARGEST_STATE):
            model.initial_state(1)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        raise TensorFileError(f"{source}: a dream of these sizes has no state ({error})") from None
    return model


def _built(build: Callable[[dict[str, Any]], M], subject: type, config: Any, tensors: Mapping[str, Tensor], file: Path, source: Path) -> M:
    try:
        sizes = fields_of(subject, config, SIZES)
        with AtMost(sum(tensor.numel() for tensor in tensors.values()) + BESIDE):
            model = build(sizes)
    except (RuntimeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise TensorFileError(f"{source}: not the {subject.__name__} of {file.name} in this version ({in_short(error)})") from None
    return load_strictly(model, tensors, file).eval().requires_grad_(False)


class AtMost(TorchFunctionMode):
    """While it is active, no more than so many numbers can be made, and none are drawn from torch's global generator.

    Raises `ValueError` before more memory is taken. What would be drawn is left as it is, for weights are read in its place.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.left = numbers, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MAKERS:
            shape = [argument for argument in args if not isinstance(argument, Tensor)]
            self.left -= math.prod(shape[0] if shape and not isinstance(shape[0], int) else shape)
            if self.left < 0:
                raise ValueError(f"its sizes make more than {self.numbers} numbers")
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in (torch.rand, torch.randn) and kwargs.get("generator") is None:
            func = torch.empty
        return func(*args, **kwargs)
