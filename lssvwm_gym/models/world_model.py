"""The world model: denoises the next frame's latent tokens from the state, the action and, where it is known, the pose.

Source: "Long-Context State-Space Video World Models", arXiv 2505.20171. One layer is block-wise scan, place heads (ours),
frame-local attention, MLP, each under adaptive norm. One forward serves training (hundreds of frames), peeking (a noisy
frame, state thrown away) and committing (a clean frame, state kept).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.layers import BlockScan, FrameAttention, Peeks
from lssvwm_gym.models.place import Asked, PlaceHeads, PlaceLatents, PoseKeys, ask, exchange
from lssvwm_gym.models.state import LayerState, PlaceState, WorldState


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes of the world model; flat, so that a JSON object says all."""

    latent_channels: int = 32  # C
    grid: int = 4  # tokens a side; N = grid * grid
    width: int = 128  # D
    blocks: tuple[tuple[int, int], ...] = ((4, 4), (1, 1), (2, 2), (1, 1))  # block of tokens with a scan of its own, a layer each
    place: tuple[bool, ...] = (False, True, False, True)  # which layers have place heads
    heads: int = 4  # of attention; 0 for none
    head_width: int = 64  # P, of the block-wise scan
    d_state: int = 32  # S; 0 for no block-wise scan
    d_conv: int = 1  # tokens in Mamba-2's short convolution, 4 in the paper; 1 for none: attention sees the neighbours too
    window: int = 4  # W, frames that attention looks back
    chunk: int = 1  # frames that attention sees at once in both directions
    mlp: int = 4  # width of the hidden layer over D
    place_features: int = 512  # F, of the keys of the memory of places; 0 for no such memory
    place_scales: tuple[tuple[float, float], ...] = ((0.35, 0.25), (1.0, 0.5))  # over which views change: units of length, radians
    place_noise: float = 0.05  # variance that a remembered latent is off by, beside the latents' own of 1
    place_width: int = 64  # what a place head remembers of a token
    motion_scale: tuple[float, float, float] = (0.15, 0.05, 0.25)  # typical forward, left, turn a frame
    actions: int = 6  # number of discrete actions; 0 for continuous ones
    action_size: int = 0  # length of a continuous action
    reward_values: int = 2  # classes of the reward head
    termination: bool = False  # whether frames can end the episode
    vector_size: int = 0  # length of a vector that goes with every frame, such as an inventory

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.place):
            raise ValueError(f"blocks has {len(self.blocks)} layers but place has {len(self.place)}")
        if any(self.place) and not self.has_places:
            raise ValueError("place heads need keys: place_features must not be 0")
        if bool(self.actions) == bool(self.action_size):
            raise ValueError(f"either actions or action_size must be set, got {self.actions} and {self.action_size}")

    @property
    def tokens(self) -> int:
        """N, tokens a frame."""
        return self.grid**2

    @property
    def has_places(self) -> bool:
        """Whether there is a memory of places, asked by pose."""
        return self.place_features > 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WorldModelConfig:
        """Rebuild from a parsed JSON object, where tuples have become lists. Unknown keys raise `TypeError`."""
        return cls(**{k: _tuples(v) for k, v in values.items()})


class FrameInputs(NamedTuple):
    """What is known of each frame beside its latent. Entry t speaks of frame t; action t led to it."""

    noise: Tensor  # (B, T) float, 0 clean .. 1 pure noise
    action: Tensor  # (B, T) int64, `config.actions` where unknown; or (B, T, A) float, NaN where unknown
    pose: Tensor  # (B, T, 4) x, y, cos, sin, seen from where the state was empty
    motion: Tensor  # (B, T, 3) forward, left, turn since the frame before
    pose_known: Tensor  # (B, T) float, 1 or 0


class WorldOutput(NamedTuple):
    clean: Tensor  # (B, T, N, C) estimate of the clean latents
    features: Tensor  # (B, T, FEATURES) summary of each frame and its past, for the heads and for agents
    unknown: Tensor  # (B, T) how little the memory of places knew of each frame's pose before it: 1 nothing, 0 all
    state: WorldState  # after the last frame


