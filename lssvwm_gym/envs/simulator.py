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

from lssvwm_gym.checkpoints.checkpoint import Weights, load_prepacked
from lssvwm_gym.envs.contexts import LongWalks, choose_past, walked
from lssvwm_gym.heap import keep_freed_memory
from lssvwm_gym.io import legacy
from lssvwm_gym.models.inference.backend import FLOAT32, PLAIN, Backend, Precision, chosen_backend, chosen_device, chosen_precision
from lssvwm_gym.models.inference.compile import compile_step
from lssvwm_gym.models.rollout import DreamState, commit, first_state, follow, frame_noise, imagine, remember, step_of, unknown_action
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import join_rows
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.worlds import WORLDS, WorldSpec, weights_of

SAMPLING_STEPS = {"fast": 1, "balanced": 2, "quality": 4}  # denoising passes a frame, by profile
TOGETHER = 128  # frames remembered in one go
WALKS_KEPT = 16  # states of some MB

log = logging.getLogger("lssvwm_gym")


@dataclass(frozen=True, eq=False)
class Dream:
    """A world, its weights and a profile. Has no state of its own, so any number of environments may share it."""

    world: WorldSpec
    weights: Weights
    profile: str
    arithmetic: Precision = FLOAT32
    backend: Backend = PLAIN

    @property
    def device(self) -> torch.device:
        """Where its weights lie, and its states."""
        return self.weights.world_model.token_in.weight.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all weights: a state means something to the model it came from only."""
        return self._hash(repr(self.weights.world_model.config))

    @functools.cached_property
    def fingerprint_before(self) -> str:
        """The same as version 0.1 worked it out, for states that it saved."""
        return self._hash(legacy.sizes_said_before(self.weights.world_model.config))

    def _hash(self, sizes: str) -> str:
        digest = hashlib.sha256()
        for model, said in ((self.weights.autoencoder, repr(self.weights.autoencoder.config)), (self.weights.world_model, sizes)):
            digest.update(said.encode())
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
        `lssvwm_gym.envs.contexts`. Raises `ValueError` for options that can't be met.
        """
        state = self.begin(seeds, options)
        return state, self.frame(state)

    @torch.no_grad()
    def step(self, state: DreamState, action: Tensor) -> tuple[DreamState, Tensor, Tensor, Tensor, dict[str, np.ndarray]]:
        """Dream one frame on, for actions (B,) int64.

        Returns the next state, the frame (B, height, width, 3) uint8, and on the CPU the reward (B,) float64, whether the
        episode ended (B,) bool, and `info`.
        """
        state, reward, terminated, info = self.go_on(state, action)
        return state, self.frame(state), reward, terminated, info

    @torch.no_grad()
    def begin(self, seeds: Tensor, options: Mapping[str, Any] | None = None) -> DreamState:
        """`reset` without the frame, which spares the decoder."""
        past = choose_past(self.weights, seeds, options)
        if isinstance(past, LongWalks):
            return join_rows([self._after_walk(walk, past.frames) for walk in past.walks])._replace(seed=seeds.to(self.device))
        return self._first_imagined(self.empty(seeds)) if past is None else self.remember(seeds, past)

    def _after_walk(self, walk: int, frames: int) -> DreamState:
        """The state after so many frames of one of the long walks; some are kept, for to remember so much takes a second or more."""
        if (walk, frames) not in self._walked:
            if len(self._walked) >= WALKS_KEPT:
                self._walked.pop(next(iter(self._walked)))
            self._walked[walk, frames] = self.remember(torch.tensor([0]), walked(self.weights.long_contexts, walk, frames))
        return self._walked[walk, frames]

    @functools.cached_property
    def _walked(self) -> dict[tuple[int, int], DreamState]:
        return {}

    @torch.no_grad()
    def remember(self, seeds: Tensor, past: Segment) -> DreamState:
        """The state after real frames, for seeds (B,) int64: at their poses, or where no row has any, wherever the model finds itself."""
        model, state = self.weights.world_model, self.empty(seeds)
        if past.inventory.shape[-1]:
            state = state._replace(inventory=past.inventory[:, 0])
        if model.config.has_spatial_memory and not past.pose_known.any():  # an episode without poses: the model finds its own way
            for latent, action in zip(past.latent.unbind(1), past.action.unbind(1), strict=True):
                state = follow(model, state, latent, action)
            return state
        state = state._replace(pose_known=past.pose_known[:, 0])
        for parts in zip(*(x.split(TOGETHER, 1) for x in (past.latent, past.action, past.pose, past.inventory)), strict=True):
            state = remember(model, state, *parts)
        return state

    @torch.no_grad()
    def go_on(self, state: DreamState, action: Tensor) -> tuple[DreamState, Tensor, Tensor, dict[str, np.ndarray]]:
        """`step` without the frame, which spares the decoder: the next state, reward, whether the episode ended, and `info`."""
        model = self.weights.world_model
        before, (state, reward_logits) = state, self.advance(state, action.to(self.device), frame_noise(state, model))
        reward = self._reward(before, state, reward_logits)
        if model.termination_head is None:
            terminated = torch.zeros(len(reward), dtype=torch.bool)
        else:
            terminated = model.termination_head(state.features)[:, 0].cpu() > 0
        return state, reward, terminated, self._info(state, reward_logits)

    @torch.no_grad()
    def advance(self, state: DreamState, action: Tensor, noise: Tensor) -> tuple[DreamState, Tensor]:
        """The next state and logits of the reward values (B, K), for actions and noise (B, N, C) on the device; waits for nothing."""
        model, step = self.weights.world_model, step_of(SAMPLING_STEPS[self.profile])
        return compile_step(step, model, self.backend)(model, state, action, noise)

    @torch.no_grad()
    def frame(self, state: DreamState) -> Tensor:
        """The picture of the last committed frame, uint8 (B, height, width, 3)."""
        return self.weights.autoencoder.decode(state.latent)

    @torch.no_grad()
    def info(self, state: DreamState) -> dict[str, np.ndarray]:
        """What the dream knows beside the frame, first axis B.

        `age`: int64, frames in its memory. `reward_probability`: float64, that this frame pays other than nothing.
        `estimated_pose`: float32 (B, 4), where it believes to be as x, y, cos heading, sin heading, in space (B, 6) with height and
        tilt behind, seen from the first frame that it remembers; and `familiarity`: float64, 0..1, how well it knew this place
        before this frame; both only in worlds whose model keeps poses. `uncertainty`: float64, how much the passes over this frame
        disagreed (mean square, in latent units), high where the frame is likely wrong; 0 for a given frame, and only with
        profiles of more than one pass. `inventory`: int32 (B, V), the world's counts, where it has any.
        """
        return self._info(state, self.weights.world_model.reward_head(state.features))

    def _info(self, state: DreamState, reward_logits: Tensor) -> dict[str, np.ndarray]:
        pays = torch.tensor([value != 0 for value in self.world.reward_values])
        probability = reward_logits.softmax(-1).cpu()[:, pays].sum(-1)
        numbers = {"age": state.world.age.cpu().numpy(), "reward_probability": probability.double().numpy()}
        if self.weights.world_model.config.has_spatial_memory:
            numbers["estimated_pose"] = state.pose.cpu().numpy()
            numbers["familiarity"] = 1 - state.posterior_variance.double().cpu().numpy()
        if self.world.inventory:
            numbers["inventory"] = state.inventory.clamp(max=self.world.max_inventory).cpu().numpy().astype(np.int32)
        if SAMPLING_STEPS[self.profile] > 1:
            numbers["uncertainty"] = state.uncertainty.double().cpu().numpy()
        return {name: number.copy() for name, number in numbers.items()}

    def _reward(self, before: DreamState, state: DreamState, reward_logits: Tensor) -> Tensor:
        """What the last step paid, (B,) float64 on the CPU; `reward_logits` are logits of the reward values, (B, K)."""
        if self.world.milestones:
            pays = dict(self.world.milestones)
            values = torch.tensor([pays.get(name, 0.0) for name in self.world.inventory], dtype=torch.float64)
            return ((before.inventory_peak == 0) & (state.inventory_peak > 0)).cpu().double() @ values
        return torch.tensor(self.world.reward_values, dtype=torch.float64)[reward_logits.argmax(-1).cpu()]

    def _first_imagined(self, state: DreamState) -> DreamState:
        model = self.weights.world_model
        state = state._replace(pose_known=torch.full_like(state.pose_known, float(model.config.has_spatial_memory)))
        posterior_variance = unknown_action(model, len(state.seed))
        return commit(model, state, posterior_variance, imagine(model, state, posterior_variance, SAMPLING_STEPS[self.profile]))

    def __deepcopy__(self, memo: dict[int, Any]) -> Dream:
        return self  # nothing in it changes, so copies of an environment share it

    def __repr__(self) -> str:
        how = dict(world=self.world.name, profile=self.profile, device=self.device, dtype=self.arithmetic, backend=self.backend)
        return f"Dream({', '.join(f'{name}={str(value)!r}' for name, value in how.items())})"


