"""The frames that follow: the autoencoder's ceiling, the next frame, an open-loop dream, the reward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.evaluation.metrics import precision_recall_f1, psnr, rank_correlation, score
from lssvwm_gym.evaluation.rollouts import cut_clips, decode_clips, dream_along, features_along, remember_clips
from lssvwm_gym.evaluation.workbench import Bench, DoesNotApply, Evaluation
from lssvwm_gym.models.rollout import imagine, remember


def reconstruction(bench: Bench) -> dict[str, Any]:
    """The autoencoder's own reconstruction: the ceiling of everything else."""
    clips = cut_clips(bench.episodes, 50, 4)
    return bench.scores("autoencoder", clips.latent, clips.frames)


def next_frame(bench: Bench) -> dict[str, Any]:
    """The next frame from a real past: with the motion the model believes in, with the true one, and the last frame repeated."""
    model, run = bench.weights.world_model, bench.run
    clips = cut_clips(bench.episodes, run.context + run.ahead, run.clips)
    state = remember_clips(model, clips[: run.context], run.seed)
    believed, true, off, uncertain = [], [], [], []
    for t in tqdm(range(run.context, len(clips)), desc="next frames", leave=False):
        action, motion = clips.action[:, t], clips.motion[:, t]
        imagined = imagine(model, state, action, run.steps)
        believed.append(imagined.latent)
        uncertain.append(imagined.uncertainty)
        true.append(imagine(model, state, action, run.steps, motion).latent)
        off.append((imagined.motion - motion)[:, :2].norm(dim=-1))
        state = remember(model, state, *(x[:, t : t + 1] for x in (clips.latent, clips.action, clips.pose, clips.vector)))
    truth = clips.frames[:, run.context :]
    frames = decode_clips(bench.weights, torch.stack(believed, 1))
    return {
        **bench.frame_scores("believed motion", frames, truth),
        **bench.scores("true motion", torch.stack(true, 1), truth),
        **bench.frame_scores("last frame repeated", clips.frames[:, run.context - 1 : -1], truth),
        "position error of one step (world units)": score(torch.stack(off, 1)),
        **_meaning_of_uncertainty(run, torch.stack(uncertain, 1), bench.quality(frames, truth)),
    }


def open_loop(bench: Bench) -> dict[str, Any]:
    """A dream of real actions from a real past, with believed motion, by horizon; beside the last context frame repeated."""
    model, run = bench.weights.world_model, bench.run
    clips = cut_clips(bench.episodes, run.context + run.ahead, run.clips)
    state = remember_clips(model, clips[: run.context], run.seed)
    future = clips[run.context :]
    dream, end = dream_along(model, state, future, run.steps, true_motion=False)
    dreamed = bench.quality(decode_clips(bench.weights, dream.latent), future.frames)
    repeated = psnr(clips.frames[:, run.context - 1 : run.context].expand_as(future.frames), future.frames, bench.world.border)
    results: dict[str, Any] = {}
    for horizon in sorted({1, 2, 5, 10, 20, 30, 40, run.ahead}):
        if horizon <= run.ahead:
            results[f"frame {horizon}: dream PSNR"] = score(dreamed[:, horizon - 1])
            results[f"frame {horizon}: last frame repeated PSNR"] = score(repeated[:, horizon - 1])
    results["horizons at which the dream is ahead"] = int((dreamed.mean(0) > repeated.mean(0)).sum())
    results["believed position off at the end (world units)"] = score((end.pose - future.pose[:, -1])[:, :2].norm(dim=-1))
    return results | _meaning_of_uncertainty(run, dream.uncertainty, dreamed)


def reward(bench: Bench) -> dict[str, Any]:
    """The reward head on real pasts: precision, recall, F1 over all frames of all episodes. Not where milestones of the counts pay."""
    if bench.world.milestones:
        raise DoesNotApply("counts pay in this world, not the reward head: see the test milestones")
    model = bench.weights.world_model
    frames = min(len(episode.frames) for episode in bench.episodes)
    clips = cut_clips(bench.episodes, frames, 1)
    features, _ = features_along(model, remember_clips(model, clips[:1]), clips[1:])
    predicted = model.reward_head(features).argmax(-1) > 0
    precision, recall, f1 = precision_recall_f1(predicted, clips.reward[:, 1:] > 0)
    return {"precision": precision, "recall": recall, "F1": f1, "rewards": int((clips.reward[:, 1:] > 0).sum())}


def _meaning_of_uncertainty(run: Evaluation, uncertainty: Tensor, quality: Tensor) -> dict[str, Any]:
    """Whether `info["uncertainty"]` tells bad frames from good ones, by their PSNR, both (B, T); nothing with one step, which has none."""
    if run.steps == 1:
        return {}
    return {"rank correlation of uncertainty and PSNR": rank_correlation(uncertainty, quality)}