FEATURES = 256


class WorldModel(nn.Module):
    """Latent frames in, estimates of clean latent frames and the next state out."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.token_in = nn.Linear(config.latent_channels, width)
        self.token_position = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.condition = Conditioning(config)
        self.pose_keys = PoseKeys(config.place_features, config.place_scales, config.place_noise) if config.has_places else None
        self.place_latents = PlaceLatents(width, config.latent_channels) if config.has_places else None
        layers = [Layer(config, block, place) for block, place in zip(config.blocks, config.place, strict=True)]
        self.layers = nn.ModuleList(layers)
        self.token_out = nn.Linear(width, config.latent_channels)
        self.summary = nn.Linear(width, FEATURES // config.tokens)
        self.reward_head = _head(FEATURES, config.reward_values)
        self.pose_head = PoseHead(config)
        self.sight_head = SightHead(config)
        self.termination_head = _head(FEATURES, 1) if config.termination else None
        self.vector_head = _head(FEATURES, config.vector_size) if config.vector_size else None

    def initial_state(self, rows: int) -> WorldState:
        """The state before the first frame, for `rows` rows."""
        age = torch.zeros(rows, dtype=torch.int64, device=self.token_in.weight.device)
        layers, features = tuple(cast(Layer, layer).initial_state(rows) for layer in self.layers), self.config.place_features
        zeros = self.token_in.weight.new_zeros
        place = PlaceState(zeros(rows, features, features), zeros(rows, self.config.tokens * self.config.latent_channels, features))
        return WorldState(layers, place, age)

    def forward(self, latent: Tensor, inputs: FrameInputs, state: WorldState, peeks: Peeks = None) -> WorldOutput:
        """latent (B, T, N, C), as noisy as `inputs.noise` says.

        Frames marked in `peeks`, a bool a frame, see the frames before them that are not marked, and themselves, and are seen
        by none: what a call with that frame alone and the state before it would give.
        """
        condition = F.silu(self.condition(inputs))
        x = self.token_in(latent) + self.token_position
        asked, place, recalled = None, state.place, None
        if self.place_latents is not None:
            asked, known = self._ask(inputs, state.place.known, peeks)
            recalled, latents = exchange(asked, latent.flatten(2), state.place.latents)
            recalled, place = recalled.view_as(latent), PlaceState(known, latents)
            x = x + self.place_latents.into_tokens(recalled, asked.unknown)
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer(x, condition, asked, before, peeks)
            after.append(layer_state)
        committed = latent.shape[1] if peeks is None else peeks.count(False)
        x = F.layer_norm(x, x.shape[-1:])
        features = F.layer_norm(self.summary(x).flatten(2), (FEATURES,))
        clean = self.token_out(x)
        if self.place_latents is not None and recalled is not None:
            clean = clean + self.place_latents.into_estimate(x, recalled)
        unknown = torch.ones_like(inputs.noise) if asked is None else asked.unknown
        return WorldOutput(clean, features, unknown, WorldState(tuple(after), place, state.age + committed))

    def _ask(self, inputs: FrameInputs, known: Tensor, peeks: Peeks) -> tuple[Asked, Tensor]:
        """How each frame reads from the memory of places, and what is known after; noisy frames and unknown poses leave no trace."""
        assert self.pose_keys is not None
        writes = None
        if peeks is None or not all(peeks):
            writes = (inputs.noise == 0).to(known.dtype) * inputs.pose_known
            writes = writes if peeks is None else writes * ~torch.tensor(peeks, device=writes.device)
        with torch.autocast(known.device.type, enabled=False):
            asked, known = ask(self.pose_keys(inputs.pose) * inputs.pose_known.unsqueeze(-1), writes, known)
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


class Conditioning(nn.Module):
    """Noise level, action, pose and motion of each frame as one vector (B, T, D)."""

    noise_frequencies = 16
    pose_frequencies = 5

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.width
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.noise = _head(2 * self.noise_frequencies, width, width)
        self.action = ActionEmbedding(config, width)
        self.pose = _head(4 * self.pose_frequencies + 2 + 3 + 1, width, width)

    def forward(self, inputs: FrameInputs) -> Tensor:
        return self.noise(self._of_noise(inputs.noise)) + self.action(inputs.action) + self.pose(self._of_pose(inputs))

    def _of_noise(self, noise: Tensor) -> Tensor:
        return _waves(noise.unsqueeze(-1), 0.25 * math.pi, self.noise_frequencies, growth=1.5)

    def _of_pose(self, inputs: FrameInputs) -> Tensor:
        position = _waves(inputs.pose[..., :2], 0.35, self.pose_frequencies, growth=2.0)
        known = inputs.pose_known.unsqueeze(-1)
        return torch.cat([position, inputs.pose[..., 2:], inputs.motion / self.motion_scale, torch.ones_like(known)], -1) * known


class ActionEmbedding(nn.Module):
    """A learned vector for each discrete action and one for "unknown"; a small MLP for continuous actions."""

    def __init__(self, config: WorldModelConfig, width: int) -> None:
        super().__init__()
        self.discrete = nn.Embedding(config.actions + 1, width) if config.actions else None
        self.continuous = _head(config.action_size + 1, width, width) if config.action_size else None

    def forward(self, action: Tensor) -> Tensor:
        if self.discrete is not None:
            return self.discrete(action)
        assert self.continuous is not None
        known = ~action.isnan().any(-1, keepdim=True)
        return self.continuous(torch.cat([action.nan_to_num() * known, known.to(action.dtype)], -1))


class PoseHead(nn.Module):
    """Predicts the next motion from the committed frame's features, the last motion and the next action."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.action = ActionEmbedding(config, FEATURES)
        self.network = nn.Sequential(
            nn.Linear(2 * FEATURES + 3, FEATURES), nn.SiLU(), nn.Linear(FEATURES, FEATURES), nn.SiLU(), nn.Linear(FEATURES, 3)
        )

    def forward(self, features: Tensor, motion: Tensor, next_action: Tensor) -> Tensor:
        """features (..., FEATURES) and motion (..., 3) of a frame, the action that follows; the motion (..., 3) it leads to."""
        known = torch.cat([features, motion / self.motion_scale, self.action(next_action)], -1)
        return self.network(known) * self.motion_scale


