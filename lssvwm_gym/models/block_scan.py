"""Block-wise scan: Mamba-2 over time and the tokens of one block, every block with its own state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssvwm_gym.models.ops.ssd import Scan, ssd_alone, ssd_read, ssd_scan
from lssvwm_gym.models.state import ReadOnly, committed_before, committed_frames, committed_mask, constant, read_only_frames


class BlockScan(nn.Module):
    """Mamba-2 over (time, tokens of one block), every block with its own state.

    Source: arXiv 2505.20171, section 3.1 (block-wise scan), and mamba-ssm's `Mamba2`, whose parameter names are kept.
    """

    def __init__(self, width: int, grid: int, block: tuple[int, int], d_state: int, head_width: int, d_conv: int = 4) -> None:
        super().__init__()
        if grid % block[0] or grid % block[1]:
            raise ValueError(f"block {block} doesn't tile a grid of {grid}x{grid} tokens")
        self.grid, self.block, self.d_state, self.d_conv = grid, block, d_state, d_conv
        self.inner = 2 * width
        self.heads = self.inner // head_width
        self.blocks = grid * grid // (block[0] * block[1])
        conv_width = self.inner + 2 * d_state
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * d_state + self.heads, bias=False)
        # holds the weights; applied by _short_convolution
        self.conv1d = nn.Conv1d(conv_width, conv_width, d_conv, groups=conv_width) if d_conv > 1 else None
        dt = torch.logspace(-3, -1, self.heads)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.linspace(1, 8, self.heads).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, width, bias=False)
        self.scan: Scan = ssd_scan  # of what is committed; `backends` may put another here

    def initial_state(self, rows: int) -> tuple[Tensor, Tensor]:
        """Zeros: ssm (B, blocks, H, P, S) and conv (B, blocks, d_conv - 1, conv width)."""
        like = self.in_proj.weight
        ssm = like.new_zeros(rows, self.blocks, self.heads, self.inner // self.heads, self.d_state)
        return ssm, like.new_zeros(rows, self.blocks, self.d_conv - 1, self.inner + 2 * self.d_state)

    def forward(self, x: Tensor, ssm: Tensor, conv: Tensor, read_only: ReadOnly = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, N, D); returns the same shape and the two states."""
        rows, frames = x.shape[:2]
        x = self._to_blocks(x)
        z, mixed, dt = self.in_proj(x).split([self.inner, self.inner + 2 * self.d_state, self.heads], -1)
        mixed, conv = self._short_convolution(mixed, conv.flatten(0, 1), read_only)
        values, B, C = mixed.split([self.inner, self.d_state, self.d_state], -1)
        values = values.unflatten(-1, (self.heads, -1))
        y, ssm = self._scan(values, F.softplus(dt + self.dt_bias), B.unsqueeze(2), C.unsqueeze(2), ssm.flatten(0, 1), read_only)
        y = y + values * self.D[:, None]
        y = self._to_frames(self.out_proj(self.norm(y.flatten(2) * F.silu(z))), rows, frames)
        return y, ssm.unflatten(0, (rows, -1)), conv.unflatten(0, (rows, -1))

    def _to_blocks(self, x: Tensor) -> Tensor:
        """(B, T, N, D) to (B * blocks, T * tokens of a block, D)."""
        down, across = self.block
        x = x.view(*x.shape[:2], self.grid // down, down, self.grid // across, across, -1).permute(0, 2, 4, 1, 3, 5, 6)
        return x.reshape(-1, x.shape[3] * down * across, x.shape[-1])

    def _to_frames(self, x: Tensor, rows: int, frames: int) -> Tensor:
        """The inverse of `_to_blocks`."""
        down, across = self.block
        x = x.view(rows, self.grid // down, self.grid // across, frames, down, across, -1).permute(0, 3, 1, 4, 2, 5, 6)
        return x.reshape(rows, frames, self.grid**2, -1)

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, state: Tensor, read_only: ReadOnly) -> tuple[Tensor, Tensor]:
        A = -self.A_log.exp()
        chunk = 32 if x.device.type == "cpu" else 128  # a GPU would rather do more arithmetic than more steps
        if read_only is None:
            return self.scan(x, dt, A, B, C, chunk, initial_state=state)
        size = self.block[0] * self.block[1]
        if all(read_only):
            y, index = ssd_read(C, state).to(x.dtype), None
        else:
            writes = committed_mask(read_only, x.device).repeat_interleave(size).unsqueeze(-1)
            y, state = self.scan(x, dt * writes, A, B, C, chunk, initial_state=state)
            index = read_only_frames(read_only, x.device)
        # read-only frames have read the state so far; now each frame's own tokens, in their order
        past, x, dt, B, C = (_some_frames(tokens, size, index) for tokens in (y, x, dt, B, C))
        own = ssd_alone(x, dt, A, B, C) + past * (dt * A).cumsum(1).exp().unsqueeze(-1)
        if index is None:
            return own.reshape(y.shape), state
        frames = y.unflatten(1, (-1, size)).index_copy(1, index, own.to(y.dtype).unflatten(0, (len(y), -1)))
        return frames.flatten(1, 2), state

    def _short_convolution(self, x: Tensor, past: Tensor, read_only: ReadOnly) -> tuple[Tensor, Tensor]:
        """Causal depthwise convolution over x (b, l, conv width), continued from the last d_conv - 1 inputs."""
        if self.conv1d is None:
            return F.silu(x), past
        if read_only is None:
            return self._convolved(x, past)
        frames = x.unflatten(1, (len(read_only), -1))
        kept, noisy = committed_frames(read_only, x.device), read_only_frames(read_only, x.device)
        committed = frames[:, kept].flatten(1, 2)
        start = constant(committed_before(read_only), x.device)[noisy] * frames.shape[2]  # of the inputs that a read-only frame continues
        before = torch.cat([past, committed], 1)[:, start[:, None] + torch.arange(self.d_conv - 1, device=x.device)]
        reading, _ = self._convolved(frames[:, noisy].flatten(0, 1), before.flatten(0, 1))
        committed, past = self._convolved(committed, past)
        y = frames.new_zeros(frames.shape)
        y = y.index_copy(1, kept, committed.unflatten(1, (-1, frames.shape[2])))
        y = y.index_copy(1, noisy, reading.unflatten(0, (x.shape[0], -1)))
        return y.flatten(1, 2), past

    def _convolved(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        assert self.conv1d is not None
        length = x.shape[1]
        x = torch.cat([past, x], 1)
        taps = self.conv1d.weight.squeeze(1).unbind(-1)
        y = torch.stack([x[:, k : k + length] * tap for k, tap in enumerate(taps)]).sum(0)
        return F.silu(y if self.conv1d.bias is None else y + self.conv1d.bias), x[:, length:]


def _some_frames(tokens: Tensor, size: int, frames: Tensor | None) -> Tensor:
    """Tokens (b, T * size, ...) of some frames (K,) or of all, each a sequence of its own: (b * K, size, ...)."""
    tokens = tokens.unflatten(1, (-1, size))
    return (tokens if frames is None else tokens[:, frames]).flatten(0, 1)
