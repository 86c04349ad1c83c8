"""The scan of Mamba-2 over whole chunks of tokens, and its gradient, written out.

Source: Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 6. Autograd would make the same gradient of the same steps, but
it keeps and walks over many more tensors of the size of the tokens, which on a CPU took half of a scan's time. Here every tensor of
that size is laid out once, and what scales tokens is put on the smaller side of each product.

Letters are those of `ssd`; further c chunks of q tokens. Log decays count from a chunk's start. What a chunk's tokens take of each other
and of the state that the chunk begins with is one product: (q, q + n) weights, with tokens above that state, (q + n, p).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """What the gradient needs."""

    dt: Tensor  # (b, c, h, q)
    decay: Tensor  # (b, c, h, q), log
    keys: Tensor  # (b, c, g, q, n)
    queries: Tensor  # (b, c, g, q, n)
    between: Tensor  # (b, c, h, q, q): the decay from token s to token t, zero where s is later
    weights: Tensor  # (b, c, h, q, q + n): what token t takes of token s of its chunk, and of the state
    sources: Tensor  # (b, c, h, q + n, p): tokens, and the states that chunks begin with


def scan_chunks(x: Tensor, dt: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """y (b, l, h, p) and the state after the last chunk (b, h, p, n).

    x (b, l, h, p), dt and log decay (b, c, h, q) with l = c * q, B and C (b, l, g, n), state (b, h, p, n); dt, decays and state of one
    dtype, the others of another or the same. Gradients go to all of them, once.
    """
    given = x, dt, decay, B, C, state
    with torch.autocast(x.device.type, enabled=False):  # every dtype is as it is given
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            return _Scan.apply(*given)
        return _one_chunk(*given) if decay.shape[1] == 1 else _forward(*given)[:2]


def decay_between(decay: Tensor) -> Tensor:
    """Cumulated log decays (..., q) to the decay from token s to token t, zero where s is later: (..., q, q)."""
    q = decay.shape[-1]
    later = torch.ones(q, q, dtype=torch.bool, device=decay.device).triu(1)
    return (decay[..., :, None] - decay[..., None, :]).masked_fill_(later, -torch.inf).exp_()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        y, state, kept = _forward(*given)
        ctx.save_for_backward(*kept)
        return y, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dstate: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(dy.device.type, enabled=False):
            return _backward(Kept(*ctx.saved_tensors), dy, dstate)


def _one_chunk(x: Tensor, dt: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As in a dream, where states are most of the work: they are read where they are, and one tensor of their size is made."""
    q = decay.shape[-1]
    x, keys, queries = (_to_chunks(tokens, q) for tokens in (x, B, C))
    weights, _ = _weights(dt, decay, keys, queries)
    y = _flat(weights[..., :q]).bmm(_flat(x))
    y = y.baddbmm_(_flat(weights[..., q:]), state.to(x.dtype).flatten(0, 1).transpose(1, 2)).view_as(x)
    added = _flat(x).transpose(1, 2).bmm(_flat(_written(dt, decay, keys))).view_as(state).to(state.dtype)
    return _to_tokens(y), added.addcmul_(state, decay[:, 0, :, -1].exp()[..., None, None])


def _forward(x: Tensor, dt: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Kept]:
    b, c, h, q = decay.shape
    p, n = state.shape[2:]
    keys, queries = _to_chunks(B, q), _to_chunks(C, q)
    weights, between = _weights(dt, decay, keys, queries)
    sources = x.new_empty(b, c, h, q + n, p)
    tokens, entering = sources.split([q, n], 3)
    tokens.copy_(_chunks(x, q))
    added = _flat(_written(dt, decay, keys)).transpose(1, 2).bmm(_flat(tokens)).view(b, c, h, n, p)
    state = _pass_on(state.transpose(2, 3), added.to(decay.dtype), decay[..., -1].exp(), entering)
    y = _to_tokens(_flat(weights).bmm(_flat(sources)).view_as(tokens))
    return y, state.transpose(2, 3).contiguous(), Kept(dt, decay, keys, queries, between, weights, sources)


def _backward(kept: Kept, dy: Tensor, dstate: Tensor) -> tuple[Tensor, ...]:
    dt, decay, keys, queries, between, weights, sources = kept
    q, groups, n, exact = decay.shape[-1], keys.shape[2], keys.shape[-1], decay.dtype
    dy = _flat(_to_chunks(dy.to(sources.dtype), q))
    tokens, entering = sources.split([q, n], 3)
    dwithin, dread = dy.bmm(_flat(sources).transpose(1, 2)).view_as(weights).split([q, n], -1)
    dtokens, dentering = _flat(weights).transpose(1, 2).bmm(dy).view_as(sources).split([q, n], 3)

    # a token's weight is between * similar * dt, where similar is queries @ keys
    dwithin = dwithin * between
    similar = queries @ keys.transpose(-1, -2)
    by_dt = (dwithin.unflatten(2, (groups, -1)) * similar.unsqueeze(3)).flatten(2, 3)
    ddt = by_dt.sum(-2, dtype=exact)
    by_token = dt.to(by_dt.dtype).unsqueeze(-2)
    ddecay = by_dt.mul_(by_token).sum(-1, dtype=exact) - ddt * dt
    dsimilar = dwithin.mul_(by_token).unflatten(2, (groups, -1)).sum(3)

    # a state's is queries * from_start
    from_start = decay.exp()
    ddecay += _dot(dread, queries) * from_start
    dqueries = dsimilar @ keys + _summed(dread, from_start, groups)

    # what tokens leave behind is keys * dt * to_end
    left = dt * _to_end(decay)
    dadded, dstate = _passed_back(dstate.transpose(2, 3), dentering, from_start[..., -1])
    dadded = dadded.to(tokens.dtype)
    dsurvives, flat = (dadded * entering).sum((-1, -2), dtype=exact), _flat(dadded)
    dx = dtokens.new_empty(dtokens.shape[0], dtokens.shape[1] * q, *dtokens.shape[2::2])
    torch.add(dtokens, _flat(_scaled(keys, left)).bmm(flat).view_as(dtokens), out=_chunks(dx, q))
    dwritten = _flat(tokens).bmm(flat.transpose(1, 2)).view_as(dread)
    dleft = _dot(dwritten, keys)
    ddt += dleft * _to_end(decay)
    ddecay -= dleft * left
    ddecay[..., -1] += (dleft * left).sum(-1) + dsurvives * from_start[..., -1]
    dkeys = dsimilar.transpose(-1, -2) @ queries + _summed(dwritten, left, groups)

    return dx, ddt, ddecay, _to_tokens(dkeys), _to_tokens(dqueries), dstate.transpose(2, 3)


