"""Frame-local attention: every frame sees the last few frames and its own chunk."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lssvwm_gym.models.state import ReadOnly, committed_before, committed_frames, constant


class FrameAttention(nn.Module):
    """Every frame sees the last `window` frames and its own chunk; all tokens of visible frames are seen.

    A chunk of 1 is the interactive form; the paper's is a chunk of 5 with a window of 5 (section 3.2). Chunks are counted
    from the first frame of a call. Queries of several chunks are multiplied with the stretch of the past that one of them
    sees, and masked. Keys have a mean of zero, queries one of 1: so a constant key, as the frames before the first have in
    the initial state, hides its frame, in every row by its own age, and no mask is needed.
    """

    far = 8  # frames; all that are further away share one bias
    hidden = -30.0  # logit of frames before the first
    kept = 64  # frames; what is seen of longer windows is worked out again for the gradient instead of being kept: gigabytes

    def __init__(self, width: int, tokens: int, heads: int, window: int, chunk: int = 1, chunks_together: int = 8) -> None:
        super().__init__()
        self.heads, self.window, self.chunk, self.chunks_together = heads, window, chunk, chunks_together
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, min(window, self.far) + 2 * chunk - 1, tokens, tokens))  # by distance, query, key

    def initial_state(self, rows: int) -> tuple[Tensor, Tensor]:
        """Hidden keys and zeros as values, (B, W, H, N, P)."""
        width, tokens = self.qkv.weight.shape[1], self.bias.shape[-1]
        zeros = self.qkv.weight.new_zeros(rows, self.window, self.heads, tokens, width // self.heads)
        return zeros + self.hidden * self.heads / width, zeros

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, read_only: ReadOnly = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, N, D); returns the same shape and keys and values of the last W frames."""
        frames = x.shape[1]
        if frames % self.chunk:
            raise ValueError(f"{frames} frames are no multiple of the attention's chunk of {self.chunk}")
        if read_only is not None and self.chunk > 1:
            raise ValueError(f"frames can be read only where attention's chunk is 1, not {self.chunk}")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()  # (B, T, H, N, P)
        q, k = F.layer_norm(q, q.shape[-1:]) / math.sqrt(q.shape[-1]) + 1, F.layer_norm(k, k.shape[-1:])
        if read_only is None or not all(read_only):
            kept = slice(None) if read_only is None else committed_frames(read_only, x.device)
            keys, values = torch.cat([keys, k[:, kept]], 1), torch.cat([values, v[:, kept]], 1)
        if self.window > self.kept and torch.is_grad_enabled():
            y = checkpoint(self._folded, q, k, v, keys, values, read_only, use_reentrant=False)
        else:
            y = self._folded(q, k, v, keys, values, read_only)
        committed = keys.shape[1] - self.window
        return self.out(y.flatten(-2)), keys[:, committed:], values[:, committed:]

    def _folded(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, read_only: ReadOnly) -> Tensor:
        """What all frames see, (B, T, N, H, P): q, k, v (B, T, H, N, P), keys and values of the window and what is committed behind it."""
        rows, frames, _, tokens, _ = q.shape
        together, start, before = _groups(read_only or (False,) * (frames // self.chunk), self.chunk, self.chunks_together)
        length = self.window + before[-1]
        q, k, v = (self._chunks(t, together) for t in (q, k, v))  # (B * groups, H, together, chunk * N, P)
        past_keys, past_values = (self._stretches(t, start, length) for t in (keys, values))  # (B * groups, H, length * N, P)
        bias = self._visible_bias(before, length)
        if together == 1:
            past_keys, past_values = torch.cat([past_keys, k.squeeze(2)], 2), torch.cat([past_values, v.squeeze(2)], 2)
            y = F.scaled_dot_product_attention(q.squeeze(2), past_keys, past_values, bias.unsqueeze(0), scale=1.0)
        else:
            seen, own = q.flatten(2, 3) @ past_keys.transpose(-1, -2), q @ k.transpose(-1, -2)
            weights = (torch.cat([seen, own.flatten(2, 3)], -1) + bias).softmax(-1)
            seen, own = weights.split([seen.shape[-1], own.shape[-1]], -1)
            y = seen @ past_values + (own.view(*q.shape[:-1], -1) @ v).flatten(2, 3)  # (B * groups, H, together * chunk * N, P)
        return y.unflatten(2, (-1, tokens)).permute(0, 2, 3, 1, 4).reshape(rows, -1, tokens, self.heads, y.shape[-1])[:, :frames]

    def _chunks(self, x: Tensor, together: int) -> Tensor:
        """(B, T, H, N, P) to (B * groups, H, together, chunk * N, P); the last group is filled with zeros."""
        missing = -x.shape[1] % (together * self.chunk)
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x
        x = x.unflatten(1, (-1, together, self.chunk)).permute(0, 1, 4, 2, 3, 5, 6)
        return x.reshape(-1, *x.shape[2:4], x.shape[4] * x.shape[5], x.shape[6])

    def _stretches(self, x: Tensor, start: tuple[int, ...], length: int) -> Tensor:
        """`length` frames from each start: (B, T, H, N, P) to (B * groups, H, length * N, P); beyond the last are zeros."""
        missing = max(0, start[-1] + length - x.shape[1])
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x
        if len(start) > 1:
            x = x[:, constant(start, x.device)[:, None] + torch.arange(length, device=x.device)].flatten(0, 1)
        return x[:, :length].transpose(1, 2).flatten(2, 3)

    def _visible_bias(self, before: tuple[int, ...], length: int) -> Tensor:
        """Bias by distance, -inf where a frame is not seen: (H, together * chunk * N, (length + chunk) * N)."""
        index = _bias_index(before, length, self.window, self.chunk, *self.bias.shape[1:3], self.bias.device)
        return F.pad(self.bias.flatten(1), (0, 1), value=-torch.inf)[:, index]


@functools.lru_cache(maxsize=64)
def _groups(read_only: tuple[bool, ...], chunk: int, together: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """How many chunks make a group; for each group how many frames are committed before it, and for each of its chunks
    how many of the group are committed before that. Groups that differ in the latter are of one chunk."""
    before = tuple(count * chunk for count in committed_before(read_only))
    together = min(together, len(before))
    start, within = before[::together], before[:together]
    if before != tuple(a + b for a in start for b in within)[: len(before)]:
        together, start, within = 1, before, before[:1]
    return together, start, within


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept must serve training, too
def _bias_index(before: tuple[int, ...], length: int, window: int, chunk: int, distances: int, tokens: int, device: torch.device) -> Tensor:
    """Where in the flattened biases of a head (distances, N, N), or behind them, is the one for each query and key.

    Queries: a group's chunks. Keys: `length` frames from the first that the first chunk sees, and then the own chunk's.
    """
    query = torch.arange(chunk)[None, :, None]  # of a chunk; axes are chunk, query frame, key frame
    first = torch.tensor(before)[:, None, None]
    past = torch.arange(length)
    distance = torch.cat([window + first + query - past, (query - torch.arange(chunk)).expand(len(before), -1, -1)], -1)
    seen = torch.cat([(past >= first) & (past < first + window), torch.ones(len(before), 1, chunk, dtype=torch.bool)], -1)
    plane = (distance + chunk - 1).clamp(max=distances - 1).where(seen, distances).flatten(0, 1)
    inside = torch.arange(tokens)[:, None] * tokens + torch.arange(tokens)
    index = (plane[:, None, :, None] * tokens**2 + inside[None, :, None, :]).flatten(2).flatten(0, 1)
    return index.clamp(max=distances * tokens**2).to(device)
