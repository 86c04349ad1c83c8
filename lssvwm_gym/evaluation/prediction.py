"""Tests of prediction: the ceiling, the next frame, open-loop dreams, what follows a long past, drift of the pose."""

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.evaluation.context import EvalContext, Evaluation
from lssvwm_gym.evaluation.metrics import Score, masked_score, psnr, rank_correlation, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along, prefill_further, prefill_without_poses
from lssvwm_gym.models.geometry import PLANE, relative_to
from lssvwm_gym.models.rollout import imagine

HORIZONS = (10, 100, 300, 1000)  # steps
SIMILAR = 0.26  # radians of heading, and of tilt, within which two views of one place show the same
SPANS = ((1, 100), (100, 300), (300, 1000))  # frames since a view was last seen


def reconstruction(context: EvalContext) -> dict[str, Any]:
    """The autoencoder's own reconstruction: the ceiling of everything else."""
    clips = cut_clips(context.episodes, 50, 4)
    return context.frame_scores("autoencoder", decode_clips(context.weights, clips.latent), clips.frames)


def next_frame(context: EvalContext) -> dict[str, Any]:
    """The next frame after a real context: with the motion that the model estimates, with the true one, and the last frame repeated."""
    model, run = context.weights.world_model, context.run
    clips = cut_clips(context.episodes, run.context + run.ahead, run.clips)
    state = context.prefilled(clips[: run.context])
    estimated, true, errors, uncertain = [], [], [], []
    for t in tqdm(range(run.context, len(clips)), desc="next frames", leave=False):
        action, motion = clips.action[:, t], clips.motion[:, t]
        imagined = imagine(model, state, action, run.steps)
        estimated.append(imagined.latent)
        uncertain.append(imagined.uncertainty)
        true.append(imagine(model, state, action, run.steps, motion).latent)
        errors.append((imagined.motion - motion)[:, :2].norm(dim=-1))
        state = prefill_further(model, state, clips[t : t + 1]).state
    truth = clips.frames[:, run.context :]
    frames = decode_clips(context.weights, torch.stack(estimated, 1))
    return {
        **context.frame_scores("estimated motion", frames, truth),
        **context.frame_scores("true motion", decode_clips(context.weights, torch.stack(true, 1)), truth),
        **context.frame_scores("last frame repeated", clips.frames[:, run.context - 1 : -1], truth),
        "position error of one step (world units)": score(torch.stack(errors, 1)),
        **_uncertainty_correlation(run, torch.stack(uncertain, 1), context.quality(frames, truth)),
    }


def open_loop(context: EvalContext) -> dict[str, Any]:
    """A dream of real actions after a real context, with estimated motion, by horizon; beside the last context frame repeated."""
    model, run = context.weights.world_model, context.run
    clips = cut_clips(context.episodes, run.context + run.ahead, run.clips)
    state = context.prefilled(clips[: run.context])
    future = clips[run.context :]
    dream, end = dream_along(model, state, future, run.steps, true_motion=False)
    frames = decode_clips(context.weights, dream.latent)
    context.keep("open_loop", {"real": future.frames, "dreamed": frames})
    dreamed = context.quality(frames, future.frames)
    repeated = psnr(clips.frames[:, run.context - 1 : run.context].expand_as(future.frames), future.frames, context.world.border)
    results: dict[str, Any] = {}
    for horizon in sorted({1, 2, 5, 10, 20, 30, 40, run.ahead}):
        if horizon <= run.ahead:
            results[f"frame {horizon}: dream PSNR"] = score(dreamed[:, horizon - 1])
            results[f"frame {horizon}: last frame repeated PSNR"] = score(repeated[:, horizon - 1])
    results["horizons at which the dream is ahead"] = int((dreamed.mean(0) > repeated.mean(0)).sum())
    results["position error at the end (world units)"] = score((end.pose - future.pose[:, -1])[:, :2].norm(dim=-1))
    return results | _uncertainty_correlation(run, dream.uncertainty, dreamed)


def _uncertainty_correlation(run: Evaluation, uncertainty: Tensor, quality: Tensor) -> dict[str, Any]:
    """Whether `info["uncertainty"]` tells bad frames from good ones, by their PSNR, both (B, T); nothing with one step, which has none."""
    return {} if run.steps == 1 else {"rank correlation of uncertainty and PSNR": rank_correlation(uncertainty, quality)}