def _weights(dt: Tensor, decay: Tensor, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """`Kept.weights` and `Kept.between`."""
    (b, c, h, q), groups, n = decay.shape, keys.shape[2], keys.shape[-1]
    between = decay_between(decay).to(keys.dtype)
    weights = keys.new_empty(b, c, h, q, q + n)
    of_tokens, of_state = weights.unflatten(2, (groups, -1)).split([q, n], -1)
    similar = queries @ keys.transpose(-1, -2)
    torch.mul(between.unflatten(2, (groups, -1)), similar.unsqueeze(3), out=of_tokens)
    of_tokens.mul_(dt.to(keys.dtype).unflatten(2, (groups, -1)).unsqueeze(-2))
    torch.mul(queries.unsqueeze(3), decay.exp().to(keys.dtype).unflatten(2, (groups, -1)).unsqueeze(-1), out=of_state)
    return weights, between


def _written(dt: Tensor, decay: Tensor, keys: Tensor) -> Tensor:
    """What tokens write to the state that their chunk ends with, times the tokens: (b, c, h, q, n)."""
    return _scaled(keys, dt * _to_end(decay))


def _pass_on(state: Tensor, added: Tensor, survives: Tensor, entering: Tensor) -> Tensor:
    """Fills in the states that chunks begin with (b, c, h, n, p), and returns the last one; survives (b, c, h)."""
    exact = entering if entering.dtype == added.dtype else torch.empty_like(added)
    exact[:, 0] = state
    kept = survives[..., None, None]
    for i in range(1, added.shape[1]):
        torch.addcmul(added[:, i - 1], exact[:, i - 1], kept[:, i - 1], out=exact[:, i])
    if exact is not entering:
        entering.copy_(exact)
    return torch.addcmul(added[:, -1], exact[:, -1], kept[:, -1])


def _passed_back(dstate: Tensor, dentering: Tensor, survives: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of what was added (b, c, h, n, p), and of the first state."""
    dentering, kept = dentering.to(dstate.dtype), survives[..., None, None]
    dadded = torch.empty_like(dentering, memory_format=torch.contiguous_format)
    dadded[:, -1] = dstate
    for i in reversed(range(1, dadded.shape[1])):
        torch.addcmul(dentering[:, i], dadded[:, i], kept[:, i], out=dadded[:, i - 1])
    return dadded, torch.addcmul(dentering[:, 0], dadded[:, 0], kept[:, 0])


def _to_end(decay: Tensor) -> Tensor:
    return (decay[..., -1:] - decay).exp()


def _chunks(x: Tensor, q: int) -> Tensor:
    """(b, l, h, ...) to (b, c, h, q, ...), seen so."""
    return x.view(x.shape[0], -1, q, *x.shape[2:]).transpose(2, 3)


def _to_chunks(x: Tensor, q: int) -> Tensor:
    """The same, laid out so."""
    return _chunks(x, q).contiguous()


def _to_tokens(x: Tensor) -> Tensor:
    """The inverse of `_chunks`."""
    return x.transpose(2, 3).reshape(x.shape[0], -1, x.shape[2], x.shape[4])


def _flat(x: Tensor) -> Tensor:
    """(b, c, h, ...) to (b * c * h, ...)."""
    return x.reshape(-1, *x.shape[3:])


def _scaled(tokens: Tensor, by: Tensor) -> Tensor:
    """tokens (b, c, g, q, n) for each head, times by (b, c, h, q): (b, c, h, q, n)."""
    by = by.to(tokens.dtype).unflatten(2, (tokens.shape[2], -1))
    return (tokens.unsqueeze(3) * by.unsqueeze(-1)).flatten(2, 3)


def _dot(by_head: Tensor, tokens: Tensor) -> Tensor:
    """Products of (b, c, h, q, n) with their group's (b, c, g, q, n): (b, c, h, q)."""
    by_group = by_head.unflatten(2, (tokens.shape[2], -1))
    return (by_group * tokens.unsqueeze(3)).sum(-1, dtype=torch.promote_types(tokens.dtype, torch.float32)).flatten(2, 3)


def _summed(by_head: Tensor, by: Tensor, groups: int) -> Tensor:
    """(b, c, h, q, n) times (b, c, h, q), summed over a group's heads: (b, c, g, q, n)."""
    return (by_head * by.to(by_head.dtype).unsqueeze(-1)).unflatten(2, (groups, -1)).sum(3)
