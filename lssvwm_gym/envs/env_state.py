"""A moment of an environment as a value: keep it, go back to it, branch from it, write it to disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_unflatten

from lssvwm_gym.data.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.envs.dream import Dream
from lssvwm_gym.models.dreaming import DreamState
from lssvwm_gym.models.state import take_rows

FORMAT = "lssvwm_gym EnvState 1"


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

    def rows(self, rows: Sequence[int]) -> EnvState:
        """The state of some rows, in that order; rows may repeat."""
        index = torch.tensor(rows, device=self.frame.device)
        dream, frame = take_rows((self.dream, self.frame), index)
        return EnvState(dream, frame, tuple(self.steps[row] for row in rows), tuple(self.random[row] for row in rows), self.weights)

    def branched(self, n: int, same_noise: bool = False) -> EnvState:
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

    def checked_for(self, dream: Dream, rows: int) -> EnvState:
        """Itself, on the dream's device. Raises `ValueError` where it belongs to another model or number of rows."""
        if self.weights != dream.fingerprint:
            raise ValueError(f"a state of other weights ({self.weights}) than this environment's ({dream.fingerprint})")
        if len(self) != rows:
            raise ValueError(f"a state of {len(self)} rows for an environment of {rows}; EnvState.rows picks some of them")
        return _on(dream.device, self)


def generator(state: Any) -> np.random.Generator:
    """A random generator that goes on from `state`."""
    bits = np.random.PCG64()
    bits.state = state
    return np.random.Generator(bits)


def save_state(path: str | Path, state: EnvState, dream: Dream) -> None:
    """Write a state as safetensors with a JSON header."""
    header = {
        "format": FORMAT,
        "world": dream.world.id,
        "weights": state.weights,
        "steps": state.steps,
        "random": state.random,
    }
    save_tensors(path, {**_named(state.dream), "frame": state.frame}, header)


def load_state(path: str | Path, dream: Dream) -> EnvState:
    """Read what `save_state` wrote. Raises `TensorFileError` for any other file and for the state of another model."""
    tensors, header = load_tensors(path)
    if not _is_header(header):
        raise TensorFileError(f"{path}: not a saved state ({FORMAT})")
    if header["weights"] != dream.fingerprint:
        raise TensorFileError(
            f"{path}: a state of {header['world']} with weights {header['weights']}, but this environment dreams "
            f"{dream.world.id} with weights {dream.fingerprint}"
        )
    blank = dream.empty(torch.zeros(len(header["steps"]), dtype=torch.int64))
    expected = {**_named(blank), "frame": dream.weights.autoencoder.decode(blank.latent)}
    if _shapes(tensors) != _shapes(expected):
        raise TensorFileError(f"{path}: not the tensors of {len(header['steps'])} dreams of this model")
    state = tree_unflatten([tensors[name] for name in _named(blank)], tree_flatten_with_path(blank)[1])
    return _on(dream.device, EnvState(state, tensors["frame"], tuple(header["steps"]), tuple(header["random"]), header["weights"]))


def _is_header(header: Any) -> bool:
    """Whether all is there that `save_state` writes, of the right type."""
    if not isinstance(header, dict) or header.get("format") != FORMAT or not {"world", "weights", "steps", "random"} <= header.keys():
        return False
    steps, random = header["steps"], header["random"]
    return isinstance(steps, list) and isinstance(random, list) and len(steps) == len(random) and all(map(_counts_on, steps, random))


def _counts_on(steps: Any, random: Any) -> bool:
    try:
        generator(random)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return isinstance(steps, int)


def _named(state: DreamState) -> dict[str, Tensor]:
    return {"".join(str(key) for key in path).lstrip("."): leaf for path, leaf in tree_flatten_with_path(state)[0]}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _on(device: torch.device, state: EnvState) -> EnvState:
    dream, frame = tree_map(lambda tensor: tensor.to(device), (state.dream, state.frame))
    return replace(state, dream=dream, frame=frame)
