"""One frame through the layers of a world model, without gradients, in two thirds of the operations: how a dream runs on a CPU.

A step of a few rows is bound by the number of operations and by the way of the weights from memory, less by arithmetic. The
mathematics is that of `Layer`, and tests hold both to the same outputs and states. Products with weights are done in
float32 or bfloat16; norms, scans, attention and all states are float32 in either.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lssvwm_gym.models.attention import FrameAttention
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.block_scan import BlockScan
from lssvwm_gym.models.flow_head import FlowBlock, FlowHead, HeadContext
from lssvwm_gym.models.inference.prepacked import PrepackedDecoder, PrepackedLinear
from lssvwm_gym.models.state import LayerState, ReadOnly, WorldState
from lssvwm_gym.models.world_model import Layer, WorldModel

M = TypeVar("M", bound=nn.Module)

SCALES_AND_GATES = (1, 2, 4, 5, 7, 8)  # of the nine modulations; they are differences from 1


def _sharing(kind: type[M], module: nn.Module, prepacked: Any) -> M:
    """An object of a module's subclass that shares everything with it, and has a `prepacked`."""
    wrapper = kind.__new__(kind)
    wrapper.__dict__.update(copy.copy(module).__dict__, prepacked=prepacked)
    return wrapper


class PrepackedWorldModel(WorldModel):
    """A world model whose layers are prepacked as they are now, for one frame without gradients; all else is the model's own, shared."""

    prepacked: PrepackedLayers

    @classmethod
    def of(cls, model: WorldModel, dtype: torch.dtype, samples: torch.dtype | None = None) -> PrepackedWorldModel:
        """`dtype`, of products with weights: float32 or bfloat16; `samples`, of those of the flow head, where another."""
        wrapper = _sharing(cls, model, PrepackedLayers([layer for layer in model.layers if isinstance(layer, Layer)], dtype))
        if model.flow_head is not None:
            wrapper._modules = {**model._modules, "flow_head": PrepackedFlowHead.of(model.flow_head, samples or dtype)}
        return wrapper

    def through_layers(self, x: Tensor, condition: Tensor, state: WorldState, read_only: ReadOnly) -> tuple[Tensor, list[LayerState]]:
        if x.shape[1] == 1 and not is_recorded(self.layers, x, condition, state.layers):
            return self.prepacked(x, condition, state.layers, commits=read_only is None or not all(read_only))
        return super().through_layers(x, condition, state, read_only)


class PrepackedFlowHead(FlowHead):
    """A flow head whose weights are prepacked as they are now, for passes without gradients."""

    prepacked: PrepackedFlow

    @classmethod
    def of(cls, flow_head: FlowHead, dtype: torch.dtype) -> PrepackedFlowHead:
        """`dtype`, of products with weights: float32 or bfloat16."""
        return _sharing(cls, flow_head, PrepackedFlow(flow_head, dtype))

    def forward(self, x: Tensor, level: Tensor, context: HeadContext) -> Tensor:
        if is_recorded(self.blocks, x, context):
            return super().forward(x, level, context)
        estimate = self.prepacked(x, self.condition(level, context), context.tokens)
        return estimate if context.base is None else estimate + context.base


class PrepackedAutoencoder(Autoencoder):
    """An autoencoder whose decoder is prepacked as it is now, for pictures without gradients; all else is its own, shared."""

    prepacked: PrepackedDecoder

    @classmethod
    def of(cls, autoencoder: Autoencoder, dtype: torch.dtype) -> PrepackedAutoencoder:
        """`dtype`, of products with weights: float32 or bfloat16."""
        return _sharing(cls, autoencoder, PrepackedDecoder(autoencoder.decoder, dtype, autoencoder.config.grid))

    def decoded(self, latent: Tensor) -> Tensor:
        return super().decoded(latent) if is_recorded(self.decoder, latent) else self.prepacked(latent)