class SightHead(nn.Module):
    """Sees in two clean frames how far the motion between them, as it was reckoned from the action, is off."""

    def __init__(self, config: WorldModelConfig, hidden: int = 384) -> None:
        super().__init__()
        self.motion_scale: Tensor
        self.register_buffer("motion_scale", torch.tensor(config.motion_scale), persistent=False)
        self.frames = nn.Linear(2 * config.tokens * config.latent_channels + 6, hidden)
        self.action = ActionEmbedding(config, hidden)
        self.network = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 3))
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, before: Tensor, latent: Tensor, action: Tensor, motion: Tensor, last_motion: Tensor) -> Tensor:
        """The motion (..., 3) from latents `before` to `latent` (..., N, C), of which the action told to expect `motion` (..., 3)."""
        motions = torch.cat([motion, last_motion], -1) / self.motion_scale.repeat(2)
        seen = self.frames(torch.cat([before.flatten(-2), latent.flatten(-2), motions], -1)) + self.action(action)
        return motion + self.network(seen) * self.motion_scale


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)


def _head(inputs: int, outputs: int, hidden: int = FEATURES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _waves(x: Tensor, lowest: float, count: int, growth: float) -> Tensor:
    """Sines and cosines of x (..., K) at `count` growing frequencies: (..., 2 * K * count)."""
    angle = x.unsqueeze(-1) * (lowest * growth ** torch.arange(count, device=x.device))
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
