"""The world model: denoises the next frame's latent tokens from the state, the action and, where it is known, the pose.

Source: "Long-Context State-Space Video World Models", arXiv 2505.20171. One layer is block-wise scan, place heads (ours),
frame-local attention, MLP, each under adaptive norm. One forward serves training (hundreds of frames), peeking (a noisy
frame, state thrown away) and committing (a clean frame, state kept).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.attention import FrameAttention
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.conditioning import Conditioning, FrameInputs, head
from lssvwm_gym.models.config import FEATURES, WorldModelConfig
from lssvwm_gym.models.heads import PoseHead, SightHead, VectorHead
from lssvwm_gym.models.read_only import Peeks, committed_mask
from lssvwm_gym.models.spatial_memory import Asked, PlaceHeads, PlaceLatents, PoseKeys, ask, exchange
from lssvwm_gym.models.state import LayerState, PlaceState, WorldState

__all__ = ["FEATURES", "FrameInputs", "WorldModel", "WorldModelConfig", "WorldOutput"]


class WorldOutput(NamedTuple):
    clean: Tensor  # (B, T, N, C) estimate of the clean latents
    features: Tensor  # (B, T, FEATURES) summary of each frame and its past, for the heads and for agents
    unknown: Tensor  # (B, T) how little the memory of places knew of each frame's pose before it: 1 nothing, 0 all
    state: WorldState  # after the last frame


class Foreknown(NamedTuple):
    """What all passes over one frame share: it depends neither on the frame's latent nor on its noise level."""

    condition: Tensor | None  # (B, 1, D) without the noise level
    asked: Asked | None  # of the memory of places before the frame; nothing is written
    recalled: Tensor | None  # (B, 1, N, C) what the memory answers
    tokens: Tensor | None  # (B, 1, N, D) what that adds to the tokens


class WorldModel(nn.Module):
    """Latent frames in, estimates of clean latent frames and the next state out."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_in = nn.Linear(config.latent_channels, width)
        self.token_position = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.condition = Conditioning(config)
        self.pose_keys = (
            PoseKeys(config.place_features, config.place_scales, config.place_noise, config.spatial) if config.has_places else None
        )
        self.place_latents = PlaceLatents(width, config.latent_channels) if config.has_places else None
        layers = [Layer(config, block, place) for block, place in zip(config.blocks, config.place, strict=True)]
        self.layers = nn.ModuleList(layers)
        self.token_out = nn.Linear(width, config.latent_channels)
        self.summary = nn.Linear(width, FEATURES // config.tokens)
        self.reward_head = head(FEATURES, config.reward_values)
        self.pose_head = PoseHead(config)
        self.sight_head = SightHead(config)
        self.termination_head = head(FEATURES, 1) if config.termination else None
        self.vector_head = VectorHead(config) if config.vector_size else None

    def initial_state(self, rows: int) -> WorldState:
        """The state before the first frame, for `rows` rows."""
        age = torch.zeros(rows, dtype=torch.int64, device=self.token_in.weight.device)
        layers, features = tuple(cast(Layer, layer).initial_state(rows) for layer in self.layers), self.config.place_features
        zeros = self.token_in.weight.new_zeros
        place = PlaceState(zeros(rows, features, features), zeros(rows, self.config.tokens * self.config.latent_channels, features))
        return WorldState(layers, place, age)

    def forward(
        self, latent: Tensor, inputs: FrameInputs, state: WorldState, peeks: Peeks = None, foreknown: Foreknown | None = None
    ) -> WorldOutput:
        """latent (B, T, N, C), as noisy as `inputs.noise` says.

        Frames marked in `peeks`, a bool a frame, see the frames before them that are not marked, and themselves, and are seen
        by none: what a call with that frame alone and the state before it would give. `foreknown` is what `foresee` gave for
        this very frame and state, where several passes are made over one frame.
        """
        condition = F.silu(self.condition(inputs, foreknown and foreknown.condition))
        x = self.token_in(latent) + self.token_position
        asked, place, recalled = None, state.place, None
        if self.place_latents is not None:
            asked, known = self._ask(inputs, state.place.known, peeks, foreknown and foreknown.asked)
            recalled = foreknown and foreknown.recalled
            recalled, latents = exchange(asked, latent.flatten(2), state.place.latents, None if recalled is None else recalled.flatten(2))
            recalled, place = recalled.view_as(latent), PlaceState(known, latents)
            tokens = foreknown and foreknown.tokens
            x = x + (self.place_latents.into_tokens(recalled, asked.unknown) if tokens is None else tokens)
        x, after = self.through_layers(x, condition, asked, state, peeks)
        committed = latent.shape[1] if peeks is None else peeks.count(False)
        x = F.layer_norm(x, x.shape[-1:])
        features = F.layer_norm(self.summary(x).flatten(2), (FEATURES,))
        clean = self.token_out(x)
        if self.place_latents is not None and recalled is not None:
            clean = clean + self.place_latents.into_estimate(x, recalled)
        unknown = torch.ones_like(inputs.noise) if asked is None else asked.unknown
        return WorldOutput(clean, features, unknown, WorldState(tuple(after), place, state.age + committed))

    def foresee(self, inputs: FrameInputs, state: WorldState) -> Foreknown:
        """What passes over one frame share, for inputs (B, 1) of any noise level and the state before the frame."""
        condition = self.condition.but_noise(inputs)
        if self.place_latents is None:
            return Foreknown(condition, None, None, None)
        asked, _ = self._ask(inputs, state.place.known, (True,))
        recalled, _ = exchange(asked, state.place.latents.new_empty(0), state.place.latents)
        recalled = recalled.unflatten(2, (self.config.tokens, -1))
        return Foreknown(condition, asked, recalled, self.place_latents.into_tokens(recalled, asked.unknown))

    def through_layers(
        self, x: Tensor, condition: Tensor, asked: Asked | None, state: WorldState, peeks: Peeks
    ) -> tuple[Tensor, list[LayerState]]:
        """x (B, T, N, D) under conditions (B, T, D); returns x of the same shape and the layers' states after."""
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer(x, condition, asked, before, peeks)
            after.append(layer_state)
        return x, after

    def _ask(self, inputs: FrameInputs, known: Tensor, peeks: Peeks, before: Asked | None = None) -> tuple[Asked, Tensor]:
        """How each frame reads from the memory of places, and what is known after; noisy frames and unknown poses leave no trace."""
        assert self.pose_keys is not None
        writes = None
        if peeks is None or not all(peeks):
            writes = (inputs.noise == 0).to(known.dtype) * inputs.pose_known
            writes = writes if peeks is None else writes * committed_mask(peeks, writes.device)
        elif before is not None:
            return before, known
        with torch.autocast(known.device.type, enabled=False):
            keys = self.pose_keys(inputs.pose) * inputs.pose_known.unsqueeze(-1)
            asked, known = ask(keys, writes, known, before and before.query)
        return asked._replace(unknown=1 - inputs.pose_known * (1 - asked.unknown)), known


