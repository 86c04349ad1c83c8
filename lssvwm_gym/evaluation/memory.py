"""Tests of memory: revisiting along the reversed trajectory, colours that stay, a context that is interrupted."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from lssvwm_gym.evaluation.context import MEMORIES, DoesNotApply, EvalContext
from lssvwm_gym.evaluation.metrics import Score, inner, masked_score, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along, memory_of, prefill_without_poses, with_reversal
from lssvwm_gym.models.rollout import DreamState, imagine
from lssvwm_gym.models.segment import Segment, joined

AGES = (10, 50, 100, 200, 400, 600, 800, 1000)  # frames since last seen, at which the revisit curve has a point
AROUND = 4  # frames since last seen that a point may be off
FAR = 50  # frames from the turning point, from where on single views are asked for
VIEWS = 8  # single views a clip
REVISIT = re.compile(r"revisiting (\d+) frames, own memory: PSNR (\d+) frames since seen")  # the keys of the curve in a report
GRID = 6  # patches a side
COLOURS = 12  # classes
MOST_PATCHES = 20_000  # among which they are found
COMMON = 2  # most frequent classes, such as floor and sky, which don't count


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

    In worlds that change, the same for the clips alone in whose context the inventory never changed, so that nothing was dug or
    placed: untouched world.

    Own memory also has a revisit curve: the frame at step j was last seen 2 j frames ago. PSNR of the frames around some such
    ages, and how much it falls from 50 to 800 frames, or as far as the length goes, clip by clip.
    """
    results: dict[str, Any] = {}
    for frames in context.run.retrieval:
        results |= _retrieval(context, frames, f"revisiting {frames} frames")
    return results


def revisit(context: EvalContext, frames: int) -> Revisit:
    """The clips of `frames` frames of every episode, prefilled at their true poses, and their reversed trajectories."""
    unknown_action = context.weights.world_model.config.actions
    clips = with_reversal(cut_clips(context.episodes, frames, context.run.clips), unknown_action)
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
    """Frames generated along the reversed trajectory, in one of the variants."""
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
    later = [age for age in curve if age > 50]
    if later:
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


def identity(context: EvalContext) -> dict[str, Any]:
    """Share of patches that keep their class of colour when revisited from own memory, at the first length of retrieval.

    A patch is a cell of a 6 x 6 grid over the picture without its border, its colour the mean of its pixels, its class the
    nearest of 12 colours that k-means finds in the context frames of all clips. Patches count whose true class is not one
    of the two most frequent ones. Beside it the same share for the dreamed frames of a clip in another order (chance) and
    for the autoencoder's reconstruction of the real frames (ceiling). Not for worlds that change.
    """
    if context.world.changes:
        raise DoesNotApply("what was dug does not look the same again, and a block's colour is no identity")
    visit = revisit(context, context.run.retrieval[0])
    dreamed = recalled_frames(context, visit)
    seen = patches(visit.past.frames, context.world.border).flatten(0, -2)
    colours = k_means(seen[:: -(-len(seen) // MOST_PATCHES)], COLOURS)
    classes = {name: _classes(context, frames, colours) for name, frames in (("truth", visit.back.frames), ("dream", dreamed))}
    classes["autoencoder"] = _classes(context, decode_clips(context.weights, visit.back.latent), colours)
    order = torch.randperm(dreamed.shape[1], generator=torch.Generator().manual_seed(context.run.seed))
    classes["shuffled frames"] = classes["dream"][:, order]
    truth = classes.pop("truth")
    common = torch.bincount(truth.flatten(), minlength=COLOURS).topk(COMMON).indices
    counted = ~torch.isin(truth, common)
    kept = {name: masked_score((found == truth).float().flatten(1), counted.flatten(1)) for name, found in classes.items()}
    shares = {f"{name}: share of patches that keep their colour": share for name, share in kept.items() if share is not None}
    return {**shares, "patches": int(counted.sum())}


def patches(frames: Tensor, border: int) -> Tensor:
    """Mean colours in 0..1 of the grid's cells, (B, T, GRID * GRID, 3), of uint8 frames (B, T, height, width, 3)."""
    picture = inner(frames, border)
    high, wide = picture.shape[2] // GRID, picture.shape[3] // GRID
    cells = picture[:, :, : GRID * high, : GRID * wide]
    rows = [reduce(part.float() / 255, "t (y h) (x w) c -> t (y x) c", "mean", y=GRID, x=GRID) for part in cells]
    return torch.stack(rows)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of centres (K, C) for each of points (..., C)."""
    return torch.cdist(points.flatten(0, -2), centres).argmin(-1).view(points.shape[:-1])


def k_means(points: Tensor, count: int, rounds: int = 25) -> Tensor:
    """Centres (count, C) of points (M, C): begun at points far from each other, then moved to the means of those nearest (Lloyd)."""
    centres = points[(points - points.mean(0)).norm(dim=-1).argmax()][None]
    while len(centres) < count:
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(nearest(points, centres), count).to(points.dtype)
        size = member.sum(0).unsqueeze(-1)
        centres = torch.where(size > 0, member.T @ points / size.clamp(min=1), centres)
    return centres


def _classes(context: EvalContext, frames: Tensor, colours: Tensor) -> Tensor:
    """(B, T, GRID * GRID)"""
    return nearest(patches(frames, context.world.border), colours)


def interruption(context: EvalContext) -> dict[str, Any]:
    """Retrieval of `context` frames of which the last 1, 3, 10 are replaced by uniform noise or by black; poses stay true.

    PSNR against the real frames, the replaced ones included; and its cost against the uninterrupted context, over all frames
    and over those that weren't replaced.
    """
    visit = revisit(context, context.run.context)
    truth, whole = visit.back.frames, recalled_frames(context, visit)
    own = context.quality(whole, truth)
    results: dict[str, Any] = {"uninterrupted: PSNR": score(own)}
    pictures = {"truth": truth, "uninterrupted": whole}
    for kind in ("noise", "black"):
        for frames in context.run.interruption:
            name = f"{frames} of {kind}"
            state = context.prefilled(interrupted(context, visit.past, kind, frames))
            pictures[name] = dreamed = context.generated(state, visit.back)
            cost = own - context.quality(dreamed, truth)
            results[f"{name}: PSNR"] = score(own - cost)
            results[f"{name}: cost (dB)"] = score(cost)
            results[f"{name}: cost for frames not replaced (dB)"] = score(cost[:, frames - 1 :])
    context.keep("interruption", pictures)
    return results


def interrupted(context: EvalContext, past: Segment, kind: str, frames: int) -> Segment:
    """The past with its last `frames` frames replaced by "noise" or "black", in pixels and as latents."""
    if frames >= len(past):
        raise ValueError(f"interruption must be shorter than the context of {len(past)} frames, not {frames}")
    generator, end = torch.Generator().manual_seed(context.run.seed), past[-frames:]
    noise = torch.randint(256, end.frames.shape, generator=generator, dtype=torch.uint8)
    pixels = noise if kind == "noise" else torch.zeros_like(noise)
    latents = [context.weights.autoencoder.encode(part) for part in pixels.flatten(0, 1).split(100)]
    end = dataclasses.replace(end, frames=pixels, latent=torch.cat(latents).view_as(end.latent))
    return joined([past[:-frames], end], lambda parts: torch.cat(parts, 1))
