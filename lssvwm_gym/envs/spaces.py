"""What the environments of one world promise, alone or in a batch: spaces, metadata, and what they refuse."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_map

from lssvwm_gym.io import legacy
from lssvwm_gym.models.config import FEATURES, WorldModelConfig
from lssvwm_gym.models.geometry import PLANE
from lssvwm_gym.models.map_memory import SIDE, in_lattice
from lssvwm_gym.models.state import DreamState
from lssvwm_gym.worlds import WorldSpec
from lssvwm_gym.worlds.spec import LARGEST_NUMBER

RENDER_MODES = ["rgb_array"]


class Info(dict[str, Any]):
    """An info, of which the names of version 0.1 can still be read."""

    def __missing__(self, key: Any) -> Any:
        mask, name = ("_", key[1:]) if isinstance(key, str) and key.startswith("_") else ("", key)
        if name not in legacy.INFO:
            raise KeyError(key)
        legacy.warn(f"info[{key!r}]", repr(mask + legacy.INFO[name]))
        return self[mask + legacy.INFO[name]]


register_pytree_node(Info, lambda info: (list(info.values()), list(info)), lambda values, names: Info(zip(names, values, strict=True)))

OUTPUTS = ("numpy", "torch")
OBSERVATIONS = (
    *("all", "image", "features", "latent", "latent+features", "map+wanted+pose"),
    *("features+inventory", "latent+features+inventory"),
)
MAX_FEATURE = float(FEATURES**0.5)  # no number of a layer norm is larger
MAX_LOG_ODDS = 16.0  # of a cell on a map
MAX_LATENT = 32.0  # latents have unit variance a channel; what a model imagines beyond is cut off in observations


def picture_of(observation: Any) -> Any:
    """The picture, or pictures, of an observation of a real or dreamed world: in one that counts things it is a part of a dict."""
    return observation["image"] if isinstance(observation, dict) else observation


def checked_observation(observation: str, world: WorldSpec | None = None, among: tuple[str, ...] = OBSERVATIONS) -> str:
    """Raises `ValueError` for one that is none of these, or not in this world where it is given: not all worlds have an inventory."""
    there_are = [name for name in among if world is None or world.inventory or "inventory" not in name]
    if observation not in there_are:
        raise ValueError(f"observation must be one of {', '.join(there_are)}, not {observation!r}")
    return observation


def needs_frame(observation: str) -> bool:
    """Whether it shows the decoded frame; all others spare the decoder."""
    return observation in ("all", "image")


def observation_space(world: WorldSpec, model: WorldModelConfig, observation: str = "all") -> Box | Dict:
    """The picture, and beside it the counts of worlds that have any; or the numbers of `numbers_of`."""
    if not needs_frame(observation):
        if "map" in observation and not model.map_objects:
            raise ValueError(f"observation {observation!r} needs a world model that draws a map, and that of {world.name} draws none")
        parts = {
            "latent": (MAX_LATENT, model.tokens * model.latent_channels),
            "features": (MAX_FEATURE, FEATURES),
            "map": (MAX_LOG_ODDS, (1 + model.map_objects) * SIDE**2),
            "wanted": (1.0, model.map_objects),
            "pose": (LARGEST_NUMBER, model.pose_size),
            "inventory": (world.max_inventory or LARGEST_NUMBER, len(world.inventory)),
        }
        high = np.concatenate([np.full(count, bound, np.float32) for bound, count in map(parts.__getitem__, observation.split("+"))])
        return Box(-high, high, dtype=np.float32)
    image = Box(0, 255, (world.image_size, world.image_size, 3), np.uint8)
    if not world.inventory or observation == "image":
        return image
    size = (len(world.inventory),)
    counts = Box(0, world.max_inventory, size, np.int32) if world.max_inventory else Box(-LARGEST_NUMBER, LARGEST_NUMBER, size, np.float32)
    return Dict({"image": image, "inventory": counts})


def numbers_of(state: DreamState, observation: str) -> Tensor:
    """What the model itself keeps of the last frame, float32 (B, numbers): its latent, row by row of its grid, its features, its map with
    what is wanted and the estimated pose on it, and the counts or other numbers that go with it."""
    latent, parts = state.latent.flatten(1).clamp(-MAX_LATENT, MAX_LATENT), observation.split("+")
    numbers = {"latent": latent, "features": state.features, "inventory": state.inventory}
    if "map" in parts:
        numbers |= {"map": state.map[:, : 1 + state.wanted.shape[1]].flatten(1), "wanted": state.wanted}
        numbers["pose"] = torch.cat([in_lattice(state.pose, state.lattice)[0], state.pose[:, PLANE:]], 1)
    return torch.cat([numbers[part] for part in parts], -1)


def observed(world: WorldSpec, observation: str, state: DreamState, frame: Tensor | None) -> Any:
    """The observations of all rows, copies on the device: frames (B, height, width, 3) uint8, where asked for in a dict beside
    counts or other numbers (B, V); or numbers."""
    if frame is None or not needs_frame(observation):
        return numbers_of(state, observation).float().clone()
    if not world.inventory or observation == "image":
        return frame.clone()
    return {"image": frame.clone(), "inventory": inventory_of(world, state)}


def inventory_of(world: WorldSpec, state: DreamState) -> Tensor:
    """The world's counts (B, V) int32, or of a world whose numbers are no counts, float32; a copy."""
    return state.inventory.clamp(max=world.max_inventory).to(torch.int32) if world.max_inventory else state.inventory.float().clone()


