"""Three ways to learn from a clip: forcing, peeking, and peeking from a past that the model itself has dreamed.

Each takes (model, clip, state, options, metric, draws) and returns losses to weigh and sum, over how many frames each is a
mean, and the state after the clip where it was committed on the way. Gradients stop at the incoming state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.data.segments import Clip, inputs_of
from lssvwm_gym.models.conditioning import FrameInputs
from lssvwm_gym.models.diffusion import NoiseLevels, add_noise, denoising_loss, draw_noise_levels, energy_score
from lssvwm_gym.models.heads import InventoryHead
from lssvwm_gym.models.inference.backend import PLAIN, RECORDED
from lssvwm_gym.models.inference.compile import compile_step
from lssvwm_gym.models.state import WorldState
from lssvwm_gym.models.world_model import WorldModel, WorldOutput
from lssvwm_gym.training.distributed import ShardedRNG


@dataclass(frozen=True)
class LossOptions:
    """How clips are made noisy."""

    noise: NoiseLevels = field(default_factory=NoiseLevels)  # of forcing
    peeked_pure: float = 0.6  # share of peeks at pure noise, which is where one-step sampling starts; others anywhere
    context_noise: float = 0.1  # clean frames carry up to this much unannounced noise, as imperfect dreamed ones do
    pose_dropout: float = 0.1  # share of clips without poses
    energy: float = 0.0  # weight of the energy score, which from pure noise asks for one of the possible frames; 0: for their mean
    dreamed_from: tuple[float, float] = (0.25, 0.75)  # of a clip: where the part begins whose past is dreamed


class Losses(NamedTuple):
    """What a clip teaches."""

    means: dict[str, Tensor]
    counts: dict[str, Tensor]  # frames that each is a mean over, 0 where there was none
    committed: WorldState | None  # the state after the clip, if that is known


def diffusion_forcing_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, draws: ShardedRNG
) -> Losses:
    """Diffusion forcing: every frame has a noise level of its own, and what is noisy is also the past of what follows."""
    rows, frames = clip.reward.shape
    level = draws.mine(draw_noise_levels(rows * draws.shares, frames, options.noise, draws.generator))
    inputs = inputs_of(clip, level, _draw_known(options, clip, draws))
    output = model(_noised(options, clip.latent, level, draws), inputs, state)
    denoise = denoising_loss(output.clean, clip.latent, level, metric)
    return Losses(*_losses(model, output, clip, level, denoise, (level > 0).sum()), None)


def teacher_forcing_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, draws: ShardedRNG
) -> Losses:
    """As in a dream: every frame is peeked at noisily from a clean past, and then committed; both in one call."""
    known = _draw_known(options, clip, draws)
    past = _noised(options, clip.latent, torch.zeros_like(known), draws)
    return _peeking(model, clip, past, known, state, options, metric, draws)


def self_rollout_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, draws: ShardedRNG
) -> Losses:
    """Peeking, where from some frame on the past is what the model dreams now, frame by frame; the targets stay the real ones.

    It learns what its own frames are worth: blur is not taken for the world's, and errors don't feed on themselves.
    """
    known = _draw_known(options, clip, draws)
    past = _noised(options, clip.latent, torch.zeros_like(known), draws)
    earliest, latest = (int(share * past.shape[1]) for share in options.dreamed_from)
    real = draws.whole(max(1, earliest), max(2, latest + 1))
    past = dreamed_past(model, past[:, :real], clip, known, state, draws)
    return _peeking(model, clip, past, known, state, options, metric, draws)


LOSSES = {"forcing": diffusion_forcing_losses, "peeking": teacher_forcing_losses, "dreaming": self_rollout_losses}


@torch.no_grad()
def dreamed_past(model: WorldModel, real: Tensor, clip: Clip, known: Tensor, state: WorldState, draws: ShardedRNG) -> Tensor:
    """Go on from real latents (B, R, N, C) to the clip's end (B, T, N, C), one step a frame, at the clip's actions and poses.

    A frame is committed in the same call that peeks at the next one.
    """
    inputs = inputs_of(clip, torch.zeros_like(known), known)
    noise = draws.normal(known.shape[1] - real.shape[1], *real.shape[:1], *real.shape[2:], axis=1)
    latest, begun, past = real, 0, [real]
    step = compile_step(_committed_and_peeked, model, RECORDED if real.device.type == "cuda" else PLAIN)
    for fresh in noise:
        ahead = slice(begun, begun + latest.shape[1] + 1)
        run = step if latest.shape[1] == 1 else _committed_and_peeked
        estimate, state = run(model, latest, fresh, FrameInputs(*(tensor[:, ahead] for tensor in inputs)), state)
        begun, latest = begun + latest.shape[1], estimate.unsqueeze(1).to(real.dtype)
        past.append(latest)
    return torch.cat(past, 1)


def _committed_and_peeked(
    model: WorldModel, latest: Tensor, noise: Tensor, inputs: FrameInputs, state: WorldState
) -> tuple[Tensor, WorldState]:
    """Commit latents (B, K, N, C) and estimate the frame after them from noise (B, N, C); also returns the state after the commit."""
    read_only = (False,) * latest.shape[1] + (True,)
    level = torch.cat([torch.zeros_like(inputs.noise[:, 1:]), torch.ones_like(inputs.noise[:, :1])], 1)
    output = model(torch.cat([latest, noise.unsqueeze(1)], 1), inputs._replace(noise=level), state, read_only)
    return output.clean[:, -1], output.state


def _peeking(
    model: WorldModel,
    clip: Clip,
    past: Tensor,
    known: Tensor,
    state: WorldState,
    options: LossOptions,
    metric: Tensor,
    draws: ShardedRNG,
) -> Losses:
    """Peek at every frame of the clip from the committed latents `past` (B, T, N, C)."""
    drawn = draws.uniform(2, *known.shape, axis=1)
    level = torch.where(drawn[0] < options.peeked_pure, 1.0, drawn[1].clamp(min=1e-3))
    looks = 2 if options.energy else 1  # at every frame; a second one is of the same level, so at pure noise an independent sample
    inputs = inputs_of(clip, torch.zeros_like(level), known)
    noise = _in_turn([level] * looks + [inputs.noise])
    all_of_them = FrameInputs(*(tensor.repeat_interleave(looks + 1, 1) for tensor in inputs))._replace(noise=noise)
    peeked = [_noised(options, clip.latent, level, draws) for _ in range(looks)]
    output = model(_in_turn([*peeked, past]), all_of_them, state, ((True,) * looks + (False,)) * level.shape[1])
    estimates = [output.clean[:, look :: looks + 1] for look in range(looks)]
    pure = (level == 1).float() * bool(options.energy)
    denoise = denoising_loss(estimates[0], clip.latent, level * (1 - pure), metric)
    if options.energy:
        share = pure.mean()
        denoise = (1 - share) * denoise + share * options.energy * energy_score((estimates[0], estimates[1]), clip.latent, pure, metric)
    committed = output._replace(features=output.features[:, looks :: looks + 1])
    return Losses(*_losses(model, committed, clip, inputs.noise, denoise, (level > 0).sum()), output.state)


def _losses(
    model: WorldModel, output: WorldOutput, clip: Clip, level: Tensor, denoise: Tensor, noisy: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All losses and what each is a mean over; `denoise` is one over `noisy` frames."""
    committed = (level == 0).float()
    known, followed = committed * clip.recorded, committed[:, :-1] * (clip.recorded * clip.placed)[:, 1:]
    means = {"denoise": denoise, "reward": _reward_loss(model, output, clip, known), "pose": _pose_loss(model, output, clip, followed)}
    counts = {"denoise": noisy.float(), "reward": known.sum(), "pose": followed.sum()}
    if model.inventory_head is not None:
        means["vector"], counts["vector"] = _inventory_loss(model.inventory_head, output, clip, known), known.sum()
    return means, counts