def open_dream(
    world: str | WorldSpec,
    profile: str = "balanced",
    device: str = "auto",
    weights: str | Path | None = None,
    dtype: str = "auto",
    backend: str | Backend = "auto",
) -> Dream:
    """Load a world's weights, once a process, or those in another folder, or others that ship with it ("sharp" of memory-maze).

    `dtype`, of products with weights on a CPU: "float32", "bfloat16", or "auto", which dreams in float32 and decodes pictures
    in bfloat16 where the processor multiplies in it. Weights are laid out for dreaming as they are now: to change them, write
    a folder of them. `backend`, of scans: "torch", "mamba" for mamba-ssm's kernels on CUDA, or "auto", which takes those where
    they are installed; or "compiled", for steps that are compiled on a CPU when the first one is taken; a `Backend` says more.
    Raises `ValueError` for a world, profile, device, dtype or backend that doesn't exist here and for weights that don't fit the
    world, `ImportError` for "mamba" where mamba-ssm is missing, `RuntimeError` for "compiled" where there is no C++ compiler.
    """
    world = _known(world)
    if profile not in SAMPLING_STEPS:
        raise ValueError(f"profile must be one of {', '.join(SAMPLING_STEPS)}, not {profile!r}")
    chosen = chosen_device(device)
    if chosen == "cpu":
        keep_freed_memory()
    folder = weights_of(world, weights)
    arithmetic, computed = chosen_precision(dtype, chosen), chosen_backend(backend, chosen)
    dream = Dream(world, load_prepacked(folder, chosen, arithmetic, computed), profile, arithmetic, computed)
    _check_fit(dream, folder)
    _announce(chosen)
    return dream


