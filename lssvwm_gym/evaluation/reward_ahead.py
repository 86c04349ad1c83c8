"""Whether a dream pays where the real world did, by how long it has dreamed on its own before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import score
from lssvwm_gym.evaluation.rollouts import Clips, RealEpisode, clips_at, remember_clips
from lssvwm_gym.evaluation.workbench import Bench, DoesNotApply
from lssvwm_gym.models.dreaming import DreamState, commit, imagine, remember
from lssvwm_gym.models.world_model import WorldModel

LEADS = (2, 5, 10, 20, 40)  # frames dreamed up to the one that was paid
NEAR = 3  # frames that a dreamed reward may be off
MOST = 4  # rewards of an episode, for each of the clips that are asked for


def reward_ahead(bench: Bench) -> dict[str, Any]:
    """Dreams on real actions that end shortly after a recorded reward, begun 2 to 40 frames before it from a real past at its true poses.

    Share of these rewards that the dream pays too, at most 3 frames off, by frames dreamed before; and of what the longest dreams
    pay, the share that was paid at most 3 frames off. What an agent can learn from a dream is bounded by the first, what it may
    be misled by told by the second. Rewards with less than `context` and 40 frames before them don't count.
    """
    if bench.world.milestones:
        raise DoesNotApply("counts pay in this world, not the reward head: see the test milestones")
    model, run = bench.weights.world_model, bench.run
    before = run.context + LEADS[-1]
    places = [place for episode in bench.episodes for place in _before_rewards(episode, before, MOST * run.clips)]
    if not places:
        raise DoesNotApply(f"no reward has {before} frames before it")
    clips = clips_at(places, before + NEAR + 1)
    state, remembered = remember_clips(model, clips[: run.context + 1], run.seed), run.context + 1
    results: dict[str, Any] = {"rewards": len(places)}
    for lead in sorted(LEADS, reverse=True):
        upto = before - lead + 1
        if upto > remembered:
            part = clips[remembered:upto]
            state, remembered = remember(model, state, part.latent, part.action, part.pose, part.vector), upto
        pays = paying(model, state, clips[upto:], run.steps)
        results[f"{lead} frames ahead: share of rewards dreamed"] = score(pays[:, max(0, lead - 1 - NEAR) :].any(1))
        if lead == LEADS[-1]:
            real = _widened(clips[upto:].reward > 0)
            results[f"{lead} frames ahead: share of dreamed rewards that are real"] = (
                round((pays & real).sum().item() / pays.sum().item(), 4) if pays.any() else None
            )
    return results


def paying(model: WorldModel, state: DreamState, clips: Clips, steps: int) -> Tensor:
    """Which frames of a dream along clips' actions, with believed motion, pay: bool (B, T)."""
    pays = []
    for action in clips.action.unbind(1):
        state = commit(model, state, action, imagine(model, state, action, steps))
        pays.append(model.reward_head(state.features).argmax(-1) > 0)
    return torch.stack(pays, 1)


def _before_rewards(episode: RealEpisode, before: int, most: int) -> list[tuple[RealEpisode, int]]:
    """Where clips begin that have a reward `before` frames later: at most so many, evenly over the episode's."""
    paid = torch.nonzero(episode.latent.reward > 0)[:, 0].tolist()
    starts = [t - before for t in paid if t >= before and t + NEAR < len(episode.latent)]
    chosen: list[int] = np.unique(np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int)).tolist() if starts else []
    return [(episode, starts[number]) for number in chosen]


def _widened(events: Tensor) -> Tensor:
    """Frames (B, T) at most `NEAR` from an event."""
    spread = torch.nn.functional.max_pool1d(events.float()[:, None], 2 * NEAR + 1, 1, NEAR)
    return spread[:, 0] > 0
