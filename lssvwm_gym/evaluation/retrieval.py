"""Retrieval: a real past, walked back by its poses. Whose memory is it that the pictures come from, and how old may it be?"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import Score, score
from lssvwm_gym.evaluation.rollouts import (
    Clips,
    cut_clips,
    decode_clips,
    dream_along,
    dream_at_poses,
    memory_of,
    reckon_clips,
    remember_clips,
    there_and_back,
)
from lssvwm_gym.evaluation.workbench import Bench
from lssvwm_gym.models.rollout import DreamState, imagine

AGES = (10, 50, 100, 200, 400, 600, 800, 1000)  # frames since last seen, at which the revisit curve has a point
AROUND = 4  # frames since last seen that a point may be off
FAR = 50  # frames from the turning point, from where on single views are recalled
VIEWS = 8  # single views a clip
REVISIT = re.compile(r"(\d+) back, own memory: PSNR (\d+) frames since seen")  # the keys of the curve in a report
NAMES = {
    "own": "own memory",
    "stranger": "stranger's memory",
    "emptied": "emptied memory",
    "shuffled": "shuffled poses",
    "believed": "believed poses",
    "untold": "untold way back",
}


@dataclass(frozen=True)
class WayBack:
    """Real clips of a past, the state after it, and the same frames in reverse without the turning point."""

    past: Clips
    state: DreamState
    back: Clips


def retrieval(bench: Bench) -> dict[str, Any]:
    """Real frames, then their poses walked back, for each size of the past. PSNR and SSIM against the past reversed, and cost in dB, of

    own memory: the state after the past, told the true poses and motions of the way back;
    stranger's memory: all but attention's window is that of another episode's clip; emptied memory: it is zeros;
    shuffled poses: own memory, asked for the poses of the way back in another order, the motions as they were;
    believed poses: nobody tells the poses of the past, the model follows them by its actions and by what it sees, and the way
    back is told as the true motions in reverse, advanced from there: the cost is that of a map that has drifted;
    untold way back: true poses in the past; on the way back actions are unknown and motions are the pose head's;
    single views: views at least 50 frames from the turning point, each imagined from the state after the past, without the
    frames between;
    last frame repeated: the turning point.

    In worlds that change, the same for the clips alone in whose past no count changed, so that nothing was dug or placed:
    untouched world.

    Own memory also has a revisit curve: the frame at step j of the way back was last seen 2 j frames ago. PSNR of the frames
    around some such ages, and how much it falls from 50 to 800 frames, or as far as the size goes, clip by clip.
    """
    results: dict[str, Any] = {}
    for frames in bench.run.retrieval:
        results |= _retrieval(bench, frames, f"{frames} back")
    return results


def way_back(bench: Bench, frames: int) -> WayBack:
    """The clips of `frames` frames of every episode, remembered at their true poses, and what they are walked back along."""
    model = bench.weights.world_model
    walk = there_and_back(cut_clips(bench.episodes, frames, bench.run.clips), model.config.actions)
    past = walk[:frames]
    return WayBack(past, remember_clips(model, past, bench.run.seed), walk[frames:])


def recalled_frames(bench: Bench, way: WayBack) -> Tensor:
    """What is dreamed on the way back from its own memory, (B, T, height, width, 3) uint8; dreamed once for each size."""
    frames = len(way.past)
    if frames not in bench.recalled:
        latent = dream_at_poses(bench.weights.world_model, way.state, way.back, bench.run.steps)
        bench.recalled[frames] = decode_clips(bench.weights, latent)
    return bench.recalled[frames]


def revisit_curve(quality: Tensor) -> dict[int, Tensor]:
    """PSNR of a clip (B,) by frames since last seen, of PSNR (B, T) along a way back."""
    since = 2 * torch.arange(1, quality.shape[1] + 1)
    near = {age: (since - age).abs() <= AROUND for age in AGES}
    return {age: quality[:, frames].mean(1) for age, frames in near.items() if frames.sum() > 1}


def view_steps(frames: int) -> list[int]:
    """Steps of a way back of `frames` frames at which single views are asked for; none where it is too short."""
    return torch.linspace(FAR, frames, VIEWS).round().long().tolist() if frames >= FAR else []


def _retrieval(bench: Bench, frames: int, name: str) -> dict[str, Any]:
    way, run = way_back(bench, frames), bench.run
    truth, own = way.back.frames, None
    results: dict[str, Any] = {}
    pictures = {"truth": truth, "autoencoder": decode_clips(bench.weights, way.back.latent)}
    for memory in sorted(run.memories, key=list(NAMES).index):
        pictures[NAMES[memory]] = dreamed = _dreamed(bench, way, memory)
        results |= _scores(bench, way, f"{name}, {NAMES[memory]}", dreamed)
        quality = bench.quality(dreamed, truth)
        if memory == "own":
            own = quality
            results |= _revisits(quality, name) | _single_views(bench, way, name)
        elif own is not None:
            results[f"{name}, cost of {NAMES[memory]} (dB)"] = score(own - quality)
    if frames == max(run.retrieval):
        bench.keep("retrieval", pictures)
    return results | _scores(bench, way, f"{name}, last frame repeated", way.past.frames[:, -1:].expand_as(truth))


def untouched(past: Clips) -> Tensor:
    """Which clips, (B,) bool, have the same counts all along: nothing was dug, placed or crafted."""
    return (past.vector == past.before[:, :1]).flatten(1).all(1)


def _scores(bench: Bench, way: WayBack, name: str, dreamed: Tensor) -> dict[str, Score]:
    """Scores of frames dreamed on the way back; in worlds that change, also of the clips in which nothing did."""
    truth = way.back.frames
    results = bench.frame_scores(f"{name}:", dreamed, truth)
    if bench.world.changes and (still := untouched(way.past)).any():
        results |= bench.frame_scores(f"{name}, untouched world:", dreamed[still], truth[still])
    return results


def _dreamed(bench: Bench, way: WayBack, memory: str) -> Tensor:
    """Frames dreamed on the way back, in one of the variants."""
    model, steps, back = bench.weights.world_model, bench.run.steps, way.back
    if memory == "own":
        return recalled_frames(bench, way)
    if memory == "believed":
        state, _ = reckon_clips(model, way.past, bench.run.seed)
        latent = dream_along(model, state, back, steps, true_motion=True)[0].latent
    elif memory == "untold":
        latent = dream_along(model, way.state, back, steps, true_motion=False)[0].latent
    elif memory == "shuffled":
        order = torch.randperm(len(back), generator=torch.Generator().manual_seed(bench.run.seed))
        latent = dream_at_poses(model, way.state, dataclasses.replace(back, pose=back.pose[:, order]), steps)
    else:
        other = _stranger(bench, way) if memory == "stranger" else None
        latent = dream_at_poses(model, memory_of(way.state, other), back, steps)
    return decode_clips(bench.weights, latent)


def _stranger(bench: Bench, way: WayBack) -> int:
    """How many rows before is a clip of another episode."""
    if len(way.past.frames) == bench.run.clips:
        raise ValueError(f"a stranger's memory needs two episodes of {len(way.past)} frames; leave it out: --memories own shuffled ...")
    return bench.run.clips


def _revisits(quality: Tensor, name: str) -> dict[str, Score]:
    curve = revisit_curve(quality)
    results = {f"{name}, own memory: PSNR {age} frames since seen": score(values) for age, values in curve.items()}
    later = [age for age in curve if age > 50]
    if later:
        last = 800 if 800 in later else later[-1]
        results[f"{name}, own memory: fall from 50 to {last} frames since seen (dB)"] = score(curve[50] - curve[last])
    return results


def _single_views(bench: Bench, way: WayBack, name: str) -> dict[str, Score]:
    """Views that are not reached by dreaming; none where the past is too short."""
    model, state, back, steps = bench.weights.world_model, way.state, way.back, view_steps(len(way.back))
    if not steps:
        return {}
    places = [step - 1 for step in steps]
    views = [imagine(model, state, back.action[:, t], bench.run.steps, back.motion[:, t], back.pose[:, t]).latent for t in places]
    recalled, truth = decode_clips(bench.weights, torch.stack(views, 1)), back.frames[:, places]
    if len(way.past) == max(bench.run.retrieval):
        seen = decode_clips(bench.weights, back.latent[:, places])
        bench.keep("recall", {"truth": truth, "autoencoder": seen, "from pure noise": recalled})
    return bench.frame_scores(f"{name}, single views:", recalled, truth)
