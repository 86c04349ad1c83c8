"""A moment of an environment as a value: keep it, go back to it, branch from it, write it to disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_unflatten

from lssvwm_gym.envs import spaces
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, check_names_and_shapes, independent, load_tensors, save_tensors
from lssvwm_gym.models.state import DreamState, take_rows

FORMAT = "lssvwm_gym EnvState 1"
MAX_STEPS = 2**53  # that a file can claim; every JSON reader knows numbers up to here
MAX_COUNTED = 2**24  # floats count no further
HUGE = 2.0**24  # above all that a model ever computes; far from where sums of squares overflow


@dataclass(frozen=True)
class EnvState:
    """All that determines how one or more dreams go on. Its tensors are shared, never written to; treat it as opaque."""

    dream: DreamState
    frame: Tensor  # (B, height, width, 3) uint8, the last observation
    steps: tuple[int, ...]  # since each row's reset
    random: tuple[Any, ...]  # each row's np_random, which seeds its coming dreams
    weights: str  # fingerprint of the model that it belongs to

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self, rows: Sequence[int]) -> "EnvState":
        """The state of some rows, in that order; rows may repeat."""
        dream, frame = take_rows((self.dream, self.frame), torch.tensor(rows, device=self.frame.device))
        return EnvState(dream, frame, tuple(self.steps[row] for row in rows), tuple(self.random[row] for row in rows), self.weights)

    def branched(self, n: int, same_noise: bool = False) -> "EnvState":
        """Every row n times, copies side by side. The first copy keeps its future; the others get noise of their own."""
        if n < 1:
            raise ValueError(f"a dream branches into at least 1, not {n}")
        copies = self.rows([row for row in range(len(self)) for _ in range(n)])
        if same_noise:
            return copies
        seeds, random = copies.dream.seed.clone(), list(copies.random)
        for row in (row for row in range(len(copies)) if row % n):
            sequence = np.random.SeedSequence([int(seeds[row]), row % n])
            seeds[row] = int(sequence.generate_state(1)[0])
            random[row] = dict(np.random.PCG64(sequence).state)
        return replace(copies, dream=copies.dream._replace(seed=seeds), random=tuple(random))

    def checked_for(self, dream: Dream, rows: int) -> "EnvState":
        """Itself, on the dream's device. Raises `ValueError` where it belongs to another model or number of rows."""
        if not isinstance(self, EnvState):
            raise ValueError(f"a state is what clone_state gave, not {self!r}")
        if self.weights != dream.fingerprint:
            raise ValueError(f"a state of other weights ({self.weights}) than this environment's ({dream.fingerprint})")
        if len(self) != rows:
            raise ValueError(f"a state of {len(self)} rows for an environment of {rows}; EnvState.rows picks some of them")
        return _on(dream.device, self)


class Resumable:
    """What an environment of one dream and one of many share: the moment they are at, which can be kept and gone back to."""

    metadata: dict[str, Any] = {"render_modes": spaces.RENDER_MODES}  # noqa: RUF012 - as Gymnasium declares it
    _spec: EnvSpec | None = None
    _random: list[np.random.Generator]  # each row's, which seeds its coming dreams
    _observation: Callable[[], Any]  # of now, as the environment gives it
    _in_place = False  # whether the tensors of `_now` are written to

    def _set_up(self, dream: Dream, num_envs: int, render_mode: str | None, observation: str) -> None:
        if render_mode not in (None, *spaces.RENDER_MODES):
            raise ValueError(f"render_mode must be None or one of {', '.join(spaces.RENDER_MODES)}, not {render_mode!r}")
        self.dream, self.render_mode = dream, render_mode
        self.kind = spaces.checked_observation(observation, dream.world)
        self.metadata = {**self.metadata, "render_fps": dream.world.fps}
        self._now: tuple[DreamState, Tensor | None] | None = None  # and the frames (B, height, width, 3), None until they are asked for
        self._begun, self._steps = np.zeros(num_envs, bool), np.zeros(num_envs, np.int64)

    @property
    def spec(self) -> EnvSpec | None:
        """How Gymnasium made it, in what JSON can hold: paths are text, for `EnvSpec.to_json` and `gymnasium.make` of what that gave."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        kwargs = {name: str(value) if isinstance(value, Path) else value for name, value in (spec.kwargs if spec else {}).items()}
        self._spec = spec and replace(spec, kwargs=kwargs)

    @independent
    def clone_state(self) -> EnvState:
        """This moment of all rows as a value; `EnvState.rows` picks some of them.

        Costs next to nothing: frames are decoded where they have not been yet, and nothing is copied, but in rows from a bank.
        """
        now = self._state("clone_state"), self._frames("clone_state")
        state, frames = tree_map(torch.clone, now) if self._in_place else now
        random = tuple(dict(random.bit_generator.state) for random in self._random)
        return EnvState(state, frames, tuple(self._steps.tolist()), random, self.dream.fingerprint)

    @independent
    def restore_state(self, state: EnvState) -> Any:
        """Go back to that moment; returns its observations. Raises `ValueError` for other weights or another number of rows."""
        state = EnvState.checked_for(state, self.dream, len(self._steps))
        self._now, self._steps = (state.dream, state.frame), np.array(state.steps, np.int64)
        if self._in_place:
            self._now = tree_map(torch.clone, self._now)
        self._random = [generator(random) for random in state.random]
        self._begun[:] = True
        return self._observation()

    @independent
    def save_state(self, path: str | Path) -> None:
        """Write this moment to a safetensors file."""
        save_state(path, self.clone_state(), self.dream)

    @independent
    def load_state(self, path: str | Path) -> Any:
        """Go back to a saved moment; returns its observations. Raises `TensorFileError` for a file that isn't one of this model."""
        return self.restore_state(load_state(path, self.dream))

    def _state(self, method: str) -> DreamState:
        if self._now is None or not self._begun.all():
            raise ResetNeeded(f"call reset() before {method}()")
        return self._now[0]

    def _frames(self, method: str) -> Tensor:
        """The pictures of now, decoded once."""
        state = self._state(method)
        frames = self._now[1] if self._now else None
        if frames is None:
            frames = self.dream.frame(state)
            self._now = state, frames
        return frames

    def _rendered(self) -> np.ndarray | None:
        """The frames of all rows, (B, height, width, 3) uint8."""
        if self.render_mode is None:
            env_id = self.dream.world.id
            gymnasium.logger.warn(f'render() shows nothing without a render mode: gymnasium.make("{env_id}", render_mode="rgb_array")')
            return None
        return self._frames("render").cpu().numpy().copy()


