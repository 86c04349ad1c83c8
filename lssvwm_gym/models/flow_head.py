"""The flow head: samples the next frame's latent in a few light passes, given what the world model makes of it in one read-only pass.

The world model alone predicts the mean of all frames that could follow, which is a blur wherever the place is new. The head attends
over the tokens of the one frame only, so a pass of it costs a fraction of one of the world model.
Sources: rectified flow (arXiv 2209.03003), adaptive norm of diffusion transformers (arXiv 2212.09748), steps of several lengths by one
network (shortcut models, arXiv 2410.12557).
"""

import functools
import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.conditioning import ActionEmbedding, head, waves
from lssvwm_gym.models.config import WorldModelConfig
from lssvwm_gym.models.diffusion import sample
from lssvwm_gym.models.map_memory import numbers_shown

LEAST_VARIANCE = 1e-3  # whose logarithm is still told apart
FEW_STEPS = (4, 2, 1)  # numbers of denoising steps that the head is trained to take; more are steps of the flow itself


class FrameEvidence(NamedTuple):
    """What is known of a frame before it is sampled."""

    tokens: Tensor  # (B, N, D) of the world model's last layer, after a read-only pass from pure noise
    mean: Tensor  # (B, N, C) its estimate of the latent in that pass
    last: Tensor  # (B, N, C) the latent of the frame before
    recalled: Tensor  # (B, N, C) what the spatial memory answers
    posterior_variance: Tensor  # (B,) of that answer: 1 nothing is known, 0 all
    action: Tensor  # (B,) int64 or (B, A) float, that led to it
    shown: Tensor  # (B, columns, n) what the map shows from there, a column of tokens; n is 0 where there is no map
    wanted: Tensor  # (B, kinds) 1 for the kind of object that is wanted in it, else 0


class HeadContext(NamedTuple):
    """`FrameEvidence` as the passes over one frame share it."""

    tokens: Tensor  # (B, N, W)
    vector: Tensor  # (B, W)
    base: Tensor | None = None  # (B, N, C) what the estimates are changes of: the world model's, where those are changes of the last frame


class FlowHead(nn.Module):
    """Noisy latents of one frame and their context in, estimates of the clean latents out."""

    level_frequencies = 16

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width, channels, self.residual = config.flow_width, config.latent_channels, config.residual
        self.token_in = nn.Linear(channels, width)
        self.context_in = nn.Linear(config.width + 3 * channels + 2, width)
        self.position = nn.Parameter(torch.randn(config.tokens, width) * 0.02)
        self.level = head(2 * self.level_frequencies, width, width)
        self.action = ActionEmbedding(config, width)
        self.stride = nn.Embedding(1 + len(FEW_STEPS), width)  # how far a step goes
        nn.init.zeros_(self.stride.weight)
        shown = numbers_shown(config.map_objects) + config.map_objects
        self.map_in = head(shown, config.grid * width) if config.map_objects else None  # a column of tokens, from above to below
        self.blocks = nn.ModuleList(FlowBlock(config.tokens, width, config.flow_heads) for _ in range(config.flow_layers))
        self.modulation, self.token_out = nn.Linear(width, 2 * width), nn.Linear(width, channels)
        nn.init.zeros_(self.token_out.weight)
        if self.map_in is not None:
            nn.init.zeros_(cast(nn.Linear, self.map_in[-1]).weight)

    def context(self, evidence: FrameEvidence) -> HeadContext:
        """Worked out once a frame."""
        tokens, mean, last, recalled, variance, action, shown, wanted = evidence
        variance = variance[:, None, None].expand(*mean.shape[:2], 1)
        known = torch.cat([tokens, mean, last, recalled, variance, variance.clamp(min=LEAST_VARIANCE).log()], -1)
        context = self.context_in(known) + self.position
        if self.map_in is not None:
            told = torch.cat([shown, wanted[:, None].expand(-1, shown.shape[1], -1)], 2)
            context = context + self.map_in(told).unflatten(2, (-1, context.shape[2])).transpose(1, 2).flatten(1, 2)
        return HeadContext(context, self.action(action), mean if self.residual else None)

    def condition(self, level: Tensor, context: HeadContext) -> Tensor:
        """Of noise levels (B,): what scales, shifts and gates follow from, (B, W)."""
        return F.silu(self.level(waves(level.unsqueeze(-1), 0.25 * math.pi, self.level_frequencies, growth=1.5)) + context.vector)

    def for_steps(self, context: HeadContext, steps: int) -> HeadContext:
        """The context of passes that are all there are: so many."""
        stride = 1 + FEW_STEPS.index(steps) if steps in FEW_STEPS else 0
        return context._replace(vector=context.vector + self.stride.weight[stride])

    def sample(self, context: HeadContext, noise: Tensor, steps: int, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A latent (B, N, C) from noise of that shape in so many steps, and how much was left open, as `diffusion.sample` says it.

        In rows marked in `mean`, bool (B,), it is the mean instead, which the flow says in its first step, and nothing is open.
        """
        whole = self.for_steps(context, steps)
        if mean is None:
            return sample(functools.partial(self, context=whole), noise, steps)
        first: list[Tensor] = []
        vector = context.vector + self.stride.weight[0]
        whole = whole._replace(vector=torch.where(mean[:, None], vector, whole.vector))

        def estimate(x: Tensor, level: Tensor) -> Tensor:
            first.append(self(x, level, whole))
            return first[-1]

        latent, uncertainty = sample(estimate, noise, steps)
        return torch.where(mean[:, None, None], first[0], latent), torch.where(mean, 0.0, uncertainty)

    def forward(self, x: Tensor, level: Tensor, context: HeadContext) -> Tensor:
        """x (B, N, C) at noise levels (B,); the estimate of the clean latent, (B, N, C). Without `for_steps` it is the flow's."""
        condition = self.condition(level, context)
        y = self.token_in(x) + context.tokens
        for block in self.blocks:
            y = block(y, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)
        estimate: Tensor = self.token_out(F.layer_norm(y, y.shape[-1:]) * (1 + scale) + shift)
        return estimate if context.base is None else estimate + context.base


class FlowBlock(nn.Module):
    """Attention over the tokens of one frame and an MLP, each under adaptive norm."""

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.modulation, self.bias = nn.Linear(width, 6 * width), nn.Parameter(torch.zeros(heads, tokens, tokens))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, W) under conditions (B, W)."""
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, P)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.unsqueeze(0)).transpose(1, 2).flatten(2)
        x = x + (1 + gate) * self.out(y)
        return x + (1 + gate2) * self.mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2)
