"""A test of memory: revisiting along the reversed trajectory."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.context import MEMORIES, EvalContext
from lssvwm_gym.evaluation.metrics import Score, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along, memory_of, prefill_without_poses, with_reversal
from lssvwm_gym.models.rollout import imagine
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState

AGES = (10, 50, 100, 200, 400, 600, 800, 1000)  # frames since last seen, at which the revisit curve has a point
AROUND = 4  # frames since last seen that a point may be off
FAR = 50  # frames from the turning point, from where on single views are asked for
VIEWS = 8  # single views a clip
REVISIT = re.compile(r"revisiting (\d+) frames, own memory: PSNR (\d+) frames since seen")  # the keys of the curve in a report


@dataclass(frozen=True)
class Revisit:
    """Real clips, the state after them, and the reversed trajectory: the same frames from the last but one to the first."""

    past: Segment
    state: DreamState
    back: Segment


def retrieval(context: EvalContext) -> dict[str, Any]:
    """Frames generated along the reversed trajectory of a real context, for each length of it. PSNR and SSIM against the context
    reversed, and cost in dB, of

    own memory: the state after the context, with the true poses and motions of the reversed trajectory;
    stranger's memory: all but attention's window is that of another episode's clip; emptied memory: it is zeros;
    shuffled poses: own memory, asked for the poses in another order, the motions as they were;
    estimated poses: the poses of the context are estimated from actions and frames, and the true motions in reverse are integrated
    from there: the cost is that of a map that has drifted;
    estimated motions: true poses in the context; on the reversed trajectory actions are unknown and motions are the motion head's;
    single views: views at least 50 frames from the turning point, each imagined from the state after the context, without the
    frames between;
    last frame repeated: the turning point.

    In worlds that change, untouched world: the same for clips in whose context the inventory never changed: nothing was dug or placed.

    Own memory also has a revisit curve: the frame at step j was last seen 2 j frames ago. PSNR of the frames around some such
    ages, and how much it falls from 50 to 800 frames, or as far as the length goes, clip by clip.
    """
    context.check_poses(discrete=True)
    parts = [_retrieval(context, frames, f"revisiting {frames} frames") for frames in context.run.retrieval]
    return {name: value for part in parts for name, value in part.items()}


def revisit(context: EvalContext, frames: int) -> Revisit:
    """The clips of `frames` frames of every episode, prefilled at their true poses, and their reversed trajectories."""
    clips = with_reversal(cut_clips(context.episodes, frames, context.run.clips), context.weights.world_model.config.actions)
    return Revisit(clips[:frames], context.prefilled(clips[:frames]), clips[frames:])


def recalled_frames(context: EvalContext, visit: Revisit) -> Tensor:
    """What is generated along the reversed trajectory from own memory, (B, T, height, width, 3) uint8; once for each length."""
    frames = len(visit.past)
    if frames not in context.recalled:
        context.recalled[frames] = context.generated(visit.state, visit.back)
    return context.recalled[frames]


def psnr_by_age(quality: Tensor) -> dict[int, Tensor]:
    """PSNR of a clip (B,) by frames since last seen, of PSNR (B, T) along a reversed trajectory."""
    since = 2 * torch.arange(1, quality.shape[1] + 1)
    near = {age: (since - age).abs() <= AROUND for age in AGES}
    return {age: quality[:, frames].mean(1) for age, frames in near.items() if frames.sum() > 1}


def view_steps(frames: int) -> list[int]:
    """Steps of a reversed trajectory of `frames` frames at which single views are asked for; none where it is too short."""
    return torch.linspace(FAR, frames, VIEWS).round().long().tolist() if frames >= FAR else []


def _retrieval(context: EvalContext, frames: int, name: str) -> dict[str, Any]:
    visit, run = revisit(context, frames), context.run
    truth, own = visit.back.frames, None
    results: dict[str, Any] = {}
    pictures = {"truth": truth, "autoencoder": decode_clips(context.weights, visit.back.latent)}
    for memory in (memory for memory in MEMORIES if memory in run.memories):
        pictures[MEMORIES[memory]] = dreamed = _generated(context, visit, memory)
        results |= _scores(context, visit, f"{name}, {MEMORIES[memory]}", dreamed)
        quality = context.quality(dreamed, truth)
        if memory == "own":
            own = quality
            results |= _revisits(quality, name) | _single_views(context, visit, name)
        elif own is not None:
            results[f"{name}, cost of {MEMORIES[memory]} (dB)"] = score(own - quality)
    if frames == max(run.retrieval):
        context.keep("retrieval", pictures)
    return results | _scores(context, visit, f"{name}, last frame repeated", visit.past.frames[:, -1:].expand_as(truth))


def untouched(past: Segment) -> Tensor:
    """Which clips, (B,) bool, have the same inventory throughout: nothing was dug, placed or crafted."""
    return (past.inventory == past.before[:, :1]).flatten(1).all(1)


def _scores(context: EvalContext, visit: Revisit, name: str, dreamed: Tensor) -> dict[str, Score]:
    """Scores of frames generated along the reversed trajectory; in worlds that change, also of the clips in which nothing did."""
    truth = visit.back.frames
    results = context.frame_scores(f"{name}:", dreamed, truth)
    if context.world.changes and (still := untouched(visit.past)).any():
        results |= context.frame_scores(f"{name}, untouched world:", dreamed[still], truth[still])
    return results


def _generated(context: EvalContext, visit: Revisit, memory: str) -> Tensor:
    model, run, back = context.weights.world_model, context.run, visit.back
    if memory == "own":
        return recalled_frames(context, visit)
    if memory == "shuffled":
        order = torch.randperm(len(back), generator=torch.Generator().manual_seed(run.seed))
        return context.generated(visit.state, dataclasses.replace(back, pose=back.pose[:, order]))
    if memory == "emptied":
        return context.generated(memory_of(visit.state, None), back)
    if memory == "stranger":
        if visit.past.batch == run.clips:
            frames = len(visit.past)
            raise ValueError(f"a stranger's memory needs two episodes of {frames} frames; leave it out: --memories own shuffled ...")
        return context.generated(memory_of(visit.state, run.clips), back)
    true_motion = memory == "estimated_poses"
    state = prefill_without_poses(model, visit.past, run.seed).state if true_motion else visit.state
    return decode_clips(context.weights, dream_along(model, state, back, run.steps, true_motion)[0].latent)


def _revisits(quality: Tensor, name: str) -> dict[str, Score]:
    curve = psnr_by_age(quality)
    results = {f"{name}, own memory: PSNR {age} frames since seen": score(values) for age, values in curve.items()}
    if later := [age for age in curve if age > 50]:
        last = 800 if 800 in later else later[-1]
        results[f"{name}, own memory: fall from 50 to {last} frames since seen (dB)"] = score(curve[50] - curve[last])
    return results


def _single_views(context: EvalContext, visit: Revisit, name: str) -> dict[str, Score]:
    """Views imagined from afar, without the frames between; none where the context is too short."""
    model, state, back, steps = context.weights.world_model, visit.state, visit.back, view_steps(len(visit.back))
    if not steps:
        return {}
    places = [step - 1 for step in steps]
    views = [imagine(model, state, back.action[:, t], context.run.steps, back.motion[:, t], back.pose[:, t]).latent for t in places]
    recalled, truth = decode_clips(context.weights, torch.stack(views, 1)), back.frames[:, places]
    if len(visit.past) == max(context.run.retrieval):
        seen = decode_clips(context.weights, back.latent[:, places])
        context.keep("recall", {"truth": truth, "autoencoder": seen, "from pure noise": recalled})
    return context.frame_scores(f"{name}, single views:", recalled, truth)
