"""Measure a dream on real episodes: `lssvwm-gym evaluate --data DIR`. Prints a table and writes JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lssvwm_gym.data.folder import fingerprint
from lssvwm_gym.evaluation.metrics import Score, precision_recall_f1, psnr, rank_correlation, score, ssim
from lssvwm_gym.evaluation.rollouts import (
    Clips,
    RealEpisode,
    cut_clips,
    decode_clips,
    dream_along,
    read_real_episodes,
    remember_clips,
    there_and_back,
)
from lssvwm_gym.models.dreaming import DreamState, imagine, remember
from lssvwm_gym.models.weights import Weights, load_weights
from lssvwm_gym.worlds import WORLDS, World


@dataclass(frozen=True)
class Evaluation:
    """What to measure, on what."""

    data: Path  # folder with real episodes
    world: str = "memory-maze"
    weights: Path | None = None  # folder of weights; the shipped ones if not given
    out: Path | None = None  # where to write the scores as JSON
    tests: tuple[str, ...] = ("reconstruction", "next_frame", "open_loop", "reward", "retrieval")
    steps: int = 1  # denoising steps a frame
    clips: int = 3  # clips an episode, evenly spaced
    context: int = 100  # frames of real past
    ahead: int = 50  # frames of open-loop dream
    retrieval: tuple[int, ...] = (100,)  # frames of context, walked back
    seed: int = 0


@dataclass(frozen=True)
class Bench:
    """A loaded evaluation: models, world, episodes."""

    run: Evaluation
    world: World
    weights: Weights
    episodes: list[RealEpisode]

    def scores(self, name: str, latent: Tensor, truth: Tensor) -> dict[str, Score]:
        """PSNR and SSIM of latents (B, T, N, C) against real frames, beside the autoencoder's ceiling being known apart."""
        return self.frame_scores(name, decode_clips(self.weights, latent), truth)

    def frame_scores(self, name: str, frames: Tensor, truth: Tensor) -> dict[str, Score]:
        border = self.world.border
        return {f"{name} PSNR": score(psnr(frames, truth, border)), f"{name} SSIM": score(ssim(frames, truth, border))}


@torch.no_grad()
def evaluate(run: Evaluation) -> dict[str, Any]:
    """Run the tests, print a table, write JSON, and return what was written."""
    if run.world not in WORLDS:
        raise ValueError(f"no world named {run.world}; there are {', '.join(WORLDS)}")
    unknown = set(run.tests) - TESTS.keys()
    if unknown:
        raise ValueError(f"no test named {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    world = WORLDS[run.world]
    weights = load_weights(run.weights or world.weights)
    bench = Bench(run, world, weights, read_real_episodes(run.data, weights))
    results: dict[str, dict[str, Any]] = {}
    for name in run.tests:
        results[name] = TESTS[name](bench)
        _print(name, results[name])
    report = {
        "world": world.id,
        "weights": weights.info,
        "data": fingerprint(run.data),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(run).items()},
        "scores": {
            name: {k: dataclasses.asdict(v) if isinstance(v, Score) else v for k, v in part.items()} for name, part in results.items()
        },
    }
    if run.out:
        run.out.parent.mkdir(parents=True, exist_ok=True)
        run.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


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
    for t in range(run.context, len(clips)):
        action, motion = clips.action[:, t], clips.motion[:, t]
        imagined = imagine(model, state, action, run.steps)
        believed.append(imagined.latent)
        uncertain.append(imagined.uncertainty)
        true.append(imagine(model, state, action, run.steps, motion).latent)
        off.append((imagined.motion - motion)[:, :2].norm(dim=-1))
        state = _remember_one(bench, state, clips, t)
    truth = clips.frames[:, run.context :]
    frames = decode_clips(bench.weights, torch.stack(believed, 1))
    return {
        **bench.frame_scores("believed motion", frames, truth),
        **bench.scores("true motion", torch.stack(true, 1), truth),
        **bench.frame_scores("last frame repeated", clips.frames[:, run.context - 1 : -1], truth),
        "position error of one step (world units)": score(torch.stack(off, 1)),
        **_meaning_of_uncertainty(run, torch.stack(uncertain, 1), psnr(frames, truth, bench.world.border)),
    }


def open_loop(bench: Bench) -> dict[str, Any]:
    """A dream of real actions from a real past, with believed motion, by horizon; beside the last context frame repeated."""
    model, run = bench.weights.world_model, bench.run
    clips = cut_clips(bench.episodes, run.context + run.ahead, run.clips)
    state = remember_clips(model, clips[: run.context], run.seed)
    future = clips[run.context :]
    imagined, end = dream_along(model, state, future, run.steps, true_motion=False)
    dreamed = psnr(decode_clips(bench.weights, imagined.latent), future.frames, bench.world.border)
    repeated = psnr(clips.frames[:, run.context - 1 : run.context].expand_as(future.frames), future.frames, bench.world.border)
    results: dict[str, Any] = {}
    for horizon in sorted({1, 2, 5, 10, 20, 30, 40, run.ahead}):
        if horizon <= run.ahead:
            results[f"frame {horizon}: dream PSNR"] = score(dreamed[:, horizon - 1])
            results[f"frame {horizon}: last frame repeated PSNR"] = score(repeated[:, horizon - 1])
    results["horizons at which the dream is ahead"] = int((dreamed.mean(0) > repeated.mean(0)).sum())
    results["believed position off at the end (world units)"] = score((end.pose - future.pose[:, -1])[:, :2].norm(dim=-1))
    return results | _meaning_of_uncertainty(run, imagined.uncertainty, dreamed)


