"""Tests of the block world's inventory, for `experiments.more_tests`: it follows the recipes, stays, and its milestones are rewarded once.

Shares here are of cases (crafts, steps, dreams), their number stands where that of clips does, and their standard error is
that of (hits + 1) of (cases + 2), so that a few cases that all went well don't look certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lssvwm_gym.envs.profiles import PROFILES, sampling_steps
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext
from lssvwm_gym.evaluation.metrics import Score, score
from lssvwm_gym.evaluation.rollouts import clips_at, cut_clips, dream_along, prefill_further
from lssvwm_gym.models.rollout import commit, imagine
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import DreamState, take_rows
from lssvwm_gym.real_envs.experts.block_players import MOST_ITEMS, RECIPES_IN_ORDER, random_bag
from lssvwm_gym.worlds import WorldSpec

RECIPES = {  # the game's own: by how much each count changes, where nothing is missing
    "craft_planks": {"log": -1, "planks": 4},
    "craft_sticks": {"planks": -1, "stick": 4},
    "craft_wooden_pickaxe": {"planks": -3, "stick": -2, "wooden_pickaxe": 1},
    "craft_stone_pickaxe": {"cobblestone": -3, "stick": -2, "stone_pickaxe": 1},
}
WORK = ("dig", "place")  # what else changes the counts
SCRIPTS = {  # crafts in an order in which each is possible
    "wooden pickaxe": ("craft_planks", "craft_sticks", "craft_wooden_pickaxe"),
    "stone pickaxe": ("craft_stone_pickaxe",),
}
PAUSE = "turn_left"  # between two crafts of a script
DETOUR = 300  # frames dreamed in which nothing is done that changes the inventory
BAGS = 4  # drawn at random at each moment at which crafts are tried
CARRIED = 100  # dreams of a detour that begin with a bag drawn at random
SCRIPTED = 50  # dreams in which all crafts are done in order, from a bag of logs and cobblestones
LONGEST_SPELL = 8  # steps of a detour that are the same


def crafting(context: EvalContext) -> dict[str, Any]:
    """Changes of the inventory at each step of whole real episodes, against the recorded ones, on

    real frames: conditioned on every real frame and the real inventory before it;
    dreamed frames: the recorded actions are dreamed, `ahead` frames at a time, each time from the real context up to there, with
    the dream's own inventory. A craft that was possible then may not be possible in the dream, or the other way round, so
    that crafts are also compared with what the recipe makes of the dream's own inventory;
    crafts tried: each of the crafts in one dreamed frame, after every `ahead` real ones, against the recipe; with the bag that the episode
    has there, and with bags drawn at random in its place.

    Crafts are right where every item's count changes as it should. Digging and placing change the inventory on few steps only:
    recall is of those on which they did, exactly right of those on which they did in every count, precision of those on which
    they were predicted to. All other steps should change nothing.
    """
    _check_applies(context.world)
    model, ahead = context.weights.world_model, context.run.ahead
    clips = cut_clips(context.episodes, min(len(episode.frames) for episode in context.episodes), 1)
    later = clips[1:]
    features = prefill_further(model, context.prefilled(clips[:1]), later).features
    assert model.inventory_head is not None
    predicted = model.inventory_head.after(features, later.before, later.action) - later.before
    before, after, tried = _inventory_rollouts(context, clips)
    return {
        **step_scores(context.world, "real frames", later, predicted),
        **step_scores(context.world, "dreamed frames", clips[ahead:], after - before),
        **_own_crafts(context.world, "dreamed frames", clips.action[:, ahead:], before, after - before),
        **tried,
    }


def inventory(context: EvalContext) -> dict[str, Any]:
    """What is left of the inventory after a dream of `DETOUR` frames in which nothing is dug, placed or crafted.

    Each dream begins after `context` real frames at whose end something is carried, `clips` an episode; its actions are drawn at
    random, each for 1 to 8 steps. Others, `CARRIED` of them, begin there with a bag drawn at random.
    """
    _check_applies(context.world)
    context.check_poses()
    run = context.run
    places = []
    for episode in context.episodes:
        carried = episode.inventory.any(1) & (torch.arange(len(episode)) >= run.context - 1)
        places += [(episode, end + 1 - run.context) for end in _spread(carried, run.clips)]
    if not places:
        raise ValueError(f"in no episode is anything carried after {run.context} frames")
    state = context.prefilled(clips_at(places, run.context))
    rng, rows = np.random.default_rng(run.seed), torch.arange(CARRIED) % len(places)
    bags = state.inventory.new_tensor([random_bag(rng) for _ in rows])
    return _carried_on(context, "", state) | _carried_on(context, "any bag, ", take_rows(state, rows)._replace(inventory=bags))


def _carried_on(context: EvalContext, name: str, state: DreamState) -> dict[str, Any]:
    """What becomes of the inventories of a state in a detour."""
    model, begun, results = context.weights.world_model, state.inventory, dict[str, Any]()
    actions = detour(context.world, len(begun), DETOUR, context.run.seed)
    for step, action in enumerate(tqdm(actions.unbind(1), desc="detour", leave=False), 1):
        state = commit(model, state, action, imagine(model, state, action, context.run.steps))
        if step in (100, DETOUR):
            lost, gained = (begun - state.inventory).clamp(min=0).sum(1), (state.inventory - begun).clamp(min=0).sum(1)
            results[f"{name}after {step} frames: inventory unchanged"] = share((state.inventory == begun).all(1))
            results[f"{name}after {step} frames: share of items still there"] = score(1 - lost / begun.sum(1).clamp(min=1))
            results[f"{name}after {step} frames: items from nowhere"] = score(gained)
    return results


def milestones(context: EvalContext) -> dict[str, Any]:
    """Scripts of crafts in dreams: whether each reward is given once and in order, and the repeat gives none.

    A script is its crafts in order and then all of them again, with a turn after each. A dream begins after all real frames up
    to one of `clips` steps an episode at which the crafts are possible and none of what they make was ever there. The script of all
    crafts is done in `SCRIPTED` dreams, which begin after `context` frames with a bag of logs and cobblestones.
    """
    _check_applies(context.world)
    results: dict[str, Any] = {}
    for name, crafts in SCRIPTS.items():
        runs = [_run_script(context, context.prefilled(past), crafts, number) for number, past in enumerate(_pasts(context, crafts))]
        if runs:
            given, due, followed = (torch.tensor(column) for column in zip(*runs, strict=True))
            once = 2 * len(crafts)  # steps before the crafts are repeated
            results[f"{name}: rewards given once each and in order"] = share((given == due).all(1))
            results[f"{name}: rewards given in order the first time"] = share((given == due)[:, :once].all(1))
            results[f"{name}: repeated crafts give no reward"] = share((given == 0)[:, once:].all(1))
            results[f"{name}: inventory follows the recipes throughout"] = share(followed)
    return results | _from_logs_and_stones(context)


def _from_logs_and_stones(context: EvalContext) -> dict[str, Any]:
    """Scores of the script of all crafts, in dreams that begin with a bag of what they are made of; the script is done once each."""
    world, rng = context.world, np.random.default_rng(context.run.seed)
    state, crafts = context.prefilled(cut_clips(context.episodes, context.run.context, 1)), [world.actions[a] for a in RECIPES_IN_ORDER]
    runs = []
    for number in range(SCRIPTED):
        counts = torch.zeros_like(state.inventory[:1])
        for name, least in (("log", 2), ("cobblestone", 3)):
            counts[0, world.inventory.index(name)] = float(rng.integers(least, MOST_ITEMS + 1))
        row = take_rows(state, torch.tensor([number % len(state.seed)]))
        runs.append(_run_script(context, row._replace(inventory=counts, inventory_peak=counts.clone()), tuple(crafts), number))
    given, due, followed = (torch.tensor(column) for column in zip(*runs, strict=True))
    return {
        "all crafts from logs and cobblestones: rewards given once each and in order": share((given == due).all(1)),
        "all crafts from logs and cobblestones: inventory follows the recipes throughout": share(followed),
    }


def share(hits: Tensor) -> Score:
    """Share of bool cases (cases,); see the head of this module for its standard error."""
    cases, found = len(hits), int(hits.sum())
    likely = (found + 1) / (cases + 2)
    return Score(found / cases, math.sqrt(likely * (1 - likely) / (cases + 2)), cases)


def by_recipe(world: WorldSpec, counts: Tensor, action: Tensor) -> Tensor:
    """Changes (..., V) that actions (...) make to inventories (..., V) by the recipes; zeros for impossible crafts and other actions."""
    change = torch.zeros_like(counts)
    for name, recipe in RECIPES.items():
        made = torch.tensor([float(recipe.get(count, 0)) for count in world.inventory])
        possible = (counts + made.clamp(max=0) >= 0).all(-1) & (action == world.actions.index(name))
        change = torch.where(possible.unsqueeze(-1), made, change)
    return change


def step_scores(world: WorldSpec, name: str, clips: Segment, predicted: Tensor) -> dict[str, Any]:
    """Scores of predicted changes (B, T, V) of the inventory at each step of real clips."""
    real = clips.inventory - clips.before
    changed, predicts, right = real.any(-1), predicted.any(-1), (predicted == real).all(-1)
    crafts, work = (_among(world, clips.action, names) for names in (RECIPES, WORK))
    cases = {
        "possible crafts right": (right, crafts & changed),
        "impossible crafts without effect": (~predicts, crafts & ~changed),
        "digging and placing, recall": (predicts, work & changed),
        "digging and placing, exactly right": (right, work & changed),
        "digging and placing, precision": (changed, work & predicts),
        "false changes in all other steps": (predicts, ~(crafts | work)),
    }
    gained = (predicted.clamp(min=0).sum(-1)[work].sum() / real.clamp(min=0).sum(-1)[work].sum().clamp(min=1)).item()
    return _shares(name, cases) | {f"{name}: items dug for each that was really dug": gained}


def _shares(name: str, cases: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Of each case the share of hits among its steps, both bool; cases without steps are left out."""
    return {f"{name}: {case}": share(hits[among]) for case, (hits, among) in cases.items() if among.any()}


