"""A dream as pure functions of a state: `reset` and `step` over a batch of rows. The environments are thin shells around it.

dream = open_dream("memory-maze")
state, frame = dream.reset(torch.tensor([7, 8]))                                # two dreams
state, frame, reward, terminated, info = dream.step(state, torch.tensor([1, 1]))
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.device import chosen_device
from lssvwm_gym.envs.starting import Past, choose_past
from lssvwm_gym.heap import keep_heap
from lssvwm_gym.models.arithmetic import FLOAT32, Arithmetic, chosen_arithmetic, load_arranged
from lssvwm_gym.models.dreaming import DreamState, commit, first_state, follow, imagine, remember
from lssvwm_gym.models.weights import Weights
from lssvwm_gym.worlds import WORLDS, World

SAMPLING_STEPS = {"fast": 1, "balanced": 2, "quality": 4}  # denoising passes a frame, by profile
TOGETHER = 128  # frames remembered in one go

log = logging.getLogger("lssvwm_gym")


@dataclass(frozen=True, eq=False)
class Dream:
    """A world, its weights and a profile. Has no state of its own, so any number of environments may share it."""

    world: World
    weights: Weights
    profile: str
    arithmetic: Arithmetic = FLOAT32

    @property
    def device(self) -> torch.device:
        return self.weights.world_model.token_in.weight.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all weights: a state means something to the model it came from only."""
        digest = hashlib.sha256()
        for model in (self.weights.autoencoder, self.weights.world_model):
            digest.update(repr(model.config).encode())
            for tensor in model.state_dict().values():
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def empty(self, seeds: Tensor) -> DreamState:
        """The state before any frame, for seeds (B,) int64."""
        return first_state(self.weights.world_model, seeds.to(self.device))

    @torch.no_grad()
    def reset(self, seeds: Tensor, options: Mapping[str, Any] | None = None) -> tuple[DreamState, Tensor]:
        """Begin a dream a row: its state and first frame, uint8 (B, height, width, 3).

        seeds (B,) int64, 0..2**32-1, decide each row's start and noise. The options are the same for all rows; see
        `lssvwm_gym.envs.starting`. Raises `ValueError` for options that can't be met.
        """
        past = choose_past(self.weights, seeds, options)
        state = self.empty(seeds)
        state = self._first_imagined(state) if past is None else self._remembering(state, past)
        return state, self.weights.autoencoder.decode(state.latent)

    @torch.no_grad()
    def step(self, state: DreamState, action: Tensor) -> tuple[DreamState, Tensor, Tensor, Tensor, dict[str, np.ndarray]]:
        """Dream one frame on, for actions (B,) int64.

        Returns the next state, the frame (B, height, width, 3) uint8, and on the CPU the reward (B,) float64, whether the
        episode ended (B,) bool, and `info`.
        """
        before, state = state, self._next(state, action.to(self.device))
        model, frame = self.weights.world_model, self.weights.autoencoder.decode(state.latent)
        judged = model.reward_head(state.features)
        reward = self._reward(before, state, judged)
        if model.termination_head is None:
            terminated = torch.zeros(len(reward), dtype=torch.bool)
        else:
            terminated = model.termination_head(state.features)[:, 0].cpu() > 0
        return state, frame, reward, terminated, self._info(state, judged)

    @torch.no_grad()
    def info(self, state: DreamState) -> dict[str, np.ndarray]:
        """What the dream knows beside the frame, first axis B.

        `age`: int64, frames in its memory. `reward_probability`: float64, that this frame pays other than nothing.
        `believed_pose`: float32 (B, 4), where it believes to be as x, y, cos heading, sin heading, in space (B, 6) with height and
        tilt behind, seen from the first frame that it remembers; and `familiarity`: float64, 0..1, how well it knew this place
        before this frame; both only in worlds whose model keeps poses. `uncertainty`: float64, how much the passes over this frame
        disagreed (mean square, in latent units), high where the frame is likely wrong; 0 for a given frame, and only with
        profiles of more than one pass. `inventory`: int32 (B, V), the world's counts, where it has any.
        """
        return self._info(state, self.weights.world_model.reward_head(state.features))

    def _info(self, state: DreamState, judged: Tensor) -> dict[str, np.ndarray]:
        pays = torch.tensor([value != 0 for value in self.world.reward_values])
        probability = judged.softmax(-1).cpu()[:, pays].sum(-1)
        numbers = {"age": state.world.age.cpu().numpy(), "reward_probability": probability.double().numpy()}
        if self.weights.world_model.config.has_places:
            numbers["believed_pose"] = state.pose.cpu().numpy()
            numbers["familiarity"] = 1 - state.unknown.double().cpu().numpy()
        if self.world.counts:
            numbers["inventory"] = state.vector.cpu().numpy().astype(np.int32)
        if SAMPLING_STEPS[self.profile] > 1:
            numbers["uncertainty"] = state.uncertainty.double().cpu().numpy()
        return {name: number.copy() for name, number in numbers.items()}

    def _reward(self, before: DreamState, state: DreamState, judged: Tensor) -> Tensor:
        """What the last step paid, (B,) float64 on the CPU; `judged` are logits of the reward values, (B, K)."""
        if self.world.milestones:
            pays = dict(self.world.milestones)
            values = torch.tensor([pays.get(name, 0.0) for name in self.world.counts], dtype=torch.float64)
            return ((before.peak == 0) & (state.peak > 0)).cpu().double() @ values
        return torch.tensor(self.world.reward_values, dtype=torch.float64)[judged.argmax(-1).cpu()]

    def _next(self, state: DreamState, action: Tensor) -> DreamState:
        model = self.weights.world_model
        return commit(model, state, action, imagine(model, state, action, SAMPLING_STEPS[self.profile]))

    def _first_imagined(self, state: DreamState) -> DreamState:
        unknown = torch.full_like(state.seed, self.weights.world_model.config.actions)
        return self._next(
            state._replace(pose_known=torch.full_like(state.pose_known, float(self.weights.world_model.config.has_places))), unknown
        )

    def _remembering(self, state: DreamState, past: Past) -> DreamState:
        model = self.weights.world_model
        if past.vector.shape[-1]:
            state = state._replace(vector=past.vector[:, 0])
        if model.config.has_places and not past.pose_known.any():  # an episode without poses: the model finds its own way
            for latent, action in zip(past.latent.unbind(1), past.action.unbind(1), strict=True):
                state = follow(model, state, latent, action)
            return state
        state = state._replace(pose_known=past.pose_known)
        for parts in zip(*(x.split(TOGETHER, 1) for x in (past.latent, past.action, past.pose, past.vector)), strict=True):
            state = remember(model, state, *parts)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Dream:
        return self  # nothing in it changes, so copies of an environment share it

    def __repr__(self) -> str:
        return f"Dream(world={self.world.name!r}, profile={self.profile!r}, device={str(self.device)!r}, dtype={str(self.arithmetic)!r})"


