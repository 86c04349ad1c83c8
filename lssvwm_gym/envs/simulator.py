"""A dream as pure functions of a state, over a batch of rows and in tensors alone. The environments are thin shells around it.

dream = open_dream("memory-maze")
state = dream.reset(torch.tensor([7, 8]))                                # two dreams
state, reward, terminated, *_ = dream.step(state, torch.tensor([1, 1]))
picture = dream.frame(state)                                             # uint8 (2, 64, 64, 3)
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.checkpoints.checkpoint import Weights, load_prepacked
from lssvwm_gym.envs.profiles import DEFAULT, checked_profile, sampling_steps
from lssvwm_gym.envs.reset_options import LongContexts, choose_past, recorded, split_inventory
from lssvwm_gym.envs.rewards import reward, reward_probability, terminated
from lssvwm_gym.envs.spaces import arrays, inventory_of
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import independent
from lssvwm_gym.models.chance import frame_noise
from lssvwm_gym.models.inference.backend import FLOAT32, PLAIN, Backend, Precision, chosen_backend, chosen_device, chosen_precision
from lssvwm_gym.models.inference.compile import compile_step
from lssvwm_gym.models.rollout import Prefilled, commit, first_state, imagine, prefill, step_of, unknown_action, with_layout
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState, join_rows
from lssvwm_gym.worlds import WORLDS, WorldSpec, has_record, read_world, weights_of

CONTEXTS_KEPT = 16  # states of some MB

log = logging.getLogger("lssvwm_gym")


class Step(NamedTuple):
    """What a step led to, on the dream's device."""

    state: DreamState
    reward: Tensor  # (B,) float64
    terminated: Tensor  # (B,) bool
    reward_logits: Tensor  # (B, K) of the world's reward values, or of the world model's bins
    termination_probability: Tensor  # (B,) with which `terminated` was drawn