def detour(world: WorldSpec, rows: int, frames: int, seed: int) -> Tensor:
    """Actions (rows, frames) int64 that change nothing of what is carried: one for some steps, then another."""
    idle = [number for number, name in enumerate(world.actions) if name not in RECIPES and name not in WORK]
    rows_of_actions = []
    for row in range(rows):
        rng, actions = np.random.default_rng([seed, row]), list[int]()
        while len(actions) < frames:
            actions += [idle[rng.integers(len(idle))]] * int(rng.integers(1, LONGEST_SPELL + 1))
        rows_of_actions.append(actions[:frames])
    return torch.tensor(rows_of_actions)


def _inventory_rollouts(context: EvalContext, clips: Segment) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A dream's inventory before and after each frame from `ahead` on, (B, T, V), in pieces; scores of crafts tried between them."""
    model, run, piece = context.weights.world_model, context.run, context.run.ahead
    state = context.prefilled(clips[:piece])
    before, after = list[Tensor](), list[Tensor]()
    tries: dict[str, list[tuple[Tensor, Tensor]]] = {"crafts tried": [], "crafts tried with any bag": []}
    rng = np.random.default_rng(run.seed)
    for start in range(piece, len(clips), piece):
        tries["crafts tried"] += _tried(context, state)
        for _ in range(BAGS):
            bags = state.inventory.new_tensor([random_bag(rng) for _ in range(len(state.inventory))])
            tries["crafts tried with any bag"] += _tried(context, state._replace(inventory=bags))
        future = clips[start : start + piece]
        counts = dream_along(model, state, future, run.steps, true_motion=False)[0].inventory
        before.append(torch.cat([state.inventory.unsqueeze(1), counts[:, :-1]], 1))
        after.append(counts)
        state = prefill_further(model, state, future).state
    scores: dict[str, Any] = {}
    for name, each in tries.items():
        due, made = (torch.cat(column) for column in zip(*each, strict=True))
        possible, right = due.any(-1), (due == made).all(-1)
        scores |= _shares(name, {"possible ones right": (right, possible), "impossible ones without effect": (right, ~possible)})
    return torch.cat(before, 1), torch.cat(after, 1), scores