def _noised(options: LossOptions, latent: Tensor, level: Tensor, draws: ShardedRNG) -> Tensor:
    """Latents at their noise levels; clean ones carry a little unannounced noise, as dreamed ones do."""
    unannounced = draws.uniform(len(level), 1) * options.context_noise * (level == 0)
    noise = draws.normal(*latent.shape)
    return add_noise(latent, noise, torch.maximum(level, unannounced))


def _draw_known(options: LossOptions, clip: Clip, draws: ShardedRNG) -> Tensor:
    """Whether a clip's poses are told, (B, T) float."""
    return (draws.uniform(len(clip.action), 1) >= options.pose_dropout).float() * clip.placed


def _in_turn(parts: list[Tensor]) -> Tensor:
    """K of (B, T, ...) to (B, K * T, ...), frame by frame."""
    return torch.stack(parts, 2).flatten(1, 2)


def _reward_loss(model: WorldModel, output: WorldOutput, clip: Clip, weight: Tensor) -> Tensor:
    logits = model.reward_head(output.features)
    loss = F.cross_entropy(logits.flatten(0, 1), (clip.reward > 0.5).long().flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def _pose_loss(model: WorldModel, output: WorldOutput, clip: Clip, weight: Tensor) -> Tensor:
    """Frame t predicts the motion to frame t+1, where t is clean and the action to t+1 is known: weight (B, T - 1)."""
    predicted = model.motion_head(output.features[:, :-1], clip.motion[:, :-1], clip.action[:, 1:])
    scale = model.motion_head.motion_scale
    loss = F.smooth_l1_loss(predicted / scale, clip.motion[:, 1:] / scale, beta=0.1, reduction="none").mean(-1)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def _inventory_loss(head: InventoryHead, output: WorldOutput, clip: Clip, weight: Tensor) -> Tensor:
    """Every count's change; a sum over the counts, of which few change at once."""
    change = (clip.inventory - clip.before).long() + head.most
    logits = head(output.features, clip.before, clip.action)
    loss = F.cross_entropy(logits.flatten(0, 2), change.clamp(0, 2 * head.most).flatten(), reduction="none").view(change.shape).sum(-1)
    return (loss * weight).sum() / weight.sum().clamp(min=1)