@legacy.keywords(legacy.DREAM)
@dataclass(frozen=True, eq=False)
class Dream:
    """A world, its weights and a profile. Has no state of its own, so any number of environments may share it."""

    world: WorldSpec
    weights: Weights
    profile: str
    precision: Precision = FLOAT32
    backend: Backend = PLAIN

    @property
    def device(self) -> torch.device:
        """Where its weights lie, and its states."""
        return self.weights.world_model.token_in.weight.device

    @property
    def sampling_steps(self) -> int:
        """Denoising steps a frame."""
        return sampling_steps(self.weights.world_model, self.profile)

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

    @independent
    def empty(self, seeds: Tensor) -> DreamState:
        """The state before any frame, for seeds (B,) int64."""
        return first_state(self.weights.world_model, seeds.to(self.device))

    @independent
    @torch.no_grad()
    def reset(self, seeds: Tensor, options: Mapping[str, Any] | None = None) -> DreamState:
        """Begin a dream a row; nothing is decoded, `frame` does that.

        seeds (B,) int64, 0..2**32-1, decide each row's context and noise. The options are the same for all rows; see
        `lssvwm_gym.envs.reset_options`. Raises `ValueError` for options that can't be met.
        """
        options, inventory = split_inventory(self.world, self.weights, options)
        past = choose_past(self.weights, seeds, options)
        if isinstance(past, LongContexts):
            state = join_rows([self._after_context(context, past.frames) for context in past.contexts])
            state = with_layout(self.weights.world_model, state._replace(seed=seeds.to(self.device)))
        else:
            state = self._first_imagined(self.empty(seeds)) if past is None else self.prefill(seeds, past)
        if inventory is not None:  # what the past had reached counts no more: the episode begins with this
            carried = inventory.to(state.inventory).expand_as(state.inventory).clone()
            state = state._replace(inventory=carried, inventory_peak=carried.clone())
        return state

    @independent
    @torch.no_grad()
    def step(self, state: DreamState, action: Tensor, noise: Tensor | None = None) -> Step:
        """Dream one frame on, for actions (B,) int64, or (B, A) float32; nothing is decoded, `frame` does that.

        The noise (B, N, C) is `frame_noise`'s unless another is given. With noise and actions on the device it waits for nothing.
        """
        model, step = self.weights.world_model, step_of(self.sampling_steps)
        step, action = compile_step(step, model, self.backend), action.to(self.device)
        noise = frame_noise(state, model) if noise is None else noise
        features = state.features if model.termination_head is None else state.features.clone()  # a recorded step writes where the last did
        after, reward_logits = step(model, state, action, noise)
        paid = reward(self.world, state, after, reward_logits, bins=model.reward_bins)
        ended, probability = terminated(model, features, action, after, noise)
        return Step(after, paid, ended, reward_logits, probability)

    @functools.cached_property
    def _after_context(self) -> Callable[[int, int], DreamState]:
        """The state after so many frames of a long context; some are kept, for each takes a second or more."""
        contexts = self.weights.long_contexts
        kept = functools.lru_cache(CONTEXTS_KEPT)
        return kept(lambda context, frames: self.prefill(torch.tensor([0]), recorded(contexts, [context], frames)))

    def prefill(self, seeds: Tensor, past: Segment) -> DreamState:
        """The state after real frames, for seeds (B,) int64: at their poses, or where no row has any, wherever the model finds itself."""
        return self.prefilled(seeds, past).state

    @independent
    @torch.no_grad()
    def prefilled(self, seeds: Tensor, past: Segment) -> Prefilled:
        """`prefill`, and the features and poses of every frame on the way."""
        model, state = self.weights.world_model, self.empty(seeds)
        if past.inventory.shape[-1]:
            reached = state.inventory_peak if past.inventory_peak is None else past.inventory_peak[:, 0]
            state = state._replace(inventory=past.inventory[:, 0], inventory_peak=reached)
        if model.config.has_spatial_memory and not past.pose_known.any():  # an episode without poses: they are estimated
            return prefill(model, state, past.latent, past.action)
        state = state._replace(pose_known=past.pose_known[:, 0])
        return prefill(model, state, past.latent, past.action, past.pose, past.inventory)

    @independent
    @torch.no_grad()
    def frame(self, state: DreamState) -> Tensor:
        """The picture of the last committed frame, uint8 (B, height, width, 3)."""
        return self.weights.autoencoder.decode(state.latent)

    @independent
    @torch.no_grad()
    def info(self, state: DreamState, step: Step | None = None) -> dict[str, Tensor]:
        """What the dream knows beside the frame, as `DreamEnv` lists it: copies on the device, first axis B, int64 for `age`, int32 for an
        `inventory` of counts, else float32. `step` is that which led there."""
        logits = self.weights.world_model.reward_head(state.features) if step is None else step.reward_logits
        numbers = {"age": state.world.age, "reward_probability": reward_probability(self.world, logits)}
        if self.weights.world_model.config.has_spatial_memory:
            numbers["estimated_pose"] = state.pose
            numbers["familiarity"] = 1 - state.posterior_variance
        if self.world.inventory:
            numbers["inventory"] = inventory_of(self.world, state)
        if self.weights.world_model.termination_head is not None:
            numbers["termination_probability"] = torch.zeros_like(state.uncertainty) if step is None else step.termination_probability
        if self.sampling_steps > 1:
            numbers["uncertainty"] = state.uncertainty
        return {name: number.clone() for name, number in numbers.items()}

    def _first_imagined(self, state: DreamState) -> DreamState:
        model, contexts = self.weights.world_model, self.weights.short_contexts
        state = state._replace(pose_known=torch.full_like(state.pose_known, float(model.config.has_spatial_memory)))
        if model.config.inventory_changes and contexts.batch:  # counts begin with nothing, other numbers as in a real episode
            state = state._replace(inventory=contexts.inventory[:1, 0].to(state.inventory).expand_as(state.inventory))
        action, state = unknown_action(model, len(state.seed)), with_layout(model, state)
        imagined = imagine(model, state, action, self.sampling_steps)
        if model.map_reader is not None and model.compass_head is not None and model.layout_model is None:
            seen = model.compass_head.found(state.pose[:, None], imagined.latent[:, None], state.lattice, state.world.age)
            state = state._replace(lattice=seen)
        return commit(model, state, action, imagined)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return legacy.attribute(self, name, legacy.DREAM)

    def go_on(self, state: DreamState, action: Tensor) -> tuple[DreamState, Tensor, Tensor, dict[str, np.ndarray]]:
        """`step` as it was: the next state, and on the CPU its reward, whether the episode ended, and `info` as arrays."""
        legacy.warn("Dream.go_on", "Dream.step")
        step = self.step(state, action)
        return step.state, step.reward.cpu(), step.terminated.cpu(), arrays(self.info(step.state, step))

    def __deepcopy__(self, memo: dict[int, Any]) -> Dream:
        return self  # nothing in it changes, so copies of an environment share it

    def __repr__(self) -> str:
        how = dict(world=self.world.name, profile=self.profile, device=self.device, dtype=self.precision, backend=self.backend)
        return f"Dream({', '.join(f'{name}={str(value)!r}' for name, value in how.items())})"