def _tried(context: EvalContext, state: DreamState) -> Iterator[tuple[Tensor, Tensor]]:
    """For each craft, as the next frame of every row: changes (B, V) by the recipe, and as dreamed."""
    model, world = context.weights.world_model, context.world
    for name in RECIPES:
        action = torch.full_like(state.seed, world.actions.index(name))
        after = commit(model, state, action, imagine(model, state, action, context.run.steps))
        yield by_recipe(world, state.inventory, action), after.inventory - state.inventory


def _own_crafts(world: WorldSpec, name: str, action: Tensor, before: Tensor, made: Tensor) -> dict[str, Any]:
    """Changes that a dream made by actions (B, T), against what the recipes make of its own inventory before them, both (B, T, V)."""
    due = by_recipe(world, before, action)
    crafts, possible, right = _among(world, action, RECIPES), due.any(-1), (due == made).all(-1)
    cases = {
        "possible crafts right, by the dream's own inventory": (right, crafts & possible),
        "impossible crafts without effect, by its own inventory": (right, crafts & ~possible),
    }
    return _shares(name, cases)


def _pasts(context: EvalContext, crafts: tuple[str, ...]) -> Iterator[Segment]:
    """Real contexts, a row each, after which the crafts are possible in order and nothing of what they make was there yet."""
    world = context.world
    made = [world.inventory.index(count) for craft in crafts for count, change in RECIPES[craft].items() if change > 0]
    for episode in context.episodes:
        counts = episode.inventory
        ready = (counts[:, made].cummax(0).values == 0).all(1)
        for craft in crafts:
            change = by_recipe(world, counts, torch.full((len(counts),), world.actions.index(craft)))
            counts, ready = counts + change, ready & change.any(1)
        for end in _spread(ready, context.run.clips):
            yield clips_at([(episode, 0)], end + 1)


