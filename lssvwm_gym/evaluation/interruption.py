"""Interruption: the end of the past is noise or darkness, as after a jump of the camera or behind an obstacle."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import score
from lssvwm_gym.evaluation.retrieval import WayBack, recalled_frames, way_back
from lssvwm_gym.evaluation.rollouts import Clips, decode_clips, dream_at_poses, remember_clips
from lssvwm_gym.evaluation.workbench import Bench


def interruption(bench: Bench) -> dict[str, Any]:
    """Retrieval of `context` frames of which the last 1, 3, 10 are replaced by uniform noise or by black; poses stay true.

    PSNR of the way back against the real frames, the replaced ones included; and its cost against the uninterrupted way
    back, over all frames and over those that weren't replaced.
    """
    way = way_back(bench, bench.run.context)
    truth, whole = way.back.frames, recalled_frames(bench, way)
    own = bench.quality(whole, truth)
    results: dict[str, Any] = {"uninterrupted: PSNR": score(own)}
    pictures = {"truth": truth, "uninterrupted": whole}
    for kind in ("noise", "black"):
        for frames in bench.run.interruption:
            name = f"{frames} of {kind}"
            pictures[name] = dreamed = _dreamed(bench, way, interrupted(bench, way.past, kind, frames))
            cost = own - bench.quality(dreamed, truth)
            results[f"{name}: PSNR"] = score(own - cost)
            results[f"{name}: cost (dB)"] = score(cost)
            results[f"{name}: cost for frames not replaced (dB)"] = score(cost[:, frames - 1 :])
    bench.keep("interruption", pictures)
    return results


def interrupted(bench: Bench, past: Clips, kind: str, frames: int) -> Clips:
    """The past with its last `frames` frames replaced by "noise" or "black", in pixels and as latents."""
    if frames >= len(past):
        raise ValueError(f"interruption must be shorter than the context of {len(past)} frames, not {frames}")
    generator = torch.Generator().manual_seed(bench.run.seed)
    shape = past.frames[:, -frames:].shape
    noise = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    pixels = noise if kind == "noise" else torch.zeros_like(noise)
    latent = torch.cat([bench.weights.autoencoder.encode(part) for part in pixels.flatten(0, 1).split(100)]).unflatten(0, shape[:2])
    return dataclasses.replace(past, frames=_ended(past.frames, pixels), latent=_ended(past.latent, latent))


def _dreamed(bench: Bench, way: WayBack, past: Clips) -> Tensor:
    model, run = bench.weights.world_model, bench.run
    return decode_clips(bench.weights, dream_at_poses(model, remember_clips(model, past, run.seed), way.back, run.steps))


def _ended(clips: Tensor, end: Tensor) -> Tensor:
    return torch.cat([clips[:, : -end.shape[1]], end], 1)
