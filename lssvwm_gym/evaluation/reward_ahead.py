"""Whether a dream pays where the real world did, by how long it has dreamed on its own before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lssvwm_gym.evaluation.metrics import score
from lssvwm_gym.evaluation.rollouts import Clips, RealEpisode, clips_at, remember_clips
from lssvwm_gym.evaluation.workbench import Bench, DoesNotApply, Evaluation
from lssvwm_gym.models.rollout import DreamState, commit, imagine, remember
from lssvwm_gym.models.world_model import WorldModel

LEADS = (2, 5, 10, 20, 40)  # frames dreamed up to the one that was paid
NEAR = 3  # frames that a dreamed reward may be off
LONG = 600  # frames of a long past
TOGETHER = 12_000  # frames that are remembered in one go
MOST = 12  # rewards of an episode, for each of the clips that are asked for


def reward_ahead(bench: Bench) -> dict[str, Any]:
    """Dreams on real actions that end shortly after a recorded reward, begun 2 to 40 frames before it from a real past at its true poses.

    Share of these rewards that the dream pays too, at most 3 frames off, by frames dreamed before; and of what the longest dreams
    pay, the share that was paid at most 3 frames off. What an agent can learn from a dream is bounded by the first, what it may
    be misled by told by the second. All of it after `context` frames, and, where recordings are that long, after 600: what was
    never seen can't be foreseen, and after so many most of a maze has been. Rewards with less before them don't count.
    """
    if bench.world.milestones:
        raise DoesNotApply("counts pay in this world, not the reward head: see the test milestones")
    context, results = bench.run.context, foreseen(bench, bench.run.context)
    if not results:
        raise DoesNotApply(f"no reward has {context + LEADS[-1]} frames before it")
    longer = foreseen(bench, LONG) if context < LONG else {}
    return results | {f"after {LONG} frames, {name}": value for name, value in longer.items()}


def foreseen(bench: Bench, context: int) -> dict[str, Any]:
    """What dreams begun from `context` frames and more pay; empty where no reward has that much before it."""
    model, run, before = bench.weights.world_model, bench.run, context + LEADS[-1]
    places = [place for episode in bench.episodes for place in _before_rewards(episode, before, MOST * run.clips)]
    if not places:
        return {}
    together = max(1, TOGETHER // before)
    parts = [places[at : at + together] for at in range(0, len(places), together)]
    columns = [list(_dreamed(model, clips_at(part, before + NEAR + 1), context, run)) for part in parts]
    results: dict[str, Any] = {"rewards": len(places)}
    for lead, *some in zip(sorted(LEADS, reverse=True), *columns, strict=True):
        pays, real = (torch.cat(column) for column in zip(*some, strict=True))
        results[f"{lead} frames ahead: share of rewards dreamed"] = score(pays[:, max(0, lead - 1 - NEAR) :].any(1))
        if lead == LEADS[-1]:
            results[f"{lead} frames ahead: share of dreamed rewards that are real"] = (
                round((pays & _widened(real)).sum().item() / pays.sum().item(), 4) if pays.any() else None
            )
    return results


def _dreamed(model: WorldModel, clips: Clips, context: int, run: Evaluation) -> Iterator[tuple[Tensor, Tensor]]:
    """Which frames of the dreams along some clips pay, and which were paid, bool (B, T): from the longest dreams to the shortest."""
    state, remembered, before = remember_clips(model, clips[: context + 1], run.seed), context + 1, context + LEADS[-1]
    for lead in sorted(LEADS, reverse=True):
        upto = before - lead + 1
        if upto > remembered:
            part = clips[remembered:upto]
            state, remembered = remember(model, state, part.latent, part.action, part.pose, part.vector), upto
        yield paying(model, state, clips[upto:], run.steps), clips[upto:].reward > 0


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
