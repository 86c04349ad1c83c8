"""What the environments of one world promise, alone or in a batch: spaces, metadata, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete, Space
from torch import Tensor

from lssvwm_gym.models.dreaming import DreamState
from lssvwm_gym.worlds import World

RENDER_MODES = ["rgb_array"]
OBSERVATIONS = ("all", "image")


def checked_observation(observation: str) -> str:
    if observation not in OBSERVATIONS:
        raise ValueError(f"observation must be one of {', '.join(OBSERVATIONS)}, not {observation!r}")
    return observation


def observation_space(world: World, observation: str = "all") -> Box | Dict:
    """The picture, and beside it the counts of worlds that have any."""
    image = Box(0, 255, (world.image_size, world.image_size, 3), np.uint8)
    if not world.counts or observation == "image":
        return image
    return Dict({"image": image, "inventory": Box(0, world.most_counted, (len(world.counts),), np.int32)})


def observed(space: Space[Any], state: DreamState, frame: Tensor) -> Any:
    """The observations of all rows: frames (B, height, width, 3) uint8, in a `Dict` space beside int32 counts (B, V)."""
    image = frame.cpu().numpy().copy()
    if not isinstance(space, Dict):
        return image
    most = int(space["inventory"].high.max())  # type: ignore[attr-defined]
    return {"image": image, "inventory": state.vector.clamp(max=most).cpu().numpy().astype(np.int32)}


def row_of(observations: Any, row: int | np.integer) -> Any:
    """One row's observation, a copy."""
    if isinstance(observations, dict):
        return {name: array[row].copy() for name, array in observations.items()}
    return observations[row].copy()


def action_space(world: World) -> Discrete:
    return Discrete(len(world.actions))


def metadata(world: World) -> dict[str, Any]:
    return {"render_modes": RENDER_MODES, "render_fps": world.fps}


def checked_render_mode(render_mode: str | None) -> str | None:
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be None or one of {', '.join(RENDER_MODES)}, not {render_mode!r}")
    return render_mode


def checked_actions(action: Any, world: World, rows: tuple[int, ...]) -> torch.Tensor:
    """Whole numbers of shape `rows` within the action space, as int64 (B,). Raises `ValueError` for anything else."""
    try:
        array = np.asarray(action)
    except (TypeError, ValueError):  # lists of different lengths, or tensors on a GPU
        array = np.empty(0, object)
    if array.shape != rows or array.dtype.kind not in "iu":
        wanted = "a whole number" if rows == () else f"an array of {rows[0]} whole numbers"
        raise ValueError(f"an action must be {wanted}, not {action!r}")
    if array.min() < 0 or array.max() >= len(world.actions):
        names = ", ".join(f"{number} {name}" for number, name in enumerate(world.actions))
        raise ValueError(f"{action!r} is no action; there are {names}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def is_whole(number: Any) -> bool:
    """Whether it is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def checked_options(options: Any) -> dict[str, Any]:
    """Options of reset as a dictionary of the caller's own. Raises `ValueError` where they are none."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"the options of reset are a dict, not {options!r}")
    return dict(options or {})


def draw_seed(random: np.random.Generator) -> int:
    """The seed of one dream."""
    return int(random.integers(2**31))


def reset_needed(method: str) -> ResetNeeded:
    return ResetNeeded(f"call reset() before {method}()")


def warn_no_render_mode(env_id: str) -> None:
    gymnasium.logger.warn(f'render() shows nothing without a render mode: gymnasium.make("{env_id}", render_mode="rgb_array")')