class PrepackedLayers:
    """All layers for one frame; a copy of their weights as they are now, so later changes to those are not seen."""

    @torch.no_grad()
    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype) -> None:
        offset = torch.zeros(9, layers[0].modulation.in_features)
        offset[list(SCALES_AND_GATES)] = 1
        self.modulation = PrepackedLinear(torch.cat([layer.modulation.weight for layer in layers]), None, dtype)
        self.modulation_bias = torch.cat([layer.modulation.bias + offset.flatten() for layer in layers])
        self.layers = [PrepackedLayer(layer, dtype) for layer in layers]

    def __call__(self, x: Tensor, condition: Tensor, states: Sequence[LayerState], commits: bool) -> tuple[Tensor, list[LayerState]]:
        """x (B, 1, N, D), condition (B, 1, D); returns x of the same shape and the states after, those before where nothing commits."""
        modulation = self.modulation(condition) + self.modulation_bias  # the sum is float32
        x, after = x.squeeze(1), []
        for layer, parts, state in zip(self.layers, modulation.chunk(len(self.layers), -1), states, strict=True):
            x, state = layer(x, parts.chunk(9, -1), state, commits)
            after.append(state)
        return x.unsqueeze(1), after


class PrepackedFlow:
    """One pass of a flow head."""

    @torch.no_grad()
    def __init__(self, flow_head: FlowHead, dtype: torch.dtype) -> None:
        blocks = [block for block in flow_head.blocks if isinstance(block, FlowBlock)]
        self.token_in = PrepackedLinear(flow_head.token_in.weight, flow_head.token_in.bias, dtype)
        self.token_out = PrepackedLinear(flow_head.token_out.weight, flow_head.token_out.bias, dtype)
        parts = [*(block.modulation for block in blocks), flow_head.modulation]
        self.modulation = PrepackedLinear(torch.cat([part.weight for part in parts]), None, dtype)
        offset = torch.tensor([0.0, 1, 1, 0, 1, 1] * len(blocks) + [0, 1], device=flow_head.position.device)
        self.modulation_bias = torch.cat([part.bias for part in parts]) + offset.repeat_interleave(flow_head.position.shape[1])
        self.modulated = Modulated(blocks[0].out.bias)
        self.heads, self.bias = blocks[0].heads, [block.bias.unsqueeze(0).detach().clone() for block in blocks]
        linear = [[block.qkv, block.out, *(part for part in block.mlp if isinstance(part, nn.Linear))] for block in blocks]
        self.blocks = [[PrepackedLinear(part.weight, part.bias, dtype) for part in parts] for parts in linear]

    def __call__(self, x: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """x (B, N, C), condition (B, W), tokens (B, N, W)."""
        *parts, shift, scale = (self.modulation(condition) + self.modulation_bias).unsqueeze(1).chunk(6 * len(self.blocks) + 2, -1)
        x = self.token_in(x).float() + tokens
        for number, (qkv, out, into, back) in enumerate(self.blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = parts[6 * number : 6 * number + 6]
            q, k, v = qkv(self.modulated(x, shift1, scale1)).float().unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[number]).transpose(1, 2).flatten(2)
            x = torch.addcmul(x, out(y).float(), gate1)
            x = torch.addcmul(x, back(F.silu(into(self.modulated(x, shift2, scale2)))).float(), gate2)
        return self.token_out(self.modulated(x, shift, scale)).float()


class Modulated:
    """A norm, scaled and shifted, of as many numbers as a bias has."""

    def __init__(self, bias: Tensor) -> None:
        self.one, self.zero = torch.ones_like(bias), torch.zeros_like(bias)

    def __call__(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        # a norm that scales by 1 takes half the time of one that doesn't scale
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], self.one, self.zero), scale)


