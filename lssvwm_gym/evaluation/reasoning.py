"""Reasoning: a long real past, then a long dream of the real actions. What has been seen before must look the same again."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import Score, masked_score, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along, dream_at_poses, reckon_clips, remember_clips
from lssvwm_gym.evaluation.workbench import Bench
from lssvwm_gym.models.geometry import PLANE

SIMILAR = 0.26  # radians of heading, and of tilt, within which two views of one place show the same
SPANS = ((1, 100), (100, 300), (300, 1000))  # frames since a view was last seen


def reasoning(bench: Bench) -> dict[str, Any]:
    """A real past, then frames dreamed on the real actions; PSNR and SSIM against the real continuation, of

    told poses: a past at its true poses, and the true poses and motions ahead;
    believed poses: the model follows the past by its actions and by what it sees, and ahead its pose head goes on from there;
    last frame repeated: the last one of the past.

    With told poses PSNR is split by whether a frame of the past had a pose within the world's `near` and 0.26 radians (seen
    before) or none had (new); and what was seen before by the frames since the last such frame of the past. A clip
    without frames of a kind doesn't count there.
    """
    model, run = bench.weights.world_model, bench.run
    context, ahead = run.reasoning
    clips = cut_clips(bench.episodes, context + ahead, run.clips)
    past, future = clips[:context], clips[context:]
    truth = future.frames
    told = decode_clips(bench.weights, dream_at_poses(model, remember_clips(model, past, run.seed), future, run.steps))
    name, pictures = f"{context} then {ahead}", {"truth": truth, "told poses": told}
    results = bench.frame_scores(f"{name}, told poses:", told, truth)
    results |= _by_age(bench.quality(told, truth), frames_since_seen(past.pose, future.pose, bench.world.near), f"{name}, told poses:")
    if "believed" in run.memories:
        followed = reckon_clips(model, past, run.seed)[0]
        dreamed = decode_clips(bench.weights, dream_along(model, followed, future, run.steps, true_motion=False)[0].latent)
        results |= bench.frame_scores(f"{name}, believed poses:", dreamed, truth)
        pictures["believed poses"] = dreamed
    bench.keep("reasoning", pictures)
    return results | bench.frame_scores(f"{name}, last frame repeated:", past.frames[:, -1:].expand_as(truth), truth)


def frames_since_seen(past: Tensor, future: Tensor, within: float) -> Tensor:
    """Frames since the last frame of the past (B, P, 4 or 6) that had about the pose of a frame that followed it (B, T, 4 or 6).

    About: `within` so many units of length, in space of x, y and height, and within 0.26 radians of heading and of tilt.
    (B, T) int64; 0 where none had.
    """
    frames, cosine = past.shape[1], math.cos(SIMILAR)
    near = torch.cdist(_place(future), _place(past)) <= within
    alike = torch.einsum("btc,bpc->btp", future[..., 2:PLANE], past[..., 2:PLANE]) >= cosine
    if future.shape[-1] > PLANE:
        alike &= (future[..., None, PLANE + 1] - past[:, None, :, PLANE + 1]).abs() <= SIMILAR
    number = torch.arange(1, frames + 1)
    last = ((near & alike) * number).amax(-1)
    return torch.where(last > 0, torch.arange(1, future.shape[1] + 1) + frames - last, 0)


def _place(pose: Tensor) -> Tensor:
    """x, y and, in space, height."""
    return torch.cat([pose[..., :2], pose[..., PLANE : PLANE + 1]], -1)


def _by_age(quality: Tensor, since: Tensor, name: str) -> dict[str, Score]:
    parts = {"seen before": since > 0, "new": since == 0}
    parts |= {f"seen {first} to {end - 1} frames ago": (since >= first) & (since < end) for first, end in SPANS}
    scores = {f"{name} PSNR of frames {part}": masked_score(quality, mask) for part, mask in parts.items()}
    present = {key: value for key, value in scores.items() if value is not None}
    return {f"{name} share of frames seen before": score((since > 0).float()), **present}