def generator(state: Any) -> np.random.Generator:
    """A random generator that goes on from `state`."""
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


def save_state(path: str | Path, state: EnvState, dream: Dream) -> None:
    """Write a state as safetensors with a JSON header."""
    header = {"format": FORMAT, "world": dream.world.id, "weights": state.weights, "steps": state.steps, "random": state.random}
    save_tensors(path, {**named(state.dream), "frame": state.frame}, header)


def load_state(path: str | Path, dream: Dream) -> EnvState:
    """Read what `save_state` wrote. Raises `TensorFileError` for any other file and for the state of another model."""
    tensors, header = load_tensors(path)
    tensors = legacy.state(tensors)
    if not _is_header(header):
        raise TensorFileError(f"{path}: not a saved state ({FORMAT})")
    if header["weights"] not in (dream.fingerprint, dream.fingerprint_before):
        here = f"this environment dreams {dream.world.id} with weights {dream.fingerprint}"
        raise TensorFileError(f"{path}: a state of {header['world']} with weights {header['weights']}, but {here}")
    rows, size = len(header["steps"]), dream.world.image_size
    blank = dream.empty(torch.zeros(1, dtype=torch.int64))
    expected = {**named(blank), "frame": torch.zeros(1, size, size, 3, dtype=torch.uint8)}
    check_names_and_shapes({k: v.expand(rows, *v.shape[1:]) for k, v in expected.items()}, tensors, path)
    wrong = [f"{name} {tensors[name].dtype}" for name, tensor in expected.items() if tensors[name].dtype != tensor.dtype]
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    wrong += [f"{name} has numbers that are not finite or huge" for name, tensor in floats.items() if not (tensor.abs() <= HUGE).all()]
    if wrong:
        raise TensorFileError(f"{path}: not the tensors of {rows} dreams of this model: {'; '.join(wrong[:4])}")
    state: DreamState = tree_unflatten([tensors[name] for name in named(blank)], tree_flatten_with_path(blank)[1])
    counts = state.inventory if dream.world.max_inventory else state.inventory[:, :0]  # other numbers may be below 0
    for name, number, most in (
        ("seed", state.seed, 2**32 - 1),
        ("age", state.world.age, MAX_STEPS),
        ("inventory", counts, MAX_COUNTED),
        ("inventory_peak", state.inventory_peak[:, : counts.shape[1]], MAX_COUNTED),
        ("pose_known", state.pose_known, 1),
        ("spatial_memory.explained", state.world.spatial_memory.explained.abs(), 2),  # 1 at most, but for rounding
    ):
        if not ((number >= 0) & (number <= most)).all():
            raise TensorFileError(f"{path}: {name} is {number.flatten()[:4].tolist()}, not 0..{most}")
    return _on(dream.device, EnvState(state, tensors["frame"], tuple(header["steps"]), tuple(header["random"]), dream.fingerprint))


def _is_header(header: Any) -> bool:
    """Whether all is there that `save_state` writes, of the right type."""
    try:
        steps, random = header["steps"], header["random"]
        whole = all(type(number) is int and 0 <= number <= MAX_STEPS for number in steps)
        goes_on = all(generator(state).bit_generator.state == state for state in random)
        return header["format"] == FORMAT and {"world", "weights"} <= header.keys() and 0 < len(steps) == len(random) and whole and goes_on
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return False


def named(state: DreamState) -> dict[str, Tensor]:
    """The leaves of a state by their names."""
    return {"".join(str(key) for key in path).lstrip("."): leaf for path, leaf in tree_flatten_with_path(state)[0]}


def _on(device: torch.device, state: EnvState) -> EnvState:
    dream, frame = tree_map(lambda tensor: tensor.to(device), (state.dream, state.frame))
    return replace(state, dream=dream, frame=frame)