def _run_script(context: EvalContext, state: DreamState, crafts: tuple[str, ...], number: int) -> tuple[list[float], list[float], bool]:
    """A script after a context, of one row: rewards given at each step, rewards due, whether the inventory followed the recipes."""
    profiles = {sampling_steps(context.weights.world_model, name): name for name in PROFILES}
    if context.run.steps not in profiles:
        raise ValueError(f"milestones are tried in the environment, which has {sorted(profiles)} steps a frame, not {context.run.steps}")
    world, dream = context.world, Dream(context.world, context.weights, profiles[context.run.steps])
    state = state._replace(seed=torch.tensor([number]))
    counts, owned, given, due, followed = state.inventory, set[str](), list[float](), list[float](), True
    for name in [step for craft in crafts * 2 for step in (craft, PAUSE)]:
        action = torch.tensor([world.actions.index(name)])
        change = by_recipe(world, counts, action)
        new = {count for count, more in zip(world.inventory, change[0].tolist(), strict=True) if more > 0} - owned
        counts, owned = counts + change, owned | new
        state, reward, *_ = dream.step(state, action)
        given.append(float(reward[0]))
        due.append(sum(value for count, value in world.milestones if count in new))
        followed = followed and torch.equal(state.inventory, counts)
    return given, due, followed


def _spread(wanted: Tensor, most: int) -> list[int]:
    """At most `most` of the frames marked in a bool tensor (T,), evenly spaced."""
    frames = wanted.nonzero().flatten()
    return frames[torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()].tolist() if len(frames) else []


def _among(world: WorldSpec, action: Tensor, names: Any) -> Tensor:
    return torch.isin(action, torch.tensor([world.actions.index(name) for name in names]))


def _check_applies(world: WorldSpec) -> None:
    if not world.inventory or not {*RECIPES, *WORK, PAUSE} <= set(world.actions):
        raise DoesNotApply("nothing is carried or crafted in this world")
