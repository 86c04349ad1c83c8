"""Three ways to learn from a clip: forcing, peeking, and peeking from a past that the model itself has dreamed.

Each takes (model, clip, state, options, metric, generator) and returns losses to weigh and sum, and the state after the
clip where it was committed on the way. Gradients stop at the incoming state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lssvwm_gym.models.diffusion import NoiseLevels, add_noise, denoising_loss, draw_noise_levels
from lssvwm_gym.models.state import WorldState
from lssvwm_gym.models.world_model import FrameInputs, WorldModel, WorldOutput
from lssvwm_gym.training.walks import Clip, inputs_of


@dataclass(frozen=True)
class LossOptions:
    """How clips are made noisy."""

    noise: NoiseLevels = field(default_factory=NoiseLevels)  # of forcing
    peeked_pure: float = 0.6  # share of peeks at pure noise, which is where one-step sampling starts; others anywhere
    context_noise: float = 0.1  # clean frames carry up to this much unannounced noise, as imperfect dreamed ones do
    pose_dropout: float = 0.1  # share of clips without poses
    dreamed_from: tuple[float, float] = (0.25, 0.75)  # of a clip: where the part begins whose past is dreamed


Losses = tuple[dict[str, Tensor], WorldState | None]


def forcing_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, generator: torch.Generator
) -> Losses:
    """Diffusion forcing: every frame has a noise level of its own, and what is noisy is also the past of what follows."""
    rows, frames = clip.action.shape
    level = draw_noise_levels(rows, frames, options.noise, generator)
    inputs = inputs_of(clip, level, _draw_known(options, clip, generator))
    output = model(_noised(options, clip.latent, level, generator), inputs, state)
    denoise = denoising_loss(output.clean, clip.latent, level, metric)
    return _losses(model, output, clip, level, denoise), None


def peeking_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, generator: torch.Generator
) -> Losses:
    """As in a dream: every frame is peeked at noisily from a clean past, and then committed; both in one call."""
    known = _draw_known(options, clip, generator)
    past = _noised(options, clip.latent, torch.zeros_like(known), generator)
    return _peeking(model, clip, past, known, state, options, metric, generator)


def dreaming_losses(
    model: WorldModel, clip: Clip, state: WorldState, options: LossOptions, metric: Tensor, generator: torch.Generator
) -> Losses:
    """Peeking, where from some frame on the past is what the model dreams now, frame by frame; the targets stay the real ones.

    It learns what its own frames are worth: blur is not taken for the world's, and errors don't feed on themselves.
    """
    known = _draw_known(options, clip, generator)
    past = _noised(options, clip.latent, torch.zeros_like(known), generator)
    earliest, latest = (int(share * past.shape[1]) for share in options.dreamed_from)
    real = int(torch.randint(max(1, earliest), max(2, latest + 1), (), generator=generator))
    past = dreamed_past(model, past[:, :real], clip, known, state, generator)
    return _peeking(model, clip, past, known, state, options, metric, generator)


LOSSES = {"forcing": forcing_losses, "peeking": peeking_losses, "dreaming": dreaming_losses}


@torch.no_grad()
def dreamed_past(model: WorldModel, real: Tensor, clip: Clip, known: Tensor, state: WorldState, generator: torch.Generator) -> Tensor:
    """Go on from real latents (B, R, N, C) to the clip's end (B, T, N, C), one step a frame, at the clip's actions and poses.

    A frame is committed in the same call that peeks at the next one.
    """
    past, begun = list(real.unbind(1)), 0
    inputs = inputs_of(clip, torch.zeros_like(known), known)
    while len(past) < clip.action.shape[1]:
        ahead = slice(begun, len(past) + 1)
        latent = torch.stack([*past[begun:], torch.randn(past[0].shape, generator=generator)], 1)
        peeks = (False,) * (latent.shape[1] - 1) + (True,)
        level = torch.tensor(peeks).float().expand(latent.shape[:2])
        output = model(latent, FrameInputs(*(tensor[:, ahead] for tensor in inputs))._replace(noise=level), state, peeks)
        begun, state = len(past), output.state
        past.append(output.clean[:, -1].to(real.dtype))
    return torch.stack(past, 1)


def _peeking(
    model: WorldModel,
    clip: Clip,
    past: Tensor,
    known: Tensor,
    state: WorldState,
    options: LossOptions,
    metric: Tensor,
    generator: torch.Generator,
) -> Losses:
    """Peek at every frame of the clip from the committed latents `past` (B, T, N, C)."""
    drawn = torch.rand(2, *known.shape, generator=generator)
    level = torch.where(drawn[0] < options.peeked_pure, 1.0, drawn[1].clamp(min=1e-3))
    inputs = inputs_of(clip, torch.zeros_like(level), known)
    both = FrameInputs(*(tensor.repeat_interleave(2, 1) for tensor in inputs))._replace(noise=_interleaved(level, inputs.noise))
    peeked = _noised(options, clip.latent, level, generator)
    peeks = (True, False) * level.shape[1]
    output = model(_interleaved(peeked, past), both, state, peeks)
    denoise = denoising_loss(output.clean[:, ::2], clip.latent, level, metric)
    return _losses(model, output._replace(features=output.features[:, 1::2]), clip, inputs.noise, denoise), output.state


def _losses(model: WorldModel, output: WorldOutput, clip: Clip, level: Tensor, denoise: Tensor) -> dict[str, Tensor]:
    committed = (level == 0).float()
    reward = _reward_loss(model, output, clip, committed * clip.recorded)
    return {"denoise": denoise, "reward": reward, "pose": _pose_loss(model, output, clip, committed)}


def _noised(options: LossOptions, latent: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
    """Latents at their noise levels; clean ones carry a little unannounced noise, as dreamed ones do."""
    unannounced = torch.rand(len(level), 1, generator=generator) * options.context_noise * (level == 0)
    noise = torch.randn(latent.shape, generator=generator)
    return add_noise(latent, noise, torch.maximum(level, unannounced))


def _draw_known(options: LossOptions, clip: Clip, generator: torch.Generator) -> Tensor:
    """Whether a clip's poses are told, (B, T) float."""
    rows = clip.action.shape[0]
    return (torch.rand(rows, 1, generator=generator) >= options.pose_dropout).float().expand_as(clip.reward)


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """(B, T, ...) twice to (B, 2T, ...), frame by frame."""
    return torch.stack([first, second], 2).flatten(1, 2)


def _reward_loss(model: WorldModel, output: WorldOutput, clip: Clip, weight: Tensor) -> Tensor:
    logits = model.reward_head(output.features)
    loss = F.cross_entropy(logits.flatten(0, 1), (clip.reward > 0.5).long().flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def _pose_loss(model: WorldModel, output: WorldOutput, clip: Clip, committed: Tensor) -> Tensor:
    """Frame t predicts the motion to frame t+1, where t is clean and the action to t+1 is known."""
    weight = committed[:, :-1] * clip.recorded[:, 1:]
    predicted = model.pose_head(output.features[:, :-1], clip.motion[:, :-1], clip.action[:, 1:])
    scale = model.pose_head.motion_scale
    loss = F.smooth_l1_loss(predicted / scale, clip.motion[:, 1:] / scale, beta=0.1, reduction="none").mean(-1)
    return (loss * weight).sum() / weight.sum().clamp(min=1)