class PrepackedLayer:
    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.scan = None if layer.scan is None else PrepackedScan(layer.scan, dtype)
        self.attention = None if layer.attention is None else PrepackedAttention(layer.attention, dtype)
        into, _, out = cast(list[nn.Linear], list(layer.mlp))
        self.modulated = Modulated(out.bias)
        self.into, self.out = PrepackedLinear(into.weight, into.bias, dtype), PrepackedLinear(out.weight, out.bias, dtype)

    def __call__(self, x: Tensor, modulation: Sequence[Tensor], state: LayerState, commits: bool) -> tuple[Tensor, LayerState]:
        """x (B, N, D), modulation nine times (B, 1, D)."""
        shift, scale, gate, shift2, scale2, gate2, shift3, scale3, gate3 = modulation
        ssm, conv, keys, values = state
        if self.scan is not None:
            mixed, ssm, conv = self.scan(self.modulated(x, shift, scale), ssm, conv, commits)
            x = torch.addcmul(x, mixed, gate)
        if self.attention is not None:
            seen, keys, values = self.attention(self.modulated(x, shift2, scale2), keys, values, commits)
            x = torch.addcmul(x, seen, gate2)
        x = torch.addcmul(x, self.out(F.silu(self.into(self.modulated(x, shift3, scale3)))).float(), gate3)
        return x, LayerState(ssm, conv, keys, values)


