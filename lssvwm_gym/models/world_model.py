"""The world model: denoises the next frame's latent tokens from the state, the action and, where it is known, the pose.

Source: "Long-Context State-Space Video World Models", arXiv 2505.20171. One layer is block-wise scan,
frame-local attention, MLP, each under adaptive norm; a spatial memory (ours) is queried by pose before them. One forward serves training
(hundreds of frames), reading (a noisy frame, no trace in the state) and committing (a clean frame).
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
from lssvwm_gym.models.flow_head import FlowHead
from lssvwm_gym.models.inventory_head import InventoryHead
from lssvwm_gym.models.map_layout import LayoutModel
from lssvwm_gym.models.map_memory import MapReader, WantedHead
from lssvwm_gym.models.motion_heads import CollisionMotionHead, CompassHead, MapMotionHead, MotionHead, OdometryHead
from lssvwm_gym.models.spatial_memory import MemoryQuery, PoseKeys, SpatialMemory, query_memory, read_write
from lssvwm_gym.models.state import LayerState, ReadOnly, SpatialMemoryState, WorldState, committed_mask, last_committed
from lssvwm_gym.models.symlog import bin_values
from lssvwm_gym.models.termination_head import TerminationHead

OVERWRITTEN = 0.8  # share of what is remembered of a place that a frame of an action that changes the world replaces

__all__ = ["FEATURES", "FrameInputs", "WorldModel", "WorldModelConfig", "WorldOutput"]


class WorldOutput(NamedTuple):
    clean: Tensor  # (B, T, N, C) estimate of the clean latents
    tokens: Tensor  # (B, T, N, D) of the last layer, normalised
    features: Tensor  # (B, T, FEATURES) summary of each frame and its past, for the heads and for agents
    posterior_variance: Tensor  # (B, T) of the spatial memory at each frame's pose, before it: 1 nothing is known, 0 all
    state: WorldState  # after the last frame


class FrameContext(NamedTuple):
    """What all passes over one frame share: it depends neither on the frame's latent nor on its noise level."""

    condition: Tensor | None  # (B, 1, D) without the noise level
    memory_query: MemoryQuery | None  # of the spatial memory before the frame; nothing is written
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
        self.conditioning = Conditioning(config)
        kernel = config.memory_features, config.memory_scales, config.memory_noise, config.spatial
        self.pose_keys = PoseKeys(*kernel) if config.has_spatial_memory else None
        self.spatial_memory = SpatialMemory(width, config.latent_channels) if config.has_spatial_memory else None
        layers = [Layer(config, block) for block in config.blocks]
        self.layers = nn.ModuleList(layers)
        self.token_out = nn.Linear(width, config.latent_channels)
        self.residual = Residual(config) if config.residual else None
        if config.residual:  # it begins with the last frame repeated
            nn.init.zeros_(self.token_out.weight), nn.init.zeros_(self.token_out.bias)
        self.summary = nn.Linear(width, FEATURES // config.tokens)
        self.reward_head = head(FEATURES, config.reward_bins or config.reward_values)
        self.reward_bins = nn.Buffer(bin_values(config.reward_bins, config.reward_limit), persistent=False) if config.reward_bins else None
        self.motion_head = CollisionMotionHead(config) if config.collisions else MotionHead(config)
        self.odometry_head = OdometryHead(config)
        self.compass_head = CompassHead(config) if config.lattice else None
        self.termination_head = TerminationHead(config) if config.termination else None
        self.inventory_head = InventoryHead(config) if config.inventory_size else None
        self.flow_head = FlowHead(config) if config.flow_width else None
        self.map_reader = MapReader(config.tokens, config.latent_channels, config.map_objects) if config.map_objects else None
        self.wanted_head = WantedHead(config.map_objects) if config.map_objects else None
        self.layout_model = LayoutModel(config.map_objects, config.layout_width) if config.layout_width else None
        self.map_motion_head = MapMotionHead(config) if config.layout_width else None

    def initial_state(self, rows: int) -> WorldState:
        """The state before the first frame, for `rows` rows."""
        age = torch.zeros(rows, dtype=torch.int64, device=self.token_in.weight.device)
        layers, zeros = tuple(cast(Layer, layer).initial_state(rows) for layer in self.layers), self.token_in.weight.new_zeros
        features, numbers = self.config.memory_features, self.config.tokens * self.config.latent_channels
        memory = SpatialMemoryState(zeros(rows, features, features), zeros(rows, numbers, features))
        last = zeros(rows, 0) if self.residual is None else self.residual.first.expand(rows, -1, -1).clone()
        return WorldState(layers, memory, age, last)

    def forward(
        self, latent: Tensor, inputs: FrameInputs, state: WorldState, read_only: ReadOnly = None, frame_context: FrameContext | None = None
    ) -> WorldOutput:
        """latent (B, T, N, C), as noisy as `inputs.noise` says.

        Frames marked in `read_only`, a bool a frame, see the frames before them that are not marked, and themselves, and are seen
        by none: what a call with that frame alone and the state before it would give. `frame_context` is what `condition` gave for
        this very frame and state, where several passes are made over one frame.
        """
        condition = F.silu(self.conditioning(inputs, frame_context and frame_context.condition))
        x = self.token_in(latent) + self.token_position
        query, memory, recalled = None, state.spatial_memory, None
        if self.spatial_memory is not None:
            query, explained = self._query(inputs, state.spatial_memory.explained, read_only, frame_context and frame_context.memory_query)
            recalled = frame_context and frame_context.recalled
            read = None if recalled is None else recalled.flatten(2)
            share = None if query.written is None else self._overwritten_share(inputs.action)
            recalled, latents = read_write(query, latent.flatten(2), state.spatial_memory.latents, read, share)
            recalled, memory = recalled.view_as(latent), SpatialMemoryState(explained, latents)
            tokens = frame_context and frame_context.tokens
            x = x + (self.spatial_memory.into_tokens(recalled, query.posterior_variance) if tokens is None else tokens)
        before, last = latent, state.last
        if self.residual is not None:
            index = last_committed(read_only, latent.shape[1], latent.device)
            known = torch.cat([last.unsqueeze(1).to(latent.dtype), latent], 1)
            before, last = known[:, index[:-1]], known[:, index[-1:]].squeeze(1)
            x = x + self.residual.into_tokens(before)
        x, after = self.through_layers(x, condition, state, read_only)
        committed = latent.shape[1] if read_only is None else read_only.count(False)
        x = F.layer_norm(x, x.shape[-1:])
        features = F.layer_norm(self.summary(x).flatten(2), (FEATURES,))
        clean = self.token_out(x)
        if self.spatial_memory is not None and recalled is not None:
            clean = clean + self.spatial_memory.gate(x) * recalled
        if self.residual is not None:
            clean = clean + self.residual.share(x) * before
        posterior_variance = torch.ones_like(inputs.noise) if query is None else query.posterior_variance
        return WorldOutput(clean, x, features, posterior_variance, WorldState(tuple(after), memory, state.age + committed, last))

    def condition(self, inputs: FrameInputs, state: WorldState) -> FrameContext:
        """What passes over one frame share, for inputs (B, 1) of any noise level and the state before the frame."""
        condition = self.conditioning.without_noise(inputs)
        if self.spatial_memory is None:
            return FrameContext(condition, None, None, None)
        query, _ = self._query(inputs, state.spatial_memory.explained, (True,))
        recalled, _ = read_write(query, state.spatial_memory.latents.new_empty(0), state.spatial_memory.latents)
        recalled = recalled.unflatten(2, (self.config.tokens, -1))
        return FrameContext(condition, query, recalled, self.spatial_memory.into_tokens(recalled, query.posterior_variance))

    def through_layers(self, x: Tensor, condition: Tensor, state: WorldState, read_only: ReadOnly) -> tuple[Tensor, list[LayerState]]:
        """x (B, T, N, D) under conditions (B, T, D); returns x of the same shape and the layers' states after."""
        after = []
        for layer, before in zip(self.layers, state.layers, strict=True):
            x, layer_state = layer(x, condition, before, read_only)
            after.append(layer_state)
        return x, after

    def _overwritten_share(self, action: Tensor) -> Tensor | None:
        """By how much frames (B, T) at least move what is remembered where they are; None in a world in which nothing changes."""
        if not self.config.changing_actions:
            return None
        changed = [action == number for number in self.config.changing_actions]
        return OVERWRITTEN * torch.stack(changed).any(0).to(self.token_in.weight.dtype)

    def _query(
        self, inputs: FrameInputs, explained: Tensor, read_only: ReadOnly, before: MemoryQuery | None = None
    ) -> tuple[MemoryQuery, Tensor]:
        """How each frame reads from the spatial memory, and what that explains after it; noisy frames and unknown poses leave no trace."""
        assert self.pose_keys is not None
        writes = None
        if read_only is None or not all(read_only):
            writes = (inputs.noise == 0).to(explained.dtype) * inputs.pose_known
            writes = writes if read_only is None else writes * committed_mask(read_only, writes.device)
        elif before is not None:
            return before, explained
        with torch.autocast(explained.device.type, enabled=False):
            keys = self.pose_keys(inputs.pose) * inputs.pose_known.unsqueeze(-1)
            query, explained = query_memory(keys, writes, explained, before and before.query)
        return query._replace(posterior_variance=1 - inputs.pose_known * (1 - query.posterior_variance)), explained


class Residual(nn.Module):
    """How a frame follows from the last committed one: that is seen beside it, and the estimate is its change."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width, channels = config.width, config.latent_channels
        self.first = nn.Buffer(torch.zeros(config.tokens, channels))  # what stands for the last frame where there was none: the mean of all
        self.into_tokens, self.share = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.share.weight)
        nn.init.ones_(self.share.bias)


class Layer(nn.Module):
    """Block-wise scan, frame-local attention, MLP; each under adaptive norm."""

    def __init__(self, config: WorldModelConfig, block: tuple[int, int]) -> None:
        super().__init__()
        width = config.width
        self.scan = BlockScan(width, config.grid, block, config.d_state, config.head_width, config.d_conv) if config.d_state else None
        self.attention = FrameAttention(width, config.tokens, config.heads, config.window, config.chunk) if config.heads else None
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp * width), nn.SiLU(), nn.Linear(config.mlp * width, width))
        self.modulation = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def initial_state(self, rows: int) -> LayerState:
        nothing = self.modulation.weight.new_zeros(rows, 0)
        ssm, conv = (nothing, nothing) if self.scan is None else self.scan.initial_state(rows)
        keys, values = (nothing, nothing) if self.attention is None else self.attention.initial_state(rows)
        return LayerState(ssm, conv, keys, values)

    def forward(self, x: Tensor, condition: Tensor, state: LayerState, read_only: ReadOnly = None) -> tuple[Tensor, LayerState]:
        modulation = self.modulation(condition).view(*x.shape[:2], 1, 9, -1)
        shift, _, _, shift2, _, _, shift3, _, _ = modulation.unbind(-2)
        _, scale, gate, _, scale2, gate2, _, scale3, gate3 = (1 + modulation).unbind(-2)
        ssm, conv, keys, values = state
        y = _modulated(x, shift, scale)
        mixed = torch.zeros_like(x)
        if self.scan is not None:
            mixed, ssm, conv = self.scan(y, ssm, conv, read_only)
        x = torch.addcmul(x, mixed, gate)
        if self.attention is not None:
            seen, keys, values = self.attention(_modulated(x, shift2, scale2), keys, values, read_only)
            x = torch.addcmul(x, seen, gate2)
        x = torch.addcmul(x, self.mlp(_modulated(x, shift3, scale3)), gate3)
        return x, LayerState(ssm, conv, keys, values)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), scale)