def open_dream(
    world: str | World, profile: str = "balanced", device: str = "auto", weights: str | Path | None = None, dtype: str = "auto"
) -> Dream:
    """Load a world's weights, once a process, or those in another folder.

    `dtype`, of products with weights on a CPU: "float32", "bfloat16", or "auto", which dreams in float32 and decodes pictures
    in bfloat16 where the processor multiplies in it. Weights are laid out for dreaming as they are now: to change them, write
    a folder of them. Raises `ValueError` for a world, profile, device or dtype that doesn't exist and for weights that don't
    fit the world.
    """
    world = _known(world)
    if profile not in SAMPLING_STEPS:
        raise ValueError(f"profile must be one of {', '.join(SAMPLING_STEPS)}, not {profile!r}")
    chosen = chosen_device(device)
    if chosen == "cpu":
        keep_heap()
    folder = world.weights if weights is None else Path(weights)
    arithmetic = chosen_arithmetic(dtype, chosen)
    dream = Dream(world, load_arranged(folder, chosen, arithmetic), profile, arithmetic)
    _check_fit(dream, folder)
    _announce(chosen)
    return dream


def _known(world: str | World) -> World:
    if isinstance(world, World):
        return world
    if world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)} or a World, not {world!r}")
    return WORLDS[world]


def _check_fit(dream: Dream, folder: Path) -> None:
    world, image, model = dream.world, dream.weights.autoencoder.config, dream.weights.world_model.config
    for what, found, needed in (
        ("actions", model.actions, len(world.actions)),
        ("reward values", model.reward_values, len(world.reward_values)),
        ("pixels a side", image.image_size, world.image_size),
        ("tokens a frame in the world model", model.tokens, image.tokens),
        ("latent channels in the world model", model.latent_channels, image.latent_channels),
        ("frames of attention at once", model.chunk, 1),
        ("counts", model.vector_size, len(world.counts)),
    ):
        if found != needed:
            raise ValueError(f"{folder}: weights of {found} {what}, but a dream of {world.name} needs {needed}")


@functools.cache
def _announce(device: str) -> None:
    log.info("dreaming on %s", device)