def drift(context: EvalContext) -> dict[str, Any]:
    """Estimated against true poses along each episode from its start: errors in world units and degrees after 10, 100, 300, 1000 steps
    (in space, position counts height too, and tilt has a row of its own), of

    real frames: dead reckoning by the motion head's motion of each action, corrected by visual odometry;
    real frames, without odometry: the same without that correction;
    dreamed frames: after `context` real frames at their true poses, a dream of its own frames on the recorded actions;
    steps count from the last real frame.

    The last horizon is as far as the shortest episode goes, if that is less.
    """
    context.check_poses(discrete=True)
    model, run = context.weights.world_model, context.run
    frames = min(run.drift + 1, *(len(episode.frames) for episode in context.episodes))
    if frames <= run.context + 1:
        raise ValueError(f"drift needs more than {run.context + 1} frames, and has {frames}: choose a smaller context, or leave it out")
    clips = cut_clips(context.episodes, frames, 1)
    corrected, uncorrected = (prefill_without_poses(model, clips, run.seed, odometry).pose for odometry in (True, False))
    past, future = clips[: run.context], clips[run.context :]
    dream, _ = dream_along(model, context.prefilled(past), future, run.steps, true_motion=False)
    dreamed = torch.cat([past.pose[:, -1:], dream.pose], 1)
    context.kept["drift"] = {"true": clips.pose, "real frames": corrected, "dreamed frames": dreamed}
    return {
        **_pose_errors(corrected, clips.pose, "real frames"),
        **_pose_errors(uncorrected, clips.pose, "real frames, without odometry"),
        **_pose_errors(dreamed, clips.pose[:, run.context - 1 :], "dreamed frames"),
    }


def _pose_errors(estimated: Tensor, true: Tensor, name: str) -> dict[str, Score]:
    """Errors of poses (B, 1 + steps, 4 or 6)."""
    steps = true.shape[1] - 1
    error = relative_to(estimated, true)
    position, heading = _place(error).norm(dim=-1), torch.atan2(error[..., 3], error[..., 2]).abs().rad2deg()
    results: dict[str, Score] = {}
    for step in sorted({min(horizon, steps) for horizon in HORIZONS}):
        results[f"{name}, step {step}: position error (world units)"] = score(position[:, step])
        results[f"{name}, step {step}: heading error (degrees)"] = score(heading[:, step])
        if error.shape[-1] > PLANE:
            results[f"{name}, step {step}: tilt error (degrees)"] = score((estimated - true)[:, step, PLANE + 1].abs().rad2deg())
    return results


def reasoning(context: EvalContext) -> dict[str, Any]:
    """A real context, then frames generated on the real actions; PSNR and SSIM against the real continuation, of

    true poses: true poses in the context, true poses and motions after it;
    estimated poses: dead reckoning with odometry in the context, and after it the motion head's own motions;
    last frame repeated: the last one of the context.

    With true poses PSNR is split by whether a frame of the context had a pose within the world's `length_scale` and 0.26 radians
    (seen before) or none had (new); and what was seen before by the frames since the last such frame. Clips without any don't count.
    """
    context.check_poses(discrete=True)
    model, run = context.weights.world_model, context.run
    length, ahead = run.reasoning
    clips = cut_clips(context.episodes, length + ahead, run.clips)
    past, future = clips[:length], clips[length:]
    truth, name = future.frames, f"{length} context + {ahead} generated frames"
    generated = context.generated(context.prefilled(past), future)
    pictures = {"truth": truth, "true poses": generated}
    results = context.frame_scores(f"{name}, true poses:", generated, truth)
    since = frames_since_seen(past.pose, future.pose, context.world.length_scale)
    results |= _by_age(context.quality(generated, truth), since, f"{name}, true poses:")
    if "estimated_poses" in run.memories:
        state = prefill_without_poses(model, past, run.seed).state
        generated = decode_clips(context.weights, dream_along(model, state, future, run.steps, true_motion=False)[0].latent)
        results |= context.frame_scores(f"{name}, estimated poses:", generated, truth)
        pictures["estimated poses"] = generated
    context.keep("reasoning", pictures)
    return results | context.frame_scores(f"{name}, last frame repeated:", past.frames[:, -1:].expand_as(truth), truth)


def frames_since_seen(past: Tensor, future: Tensor, within: float) -> Tensor:
    """Frames since the last frame of the past (B, P, 4 or 6) that had about the pose of a frame that followed it (B, T, 4 or 6).

    About: `within` so many units of length (in space of x, y, height) and 0.26 radians of heading and tilt. (B, T) int64; 0: none had.
    """
    frames, cosine = past.shape[1], math.cos(SIMILAR)
    near = torch.cdist(_place(future), _place(past)) <= within
    alike = torch.einsum("btc,bpc->btp", future[..., 2:PLANE], past[..., 2:PLANE]) >= cosine
    if future.shape[-1] > PLANE:
        alike &= (future[..., None, PLANE + 1] - past[:, None, :, PLANE + 1]).abs() <= SIMILAR
    last = ((near & alike) * torch.arange(1, frames + 1)).amax(-1)
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