@independent
def open_dream(
    world: str | WorldSpec,
    profile: str = DEFAULT,
    device: str = "auto",
    weights: str | Path | None = None,
    dtype: str = "auto",
    backend: str | Backend = "auto",
) -> Dream:
    """Load a world's weights, once a process, or those in another folder.

    `dtype`, of products with weights on a CPU: "float32", "bfloat16", or "auto", which dreams in float32 and decodes pictures
    in bfloat16 where the processor multiplies in it. Weights are laid out for dreaming as they are now: to change them, write
    a folder of them. `backend`: "auto" or "torch" for eager PyTorch, "mamba" for scans by mamba-ssm's kernels on CUDA, "compiled" for
    steps that are compiled on a CPU when the first one is taken; a `Backend` says more.
    Raises `ValueError` for a world, profile, device, dtype or backend that doesn't exist here and for weights that don't fit the
    world, `ImportError` for "mamba" where mamba-ssm is missing, `RuntimeError` for "compiled" where there is no C++ compiler.
    """
    if not isinstance(world, WorldSpec):
        if world not in WORLDS:
            raise ValueError(f"world must be one of {', '.join(WORLDS)} or a WorldSpec, not {world!r}")
        world = WORLDS[world]
    checked_profile(profile)
    chosen = chosen_device(device)
    folder = weights_of(world, weights)
    precision, computed = chosen_precision(dtype, chosen), chosen_backend(backend, chosen)
    dream = Dream(world, load_prepacked(folder, chosen, precision, computed), profile, precision, computed)
    _check_fit(dream, folder)
    _announce(chosen)
    return dream


def _check_fit(dream: Dream, folder: Path) -> None:
    world, image, model = dream.world, dream.weights.autoencoder.config, dream.weights.world_model.config
    actions = model.action_size if world.continuous else model.actions
    for what, found, needed in (
        ("numbers an action" if world.continuous else "actions", actions, len(world.actions)),
        ("reward values", 0 if model.reward_bins else model.reward_values, len(world.reward_values)),
        ("pixels a side", image.image_size, world.image_size),
        ("tokens a frame in the world model", model.tokens, image.tokens),
        ("latent channels in the world model", model.latent_channels, image.latent_channels),
        ("frames of attention at once", model.chunk, 1),
        ("counts", model.inventory_size, len(world.inventory)),
    ):
        if found != needed:
            told = read_world(folder).name if has_record(folder) else world.name
            whose = f"; its world.json says that they dream {told}" if told != world.name else ""
            raise ValueError(f"{folder}: weights of {found} {what}, but a dream of {world.name} needs {needed}{whose}")


@functools.cache
def _announce(device: str) -> None:
    log.info("dreaming on %s", device)
