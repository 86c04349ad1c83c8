"""State-space duality (SSD): the scan of Mamba-2, in chunks of matrix products.

Source: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060. Layout and meaning of arguments are mamba-ssm's
(`mamba_chunk_scan_combined`), after softplus and bias: b sequences, l tokens, h heads, p head width, g groups of
heads that share B and C, n state size.

    state[t] = exp(A * dt[t]) * state[t-1] + dt[t] * x[t] B[t]^T        y[t] = state[t] C[t] + D * x[t]
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.models.ops.ssd_autograd import decay_between, scan_chunks

Scan = Callable[..., tuple[Tensor, Tensor]]  # of the signature of `ssd_scan`


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, D: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan a sequence of any length.

    x (b, l, h, p), dt (b, l, h), A (h,) negative, B and C (b, l, g, n), D (h,), initial_state (b, h, p, n) float32 or float64.
    Returns y (b, l, h, p) and the final state (b, h, p, n). Decays and states keep the state's precision.
    """
    if x.shape[1] == 1:
        return _one_token(x, dt, A, B, C, D, initial_state)
    b, l, h, p = x.shape  # noqa: E741
    exact = torch.promote_types(x.dtype, torch.float32)
    state = x.new_zeros(b, h, p, B.shape[-1], dtype=exact) if initial_state is None else initial_state
    B, C, q = B.to(x.dtype), C.to(x.dtype), _fitting(chunk, l)
    if pad := -l % q:  # padded tokens have dt = 0: they neither decay the state nor write to it
        x, B, C = (F.pad(tokens, (0, 0, 0, 0, 0, pad)) for tokens in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, pad))
    dt = dt.to(exact).view(b, -1, q, h).transpose(2, 3)  # (b, c, h, q)
    y, state = scan_chunks(x, dt, (dt * A.to(exact)[:, None]).cumsum(-1), B, C, state)
    return (y if D is None else y + x * D[:, None].to(x.dtype))[:, :l], state


def ssd_read(C: Tensor, state: Tensor) -> Tensor:
    """What tokens with C (b, l, g, n) read from a state (b, h, p, n) that they leave as it is: (b, l, h, p)."""
    by_group = state.to(C.dtype).view(len(state), C.shape[2], -1, C.shape[3])
    read = C.transpose(1, 2) @ by_group.transpose(-1, -2)  # (b, g, l, h / g * p)
    return read.transpose(1, 2).reshape(*C.shape[:2], *state.shape[1:3])


def ssd_alone(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What `ssd_scan` gives for short sequences of one group that begin with an empty state; no state is made, and none is returned."""
    written = x * dt[..., None].to(x.dtype)  # (b, l, h, p)
    if x.shape[1] == 1:
        return written * (B * C).sum(-1, keepdim=True)
    decay = decay_between((dt.to(A.dtype) * A).cumsum(1).transpose(1, 2)).to(x.dtype)  # (b, h, l, l)
    similar = C.transpose(1, 2) @ B.transpose(1, 2).transpose(-1, -2)  # (b, 1, l, l)
    return (decay * similar @ written.transpose(1, 2)).transpose(1, 2)


def _one_token(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """`ssd_scan` of a single token, which is bound by memory: the state is read and written once."""
    exact = torch.promote_types(x.dtype, torch.float32)
    written = (x[:, 0] * dt[:, 0, :, None]).to(exact).unsqueeze(-1)  # (b, h, p, 1)
    key = B[:, 0].repeat_interleave(x.shape[2] // B.shape[2], 1).to(exact).unsqueeze(2)  # (b, h, 1, n)
    if state is None:
        state = written * key
    else:
        state = (state * (dt[:, 0].to(exact) * A.to(exact)).exp()[..., None, None]).addcmul_(written, key)
    y = ssd_read(C, state).to(x.dtype)
    return (y if D is None else y + x * D[:, None].to(x.dtype)), state


@functools.cache
def _fitting(chunk: int, length: int) -> int:
    """Tokens of a chunk, of about as many as asked for, so that few have to be filled up."""
    if length <= chunk:
        return length
    near = [q for q in range(8, 3 * chunk // 2 + 1, 8) if q >= 3 * chunk / 4] or [chunk]
    return min(near, key=lambda q: (-length % q, abs(q - chunk)))
