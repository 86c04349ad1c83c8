"""Tests of imagination: dreams against real places in distribution, dreams of known places, and whether what was dreamed stays.

Dreams run in a closed loop: along recorded actions, at the poses that the dream itself estimates. Values are means over episodes with
standard errors, and `clips` counts episodes.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.data.episode import episode_paths, read_arrays
from lssvwm_gym.envs.rewards import reward
from lssvwm_gym.evaluation import distributions as sets
from lssvwm_gym.evaluation.context import EvalContext
from lssvwm_gym.evaluation.metrics import Score, inner, masked_score, score
from lssvwm_gym.evaluation.rollouts import DreamedFrames, cut_clips, decode_clips, dream_along, prefill_further, read_encoded
from lssvwm_gym.models.motion_heads import is_blocked, moving_actions
from lssvwm_gym.models.rollout import LATENT_STEPS, imagine, rounded, unknown_action
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState, join_rows

WINDOWS = (50, 200, 500, 1000)  # last frames of the windows in which drift shows
ROWS = 24  # dreams at a time
STACK = 8  # frames that are told apart together; a later window of fewer is left out
SHOWN, MOMENTS = 16, 8  # of the contact sheet
CELL = 4  # length scales of the world a side
FOLLOWED = 20  # frames on which recorded and other actions are compared
AGAINST_WALLS = 1 / 3  # share of its forward steps that is blocked where a player does not even look where it goes
CHANGE = 25  # of 255: a pixel that differs more from the last frame has changed
SAMPLES = 8  # dreams of the same actions, for their mean
SPANS = ((1, 10), (11, 30), (31, 60))  # frames of which known places have a PSNR
REPEATED, VIEWS = 20, 5  # frames that are dreamed and asked for again, and how many of them are
LONGEST_TURN = 60  # steps


@dataclass(frozen=True)
class Walks:
    """Real clips (B, T, ...) and dreams along their actions; as many clips of each episode, one after the other."""

    real: Segment
    dream: DreamedFrames
    state: DreamState  # at the end of the dreams
    episodes: int

    def by_episode(self, values: Tensor, frames: slice = slice(None)) -> Tensor:
        """Some frames of (B, T, ...) as (episodes, clips T, ...)."""
        return values[:, frames].unflatten(0, (self.episodes, -1)).flatten(1, 2)


def imagination(context: EvalContext) -> dict[str, Any]:
    """Dreams after a short context beside real frames along the same actions, by frames since the context. For episodes of players that
    do not look: their actions are independent of what they see, so that both should look the same in distribution.

    Fréchet and kernel distance, precision and recall: of latents, and of the features of an untrained convolutional network on stacks of
    four frames, in standard deviations of the real ones; AUC of a small network that tells dreamed from real latents of other episodes,
    of single frames and of stacks of eight: 0.5 is not at all. Real frames went through the autoencoder, too. Floor: the same between
    the real frames and as many of other places, `other_data`; without it the episodes are halved, and dreams of one half compared.
    Blocked: forward actions, which are those that lead ahead in real episodes, that move less than a third of the world's scale of
    motion. Rewards are also those of players that are blocked in a third of their forward steps: others find what they look for, in
    their own world alone. Action following: PSNR of the next frame after real ones, on pixels that change, under the recorded action
    and under that of another episode, where it is another.
    """
    context.check_poses()
    length, frames = context.run.imagination
    frames = min(frames, max(map(len, context.episodes)) - length)
    clips, episodes = _clips(context, length + frames)
    (walks,) = dreamed_walks(context, clips, length, episodes)
    _keep_sheet(context, walks)
    return {**_behaviour(context, walks), **_action_following(context, clips, length, episodes), **_distances(context, walks)}


def known_places(context: EvalContext) -> dict[str, Any]:
    """Dreams after a long context along the recorded actions: PSNR of one sample and of the mean of eight against the real frames; and
    how often they are blocked, where players who know the way are not (see `imagination`)."""
    context.check_poses()
    length, frames = context.run.known_places
    clips, episodes = _clips(context, length + frames)
    walks = dreamed_walks(context, clips, length, episodes, SAMPLES)
    samples = [decode_clips(context.weights, walk.dream.latent) for walk in walks]
    mean = torch.stack([sample.float() for sample in samples]).mean(0).round().to(torch.uint8)
    real = decode_clips(context.weights, walks[0].real.latent)
    results = _behaviour(context, walks[0])
    for name, shown in (("one sample", samples[0]), (f"mean of {SAMPLES} samples", mean), ("autoencoder", real)):
        quality = context.quality(shown, walks[0].real.frames)
        for first, last in ((first, min(last, frames)) for first, last in SPANS if first <= frames):
            results[f"{name}, frames {first} to {last}: PSNR"] = score(walks[0].by_episode(quality, slice(first - 1, last)))
    return results


def stability(context: EvalContext) -> dict[str, Any]:
    """Whether what was dreamed stays: PSNR of the dream's own frames against the views that it has of their estimated poses later.

    There and back: of 20 frames dreamed along recorded actions, after that many more steps along these. A full turn: of the frames
    dreamed while turning, once the estimated heading has gone round. Beside it the same with the views in another order (chance) and
    the autoencoder's reconstruction of real frames (ceiling).
    """
    run, length = context.run, context.run.imagination[0]
    context.check_poses()
    known = length + REPEATED
    elsewhere = sorted({steps for steps in run.elsewhere if known + steps <= max(map(len, context.episodes))})
    clips, episodes = _clips(context, known + max(elsewhere, default=0))
    (walks,) = dreamed_walks(context, clips[:known], length, episodes)
    results: dict[str, Any] = {}
    state, gone = walks.state, 0
    for steps in elsewhere:
        if steps > gone:
            _, state = dream_along(context.weights.world_model, state, clips[known + gone : known + steps], run.steps, true_motion=False)
        gone = steps
        results |= _views_again(context, walks, walks.dream, state, f"there and back, {steps} steps elsewhere")
    if not context.world.continuous:
        results |= _full_turn(context, walks)
    ceiling = context.quality(decode_clips(context.weights, walks.real.latent), walks.real.frames)
    return results | {"autoencoder: PSNR": score(walks.by_episode(ceiling))}


def _full_turn(context: EvalContext, walks: Walks) -> dict[str, Score]:
    """Turn by the action that turns most, until the estimated heading of every dream has gone round."""
    _, turning = moving_actions(context.episodes, context.weights.world_model.config.motion_scale[0])
    if turning is None:
        return {}
    once = dataclasses.replace(walks.real[:1], action=torch.full_like(walks.real.action[:, :1], turning))
    state, gone = walks.state, torch.zeros(walks.real.batch)
    parts: list[DreamedFrames] = []
    while gone.abs().min() < 2 * math.pi and len(parts) < LONGEST_TURN:
        dream, state = dream_along(context.weights.world_model, state, once, context.run.steps, true_motion=False)
        gone = gone + dream.motion[:, 0, 2]
        parts.append(dream)
    turned = DreamedFrames(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))
    return _views_again(context, walks, turned, state, "a full turn", gone.abs() >= 2 * math.pi)


def _views_again(
    context: EvalContext, walks: Walks, dream: DreamedFrames, state: DreamState, name: str, rows: Tensor | None = None
) -> dict[str, Score]:
    """Views of the poses of dreamed frames from a later state, that these leave as it is; only some rows (B,) bool count."""
    model, moments = context.weights.world_model, torch.linspace(0, dream.latent.shape[1] - 1, VIEWS).round().long()
    unknown = unknown_action(model, walks.real.batch)
    seen = [imagine(model, state, unknown, context.run.steps, dream.motion[:, t], dream.pose[:, t]).latent for t in moments]
    again, own = decode_clips(context.weights, torch.stack(seen, 1)), decode_clips(context.weights, dream.latent[:, moments])
    counted = torch.ones(len(own), VIEWS) if rows is None else rows.float().unsqueeze(1).expand(-1, VIEWS)
    results: dict[str, Score] = {}
    for kind, views in (("", again), (", views in another order", again.roll(1, 1))):
        value = masked_score(walks.by_episode(context.quality(views, own)), walks.by_episode(counted) > 0)
        results |= {} if value is None else {f"{name}{kind}: PSNR": value}
    return results


def dreamed_walks(context: EvalContext, clips: Segment, length: int, episodes: int, samples: int = 1) -> list[Walks]:
    """Dreams along the actions of clips, some rows at a time, after the first `length` frames at their true poses; some samples of each."""
    model, run = context.weights.world_model, context.run
    parts: list[list[tuple[DreamedFrames, DreamState]]] = [[] for _ in range(samples)]
    for rows in torch.arange(clips.batch).split(ROWS):
        part = clips.take(rows)
        state = context.prefilled(part[:length])
        for sample, dreams in enumerate(parts):
            seeded = state._replace(seed=rows + 1000 * run.seed + 100_000 * sample)
            dreams.append(dream_along(model, seeded, part[length:], run.steps, true_motion=False))
    return [Walks(clips[length:], dream, state, episodes) for dream, state in map(join_rows, parts)]


def windows(frames: int) -> Iterator[tuple[str, slice]]:
    """Names and frames of the windows of a dream of so many frames, and of the whole of it."""
    first = 0
    for last in (min(last, frames) for last in WINDOWS):
        if last - first >= STACK or not first:
            yield f"frames {first + 1} to {last}", slice(first, last)
        first = last
    if frames > WINDOWS[0]:
        yield f"all {frames} frames", slice(0, frames)


def cells_visited(pose: Tensor, side: float) -> Tensor:
    """Squares of this side in which poses (B, T, 4 or 6) have been, (B,)."""
    return torch.tensor([len(path.unique(dim=0)) for path in (pose[..., :2] / side).floor()])


def _clips(context: EvalContext, frames: int) -> tuple[Segment, int]:
    """Clips of all episodes that are long enough, and the number of these; no more of each than fit one after the other."""
    fits = [len(episode) // frames for episode in context.episodes if len(episode) >= frames]
    return cut_clips(context.episodes, frames, min([context.run.clips, *fits])), len(fits)


def _keep_sheet(context: EvalContext, walks: Walks) -> None:
    """Put aside the first clip of each episode, then the second, as far as the sheet goes, at evenly spaced moments."""
    rows = torch.arange(walks.real.batch).view(walks.episodes, -1).T.flatten()[:SHOWN]
    moments = torch.linspace(0, len(walks.real) - 1, MOMENTS).round().long()
    shown = {"real": walks.real.latent, "dreamed": walks.dream.latent}
    context.kept["imagination"] = {name: decode_clips(context.weights, latent[rows][:, moments]) for name, latent in shown.items()}
    context.kept["imagination"]["moments"] = moments + 1


def _behaviour(context: EvalContext, walks: Walks) -> dict[str, Any]:
    clips, world, model = walks.real, context.world, context.weights.world_model
    scale, frames = model.config.motion_scale[0], len(clips)
    results: dict[str, Any] = {}
    kinds = moving_actions(context.episodes, scale)[0]
    ahead = torch.isin(clips.action, torch.tensor(kinds, dtype=clips.action.dtype))
    blocked = {name: is_blocked(one.motion, clips.action, kinds, scale) for name, one in (("real", clips), ("dreamed", walks.dream))}
    for name, motion, pose in (("real", clips.motion, clips.pose), ("dreamed", walks.dream.motion, walks.dream.pose)):
        if not world.continuous:
            for window, some in windows(frames):
                share = masked_score(walks.by_episode(blocked[name].float(), some), walks.by_episode(ahead, some))
                results |= {} if share is None else {f"{name}, {window}: share of forward steps blocked": share}
        cells = cells_visited(pose[:, :100], CELL * world.length_scale).unsqueeze(1)
        results[f"{name}: distance covered in 100 steps (world units)"] = score(100 * walks.by_episode(motion[..., :2].norm(dim=-1)))
        results[f"{name}: cells visited in {min(frames, 100)} steps"] = score(walks.by_episode(cells))
    if not world.milestones:
        logits = model.reward_head(walks.dream.features)
        dreamed = reward(world, walks.state, walks.state, logits, bins=model.reward_bins)  # states matter to milestones only
        ran, forward = (walks.by_episode(part).sum(1) for part in (blocked["real"], ahead))
        against = ran > AGAINST_WALLS * forward
        for name, given in (("real", clips.reward), ("dreamed", dreamed)):
            earned = 1000 * walks.by_episode(given)
            results[f"{name}: rewards in 1,000 steps"] = score(earned)
            if against.any():
                results[f"{name}: rewards in 1,000 steps of players that run against walls"] = score(earned[against])
    return results


def _action_following(context: EvalContext, clips: Segment, length: int, episodes: int) -> dict[str, Score]:
    """PSNR of the frames that follow real ones, on pixels that change, under the recorded actions and under those of another episode."""
    model, run, future = context.weights.world_model, context.run, clips[length : length + FOLLOWED]
    others = future.action.roll(clips.batch // episodes, 0)
    state, latents = context.prefilled(clips[:length]), []
    for t in tqdm(range(len(future)), desc="following actions", leave=False):
        latents += [imagine(model, state, action[:, t], run.steps).latent for action in (future.action, others)]
        state = prefill_further(model, state, future[t : t + 1]).state
    truth = _pixels(context, clips.latent[:, length - 1 : length + FOLLOWED])
    changed = ((truth[:, 1:] - truth[:, :-1]).abs().amax(-1, keepdim=True) > CHANGE).float()
    differ = (future.action != others).unsqueeze(2).flatten(2).any(2)  # actions of one number or of several
    counted = (differ & changed.flatten(2).any(2)).view(episodes, -1)
    quality = []
    for dreamed in (latents[::2], latents[1::2]):
        error = ((_pixels(context, torch.stack(dreamed, 1)) - truth[:, 1:]) / 255).square().mean(-1, keepdim=True) * changed
        mean = error.flatten(2).sum(2) / changed.flatten(2).sum(2).clamp(min=1)
        quality.append(-10 * mean.clamp(min=1e-6).log10().view(episodes, -1))
    scores = {
        "recorded action, pixels that change: PSNR": masked_score(quality[0], counted),
        "another action, pixels that change: PSNR": masked_score(quality[1], counted),
        "cost of another action, pixels that change (dB)": masked_score(quality[0] - quality[1], counted),
    }
    return {name: value for name, value in scores.items() if value is not None}


def _pixels(context: EvalContext, latent: Tensor) -> Tensor:
    """What latents (B, T, N, C) show, (B, T, height, width, 3) float in 0..255, without the world's border."""
    return inner(decode_clips(context.weights, latent), context.world.border).float()


