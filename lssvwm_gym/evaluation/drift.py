"""Drift: how far off the model believes to be, after many steps of being told nothing but the actions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import Score, score
from lssvwm_gym.evaluation.rollouts import cut_clips, dream_along, reckon_clips, remember_clips
from lssvwm_gym.evaluation.workbench import Bench
from lssvwm_gym.models.geometry import PLANE, relative_to

HORIZONS = (10, 100, 300, 1000)  # steps


def drift(bench: Bench) -> dict[str, Any]:
    """Believed against true poses along each episode from its start, off by world units and degrees after 10, 100, 300, 1000 steps
    (in space, position counts height too, and tilt has a row of its own), of

    real frames: every real frame is committed where the pose head says that its action led, corrected by what it shows;
    real frames, blindly: the same without that correction;
    dreamed frames: after `context` real frames at their true poses, a dream of its own frames on the recorded actions;
    steps count from the last real frame.

    The last horizon is as far as the shortest episode goes, if that is less.
    """
    model, run = bench.weights.world_model, bench.run
    frames = min(run.drift + 1, *(len(episode.frames) for episode in bench.episodes))
    if frames <= run.context + 1:
        raise ValueError(f"drift needs more than {run.context + 1} frames, and has {frames}: choose a smaller context, or leave it out")
    clips = cut_clips(bench.episodes, frames, 1)
    reckoned, blindly = (reckon_clips(model, clips, run.seed, sees)[1] for sees in (True, False))
    past, future = clips[: run.context], clips[run.context :]
    dream, _ = dream_along(model, remember_clips(model, past, run.seed), future, run.steps, true_motion=False)
    dreamed = torch.cat([past.pose[:, -1:], dream.pose], 1)
    bench.kept["drift"] = {"true": clips.pose, "real frames": reckoned, "dreamed frames": dreamed}
    blind = _off(blindly, clips.pose, "real frames, blindly")
    return _off(reckoned, clips.pose, "real frames") | blind | _off(dreamed, clips.pose[:, run.context - 1 :], "dreamed frames")


def _off(believed: Tensor, true: Tensor, name: str) -> dict[str, Score]:
    """Errors of poses (B, 1 + steps, 4 or 6)."""
    steps = true.shape[1] - 1
    seen = relative_to(believed, true)
    place = torch.cat([seen[..., :2], seen[..., PLANE : PLANE + 1]], -1)
    position, heading = place.norm(dim=-1), torch.atan2(seen[..., 3], seen[..., 2]).abs().rad2deg()
    results: dict[str, Score] = {}
    for step in sorted({min(horizon, steps) for horizon in HORIZONS}):
        results[f"{name}, step {step}: position off (world units)"] = score(position[:, step])
        results[f"{name}, step {step}: heading off (degrees)"] = score(heading[:, step])
        if seen.shape[-1] > PLANE:
            results[f"{name}, step {step}: tilt off (degrees)"] = score(seen[:, step, PLANE + 1].abs().rad2deg())
    return results