def batched(info: Mapping[str, Tensor], mask: Tensor) -> Info:
    """Infos as Gymnasium batches them: zeros where the mask (B,) is False, and each key's mask beside it."""
    parts = Info()
    for name, value in info.items():
        parts[name], parts[f"_{name}"] = _zeroed(value, mask), mask.clone()
    return parts


def final(observations: Any, info: Mapping[str, Tensor], mask: Tensor) -> dict[str, Any]:
    """The last observations and infos of the rows that ended, in their places; all other rows are zeros."""
    last = tree_map(lambda part: _zeroed(part, mask), observations)
    return {"final_obs": last, "_final_obs": mask.clone(), "final_info": batched(info, mask), "_final_info": mask.clone()}


def _zeroed(value: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (value.ndim - 1)), value, 0)


def arrays(values: Any) -> Any:
    """Tensors as arrays, in dicts too; a single float a row as float64; of final observations an object a row, None where it goes on."""
    if isinstance(values, dict):
        parts = type(values)((name, arrays(value)) for name, value in values.items())
        if "final_obs" in parts:
            last, parts["final_obs"] = parts["final_obs"], np.full(len(parts["_final_obs"]), None, dtype=object)
            for row in np.flatnonzero(parts["_final_obs"]):
                parts["final_obs"][row] = row_of(last, row)
        return parts
    array = values.cpu().numpy()
    return array.astype(np.float64) if array.ndim == 1 and array.dtype == np.float32 else array


def single(info: Mapping[str, Tensor]) -> Info:
    """The infos of a batch of one row, as Gymnasium's of one environment: Python's numbers, and arrays."""
    return Info({name: value[0].cpu().numpy() if value.ndim > 1 else value[0].item() for name, value in info.items()})


def row_of(observations: Any, row: int | np.integer) -> Any:
    """One row's observation, a copy."""
    return tree_map(lambda array: array[row].copy(), observations)


def action_space(world: WorldSpec) -> Discrete | Box:
    if world.continuous:
        return Box(np.array(world.low, np.float32), np.array(world.high, np.float32))
    return Discrete(len(world.actions))


def checked_actions(action: Any, world: WorldSpec, rows: tuple[int, ...]) -> torch.Tensor:
    """Whole numbers of shape `rows` in the action space as int64 (B,), of a Box float32 (B, A). Raises `ValueError` for anything else."""
    if world.continuous:
        return _checked_numbers(action, world, rows)
    array = _as_array(action)
    if array.shape != rows or array.dtype.kind not in "iu":
        wanted = "a whole number" if rows == () else f"an array of {rows[0]} whole numbers"
        raise ValueError(f"an action must be {wanted}, not {action!r}")
    if array.min() < 0 or array.max() >= len(world.actions):
        names = ", ".join(f"{number} {name}" for number, name in enumerate(world.actions))
        raise ValueError(f"{action!r} is no action; there are {names}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _as_array(action: Any) -> np.ndarray:
    """As an array, of whichever type; an empty one of objects for what can't be one."""
    try:
        return np.asarray(action)
    except (TypeError, ValueError):  # lists of different lengths, or tensors on a GPU
        return np.empty(0, object)


def _checked_numbers(action: Any, world: WorldSpec, rows: tuple[int, ...]) -> torch.Tensor:
    shape, array = (*rows, len(world.actions)), _as_array(action)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(f"an action must be numbers {shape}: {', '.join(world.actions)}; not {action!r}")
    low, high = np.array(world.low, np.float32), np.array(world.high, np.float32)
    numbers = array.astype(np.float32)
    if not ((numbers >= low) & (numbers <= high)).all():
        raise ValueError(f"{action!r} is no action: its numbers are {', '.join(world.actions)}, within {world.low} and {world.high}")
    return torch.from_numpy(numbers.reshape(-1, len(world.actions)))


def checked_tensors(actions: Any, world: WorldSpec, rows: int, device: torch.device) -> Tensor:
    """Actions as a tensor of the device: whole numbers (B,), as int64, or float32 (B, A) where the world's are continuous.

    Raises `ValueError` for anything else, and on a CPU for numbers out of range; elsewhere to look would be to wait, and those end in
    an assertion of the device.
    """
    shape, kind = ((rows, len(world.actions)), "floating-point") if world.continuous else ((rows,), "whole")
    fits = isinstance(actions, Tensor) and actions.shape == shape and actions.dtype != torch.bool
    if not fits or actions.is_floating_point() != world.continuous:
        said = f"{tuple(actions.shape)} {actions.dtype}" if isinstance(actions, Tensor) else repr(actions)
        raise ValueError(f"with output='torch' actions are a tensor {shape} of {kind} numbers, not {said}")
    if actions.device.type == "cpu":
        return checked_actions(actions.detach().numpy(), world, (rows,)).to(device)
    if not world.continuous:
        torch._assert_async(((actions >= 0) & (actions < len(world.actions))).all(), "an action is out of range")
    return actions.to(device, torch.float32 if world.continuous else torch.int64)


def is_whole(number: Any) -> bool:
    """Whether it is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def checked_options(options: Any) -> dict[str, Any]:
    """Options of reset as a dictionary of the caller's own. Raises `ValueError` where they are none."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"the options of reset are a dict, not {options!r}")
    return legacy.renamed_with_warning(options or {}, legacy.OPTIONS, "an option of reset")


def draw_seed(random: np.random.Generator) -> int:
    return int(random.integers(2**31))