def reward(bench: Bench) -> dict[str, Any]:
    """The reward head on real pasts: precision, recall, F1 over all frames of all episodes."""
    model = bench.weights.world_model
    frames = min(len(episode.frames) for episode in bench.episodes)
    clips = cut_clips(bench.episodes, frames, 1)
    state, predicted = remember_clips(model, clips[:1]), []
    for start in range(1, frames, 100):
        part = clips[start : start + 100]
        features = _features(bench, state, part)
        predicted.append(model.reward_head(features).argmax(-1) > 0)
        state = remember(model, state, part.latent, part.action, part.pose)
    precision, recall, f1 = precision_recall_f1(torch.cat(predicted, 1), clips.reward[:, 1:] > 0)
    return {"precision": precision, "recall": recall, "F1": f1, "rewards": int((clips.reward[:, 1:] > 0).sum())}


def retrieval(bench: Bench) -> dict[str, Any]:
    """Real frames, then their poses walked back: from its own memory, a stranger's, none, and with shuffled poses."""
    results: dict[str, Any] = {}
    for frames in bench.run.retrieval:
        clips = there_and_back(cut_clips(bench.episodes, frames, bench.run.clips), bench.weights.world_model.config.actions)
        results |= _retrieval(bench, clips[:frames], clips[frames:], f"{frames} back")
    return results


def _retrieval(bench: Bench, past: Clips, back: Clips, name: str) -> dict[str, Any]:
    model, run = bench.weights.world_model, bench.run
    state = remember_clips(model, past, run.seed)
    order = torch.randperm(len(back), generator=torch.Generator().manual_seed(run.seed))
    shuffled = dataclasses.replace(back, pose=back.pose[:, order])
    variants = {
        "own memory": (state, back),
        "stranger's memory": (_memory_of(state, run.clips), back),
        "emptied memory": (_memory_of(state, None), back),
        "shuffled poses": (state, shuffled),
    }
    results: dict[str, Any] = {}
    own = None
    for variant, (memory, clips) in variants.items():
        frames = decode_clips(bench.weights, _dream_at_poses(bench, memory, clips))
        results |= bench.frame_scores(f"{name}, {variant}:", frames, back.frames)
        quality = psnr(frames, back.frames, bench.world.border)
        own = quality if own is None else own
        if variant != "own memory":
            results[f"{name}, cost of {variant} (dB)"] = score(own - quality)
    believed, _ = dream_along(model, state, back, run.steps, true_motion=False)
    results |= bench.scores(f"{name}, believed poses:", believed.latent, back.frames)
    repeated = past.frames[:, -1:].expand_as(back.frames)
    return results | bench.frame_scores(f"{name}, last frame repeated:", repeated, back.frames)


def _dream_at_poses(bench: Bench, state: DreamState, clips: Clips) -> Tensor:
    """Dream at given poses and motions; the dreamed frames become the past. (B, T, N, C)"""
    model, latents = bench.weights.world_model, []
    for t in range(len(clips)):
        action, motion, pose = clips.action[:, t], clips.motion[:, t], clips.pose[:, t]
        latent = imagine(model, state, action, bench.run.steps, motion, pose).latent
        state = remember(model, state, latent[:, None], action[:, None], pose[:, None])
        latents.append(latent)
    return torch.stack(latents, 1)


def _meaning_of_uncertainty(run: Evaluation, uncertainty: Tensor, quality: Tensor) -> dict[str, Any]:
    """Whether `info["uncertainty"]` tells bad frames from good ones, by their PSNR, both (B, T); nothing with one step, which has none."""
    if run.steps == 1:
        return {}
    return {"rank correlation of uncertainty and PSNR": rank_correlation(uncertainty, quality)}


def _memory_of(state: DreamState, stranger: int | None) -> DreamState:
    """The same state with the scans' memory of the row `stranger` rows before, or with none; attention's window stays."""

    def other(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if stranger is None else tensor.roll(stranger, 0)

    layers = tuple(layer._replace(ssm=other(layer.ssm), conv=other(layer.conv), place=other(layer.place)) for layer in state.world.layers)
    return state._replace(world=state.world._replace(layers=layers))


def _remember_one(bench: Bench, state: DreamState, clips: Clips, t: int) -> DreamState:
    part = clips[t : t + 1]
    return remember(bench.weights.world_model, state, part.latent, part.action, part.pose)


def _features(bench: Bench, state: DreamState, clips: Clips) -> Tensor:
    from lssvwm_gym.models.world_model import FrameInputs

    zero = torch.zeros_like(clips.reward)
    inputs = FrameInputs(zero, clips.action, clips.pose, clips.motion, torch.ones_like(zero))
    return bench.weights.world_model(clips.latent, inputs, state.world).features


def _print(name: str, results: dict[str, Any]) -> None:
    table = Table("score", "value", "clips", title=name.replace("_", " "), title_justify="left")
    for key, value in results.items():
        shown = str(value) if isinstance(value, (Score, int)) else f"{value:.3f}"
        table.add_row(key, shown, str(value.clips) if isinstance(value, Score) else "")
    Console(width=120).print(table)


TESTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "reconstruction": reconstruction,
    "next_frame": next_frame,
    "open_loop": open_loop,
    "reward": reward,
    "retrieval": retrieval,
}