class PrepackedScan:
    """`BlockScan` for one frame. A frame reads from the state before it and from its own tokens, so reading and committing give the
    same; what the tokens add to the state is a product apart."""

    def __init__(self, scan: BlockScan, dtype: torch.dtype) -> None:
        self.reference = scan if scan.conv1d is not None else None
        self.sizes = (scan.inner, scan.inner + 2 * scan.d_state, scan.heads)
        self.parts = (scan.inner, scan.d_state, scan.d_state)
        self.blocks, self.block_tokens = scan.blocks, scan.block[0] * scan.block[1]
        self.head_sizes = (scan.heads, scan.inner // scan.heads)
        self.into = PrepackedLinear(scan.in_proj.weight, None, dtype)
        self.dt_bias, self.A, self.D = scan.dt_bias.clone(), -scan.A_log.exp(), scan.D[:, None].clone()
        # the mean under the norm's root is a sum here, and what divides it is in the weights
        self.out = PrepackedLinear(scan.out_proj.weight * scan.norm.weight * math.sqrt(scan.inner), None, dtype)
        self.eps = (scan.norm.eps or 0.0) * scan.inner
        order = scan._to_blocks(torch.arange(scan.grid**2).view(1, 1, -1, 1)).flatten()
        self.order = None if bool((order == order.sort()[0]).all()) else order.to(self.A.device)
        self.back = order.argsort().to(self.A.device)
        size = self.block_tokens
        self.future = torch.full((size, size), -torch.inf).triu(1).to(self.A.device)

    def __call__(self, x: Tensor, ssm: Tensor, conv: Tensor, commits: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D); states as `BlockScan` has them."""
        if self.reference is not None:
            y, ssm, conv = self.reference(x.unsqueeze(1), ssm, conv, None if commits else (True,))
            return y.squeeze(1), ssm, conv
        x = x if self.order is None else x.index_select(1, self.order)
        x = self.into(x).float().view(len(x) * self.blocks, self.block_tokens, -1)  # (b, s, ...)
        z, mixed, dt = x.split(self.sizes, -1)
        values, B, C = F.silu(mixed).split(self.parts, -1)
        values, dt = values.unflatten(-1, self.head_sizes), F.softplus(dt + self.dt_bias)  # (b, s, H, P), (b, s, H)
        decay = dt * self.A if self.block_tokens == 1 else (dt * self.A).cumsum(1)  # log, from the frame's start
        own = self._own_tokens(values, dt, decay, B, C)
        past = torch.bmm(C, ssm.view(len(x), -1, self.parts[-1]).transpose(1, 2)).view_as(values)
        y = torch.addcmul(own, past, decay.exp().unsqueeze(-1)).flatten(2)
        gated = y * F.silu(z)
        norm = torch.linalg.vector_norm(gated, dim=-1, keepdim=True).square_().add_(self.eps).rsqrt_()
        y = (self.out(gated).float() * norm).view(*ssm.shape[:1], self.blocks * self.block_tokens, -1)
        y = y if self.order is None else y.index_select(1, self.back)
        return y, self._after(ssm.flatten(0, 1), values, dt, decay, B).view_as(ssm) if commits else ssm, conv

    def _own_tokens(self, values: Tensor, dt: Tensor, decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """What each token of a block reads from those up to itself, (b, s, H, P)."""
        similar = torch.bmm(C, B.transpose(1, 2))  # (b, s, s)
        if self.block_tokens == 1:
            return values * torch.addcmul(self.D, dt.unsqueeze(-1), similar.unsqueeze(-1))
        decay, values, dt = decay.transpose(1, 2), values.transpose(1, 2), dt.transpose(1, 2).unsqueeze(2)
        between = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).add_(self.future).exp_()  # (b, H, s, s)
        weights = between.mul_(similar.unsqueeze(1)).mul_(dt)
        return torch.addcmul(weights @ values, values, self.D.unsqueeze(1)).transpose(1, 2)

    def _after(self, state: Tensor, values: Tensor, dt: Tensor, decay: Tensor, B: Tensor) -> Tensor:
        """The state (b, H, P, S) after the frame's tokens."""
        survives = decay[:, -1].exp()[..., None, None]
        if self.block_tokens == 1:
            written = values.squeeze(1) * dt.squeeze(1).unsqueeze(-1)  # (b, H, P)
            return (state * survives).addcmul_(written.unsqueeze(-1), B.unsqueeze(1))
        written = values * (dt * (decay[:, -1:] - decay).exp()).unsqueeze(-1)
        added = torch.bmm(written.flatten(2).transpose(1, 2), B).view_as(state)
        return added.addcmul_(state, survives)


class PrepackedAttention:
    """`FrameAttention` for one frame and a chunk of 1."""

    def __init__(self, attention: FrameAttention, dtype: torch.dtype) -> None:
        self.heads = attention.heads
        self.qkv, self.out = PrepackedLinear(attention.qkv.weight, None, dtype), PrepackedLinear(attention.out.weight, None, dtype)
        self.head_width = attention.out.weight.shape[1] // self.heads
        self.query_scale = torch.full((self.head_width,), 1 / math.sqrt(self.head_width), device=attention.bias.device)
        self.query_mean = self.key_scale = torch.ones_like(self.query_scale)
        self.key_mean = torch.zeros_like(self.query_scale)
        self.bias = attention._visible_bias((0,), attention.window).unsqueeze(0)  # (1, H, N, (W + 1) * N)

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, commits: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D); keys and values (B, W, H, N, P), which lie in memory as (B, H, W, N, P) after the first frame."""
        q, k, v = self.qkv(x).float().unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (B, H, N, P)
        q = F.layer_norm(q, (self.head_width,), self.query_scale, self.query_mean)
        k = F.layer_norm(k, (self.head_width,), self.key_scale, self.key_mean)
        keys_now = torch.cat([keys.transpose(1, 2), k.unsqueeze(2)], 2)  # (B, H, W + 1, N, P)
        values_now = torch.cat([values.transpose(1, 2), v.unsqueeze(2)], 2)
        y = F.scaled_dot_product_attention(q, keys_now.flatten(2, 3), values_now.flatten(2, 3), self.bias, scale=1.0)
        if commits:
            keys, values = keys_now[:, :, 1:].transpose(1, 2), values_now[:, :, 1:].transpose(1, 2)
        return self.out(y.transpose(1, 2).flatten(2)).float(), keys, values


def is_recorded(module: nn.Module, *inputs: Any) -> bool:
    """Whether a gradient would be recorded of what a module makes of inputs, pytrees of tensors."""
    if not torch.is_grad_enabled():
        return False
    leaves = [*module.parameters(), *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
    return any(leaf.requires_grad for leaf in leaves)