def _distances(context: EvalContext, walks: Walks) -> dict[str, Any]:
    """Of dreams to real frames, and of real frames of other places to these: the floor."""
    run, frames = context.run, len(walks.real)  # real latents are rounded as dreamed ones are, so that this tells nothing
    real, dreamed = (latent.unflatten(0, (walks.episodes, -1)) for latent in (rounded(walks.real.latent, LATENT_STEPS), walks.dream.latent))
    if run.other_data is None:
        count = walks.episodes // 2
        if count < 2:
            raise ValueError(f"halves of {walks.episodes} episodes are too few for a floor: name other real ones with --other-data")
        real, dreamed, other = real[: 2 * count : 2], dreamed[: 2 * count : 2], real[1::2]
    else:
        other = _other_latents(context, run.other_data, walks.episodes, real.shape[1], run.imagination[0] + frames)
    results: dict[str, Any] = {f"episodes of the floor, {'of other data' if run.other_data else 'halves of the same'}": len(other)}
    shown = partial(_pixels, context)
    pictures = sets.untrained_features(real, shown)
    for kind, latent in (("dreamed", dreamed), ("floor", other)):
        results |= _compared(frames, "latents", 1, real.flatten(-2), latent.flatten(-2), sets.DISTANCES, kind)
        theirs = sets.untrained_features(latent, shown)
        results |= _compared(frames, f"stacks of {sets.FRAMES}", sets.EVERY, pictures, theirs, sets.DISTANCES, kind)
        for size in (1, min(STACK, frames)):
            told = sets.told_apart(sets.stacks_of(real, size), sets.stacks_of(latent, size), run.seed)
            name = "single frames" if size == 1 else f"stacks of {size}"
            results |= _compared(frames, name, max(1, size // 2), *told, {"AUC": sets.area_under_curve}, kind)
    return results


def _compared(
    frames: int, name: str, every: int, real: Tensor, other: Tensor, measures: dict[str, sets.Distance], kind: str
) -> dict[str, Score]:
    """Measures of two sets (episodes, clips, T / every, D), in standard deviations of the real ones, by window."""
    mean, deviation = real.flatten(0, 2).mean(0), real.flatten(0, 2).std(0).clamp(min=1e-6)
    results: dict[str, Score] = {}
    for window, some in windows(frames):
        part = slice(some.start // every, some.stop // every)
        a, b = (((one[:, :, part] - mean) / deviation).flatten(1, 2) for one in (real, other))
        results |= {f"{name}, {window}: {title}, {kind}": sets.jackknife(measure, a, b) for title, measure in measures.items()}
    return results


def _other_latents(context: EvalContext, folder: Path, episodes: int, clips: int, frames: int) -> Tensor:
    """Latents of so many clips of so many other episodes, evenly spaced in a folder, after the context: (episodes, clips, T, N, C)."""
    paths = [path for path in episode_paths(folder) if len(read_arrays(path)["action"]) >= frames]
    if len(paths) < episodes:
        raise ValueError(f"{folder} has {len(paths)} episodes of {frames} frames, and a floor for {episodes} needs as many")
    chosen = [paths[place] for place in np.linspace(0, len(paths) - 1, episodes).round().astype(int)]
    other = cut_clips(read_encoded(chosen, context.weights), frames, clips)[context.run.imagination[0] :]
    return rounded(other.latent, LATENT_STEPS).unflatten(0, (episodes, clips))