def _known(world: str | WorldSpec) -> WorldSpec:
    if isinstance(world, WorldSpec):
        return world
    if world not in WORLDS:
        raise ValueError(f"world must be one of {', '.join(WORLDS)} or a World, not {world!r}")
    return WORLDS[world]


def _check_fit(dream: Dream, folder: Path) -> None:
    world, image, model = dream.world, dream.weights.autoencoder.config, dream.weights.world_model.config
    for what, found, needed in (
        ("numbers an action" if world.continuous else "actions", *_actions(world, model)),
        ("reward values", model.reward_values, len(world.reward_values)),
        ("pixels a side", image.image_size, world.image_size),
        ("tokens a frame in the world model", model.tokens, image.tokens),
        ("latent channels in the world model", model.latent_channels, image.latent_channels),
        ("frames of attention at once", model.chunk, 1),
        ("counts", model.inventory_size, len(world.inventory)),
    ):
        if found != needed:
            raise ValueError(f"{folder}: weights of {found} {what}, but a dream of {world.name} needs {needed}")


def _actions(world: WorldSpec, model: WorldModelConfig) -> tuple[int, int]:
    """Actions, or numbers of a continuous one, that the model has, and that the world needs."""
    return model.action_size if world.continuous else model.actions, len(world.actions)


@functools.cache
def _announce(device: str) -> None:
    log.info("dreaming on %s", device)
