"""Tests of imagination: a dream that begins from nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.context import EvalContext
from lssvwm_gym.evaluation.metrics import Score, inner, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along
from lssvwm_gym.models.geometry import motion_between
from lssvwm_gym.models.rollout import first_state
from lssvwm_gym.models.segment import Segment

LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue, ITU-R BT.601


def cold_start(context: EvalContext) -> dict[str, Any]:
    """From the empty state, 60 frames dreamed on recorded actions with estimated motion, then the same estimated poses in reverse.

    Self-consistency: PSNR between the first and the second frame of each pose, the turning point left out; beside it the same
    with the second frames in another order (chance). Statistics of the first frames and of the real frames of the same actions,
    see `statistics`.
    """
    model, run = context.weights.world_model, context.run
    clips = cut_clips(context.episodes, run.cold_start, run.clips)
    unknown = torch.full_like(clips.action[:, :1], model.config.actions)
    clips = dataclasses.replace(clips, action=torch.cat([unknown, clips.action[:, 1:]], 1))  # nothing led to the first frame
    state = first_state(model, torch.arange(len(clips.frames)) + 1000 * run.seed)
    dream, state = dream_along(model, state, clips, run.steps, true_motion=False)
    back = _reversed(clips, dream.pose, model.config.actions)
    there = decode_clips(context.weights, dream.latent)
    again = context.generated(state, back)
    first = there[:, :-1].flip(1)  # in the reversed order
    order = torch.randperm(again.shape[1], generator=torch.Generator().manual_seed(run.seed))
    context.keep("cold_start", {"there": there[:, :-1], "back": again.flip(1)})
    return {
        "self-consistency: PSNR": score(context.quality(again, first)),
        "self-consistency, shuffled frames: PSNR": score(context.quality(again[:, order], first)),
        **_statistics(there, "dreamed frames", context.world.border),
        **_statistics(clips.frames, "real frames", context.world.border),
    }


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """Of uint8 frames (..., height, width, 3), each (...,): brightness and contrast, mean and standard deviation of luma in 0..1;
    sharpness, mean absolute difference of neighbours' luma; colourfulness after Hasler and Süsstrunk (2003), of colours in 0..1."""
    red, green, blue = (frames.float() / 255).unbind(-1)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(-2)
    spread, centre = opponents.std(-1, correction=0), opponents.mean(-1)
    return {
        "brightness": luma.mean((-2, -1)),
        "contrast": luma.std((-2, -1), correction=0),
        "sharpness": (luma.diff(dim=-1).abs().mean((-2, -1)) + luma.diff(dim=-2).abs().mean((-2, -1))) / 2,
        "colourfulness": torch.hypot(*spread) + 0.3 * torch.hypot(*centre),
    }


def _statistics(frames: Tensor, name: str, border: int) -> dict[str, Score]:
    rows = [statistics(inner(clip, border)) for clip in frames]
    return {f"{name}: {key}": score(torch.stack([row[key] for row in rows])) for key in rows[0]}


def _reversed(clips: Segment, pose: Tensor, unknown_action: int) -> Segment:
    """The reversed trajectory of poses (B, T, 4), without the turning point, by unknown actions."""
    pose = pose.flip(1)
    motion = motion_between(pose[:, :-1], pose[:, 1:])
    back = clips[: len(clips) - 1]
    return dataclasses.replace(back, action=torch.full_like(back.action, unknown_action), pose=pose[:, 1:], motion=motion)