class Layer(nn.Module):
    """Block-wise scan, place heads where the layer has them, frame-local attention, MLP; each under adaptive norm."""

    def __init__(self, config: WorldModelConfig, block: tuple[int, int], place: bool) -> None:
        super().__init__()
        width = config.width
        self.scan = BlockScan(width, config.grid, block, config.d_state, config.head_width, config.d_conv) if config.d_state else None
        self.place = PlaceHeads(width, config.place_width) if place else None
        self.place_memory = (config.tokens * config.place_width, config.place_features)
        self.attention = FrameAttention(width, config.tokens, config.heads, config.window, config.chunk) if config.heads else None
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp * width), nn.SiLU(), nn.Linear(config.mlp * width, width))
        self.modulation = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def initial_state(self, rows: int) -> LayerState:
        nothing = self.modulation.weight.new_zeros(rows, 0)
        ssm, conv = (nothing, nothing) if self.scan is None else self.scan.initial_state(rows)
        place = nothing if self.place is None else nothing.new_zeros(rows, *self.place_memory)
        keys, values = (nothing, nothing) if self.attention is None else self.attention.initial_state(rows)
        return LayerState(ssm, conv, place, keys, values)

    def forward(
        self, x: Tensor, condition: Tensor, asked: Asked | None, state: LayerState, peeks: Peeks = None
    ) -> tuple[Tensor, LayerState]:
        modulation = self.modulation(condition).view(*x.shape[:2], 1, 9, -1)
        shift, _, _, shift2, _, _, shift3, _, _ = modulation.unbind(-2)
        _, scale, gate, _, scale2, gate2, _, scale3, gate3 = (1 + modulation).unbind(-2)
        ssm, conv, place, keys, values = state
        y = _modulated(x, shift, scale)
        mixed = torch.zeros_like(x)
        if self.scan is not None:
            mixed, ssm, conv = self.scan(y, ssm, conv, peeks)
        if self.place is not None and asked is not None:
            recalled, place = self.place(y, asked, place)
            mixed = mixed + recalled
        x = torch.addcmul(x, mixed, gate)
        if self.attention is not None:
            seen, keys, values = self.attention(_modulated(x, shift2, scale2), keys, values, peeks)
            x = torch.addcmul(x, seen, gate2)
        x = torch.addcmul(x, self.mlp(_modulated(x, shift3, scale3)), gate3)
        return x, LayerState(ssm, conv, place, keys, values)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
