"""Measuring what is carried, on cases whose outcome is known: recipes followed, missed, and read a step too late."""

import dataclasses
import json

import pytest
import torch
from real_walks import write_real_walks
from tiny_minecraft import (
    DIG,
    DIRT,
    FORWARD,
    LOG,
    PLACE,
    PLANKS,
    PLAY,
    STICKS,
    STONE,
    TURN,
    WOODEN,
    WORLD,
    recipes_are_followed,
    write_real_plays,
    write_tiny_minecraft,
)

from experiments import crafting as block_world
from experiments.crafting import _pasts, by_recipe, crafting, detour, inventory, milestones, share, step_scores
from experiments.more_tests import ALWAYS, Args
from lssvwm_gym.evaluation.context import SUITES, DoesNotApply
from lssvwm_gym.evaluation.evaluate import Evaluation, evaluate, open_context
from lssvwm_gym.evaluation.memory import retrieval, untouched
from lssvwm_gym.evaluation.rollouts import cut_clips, prefill_clips, prefill_further, prefill_without_poses
from lssvwm_gym.models.inventory_head import InventoryHead
from lssvwm_gym.models.segment import Segment

FRAMES, AHEAD = 40, 10


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_minecraft(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_real_plays(tmp_path_factory.mktemp("real"), frames=FRAMES)


@pytest.fixture(scope="module")
def bench(folder, weights):
    sizes = dict(clips=2, context=20, ahead=AHEAD, retrieval=(10,), reasoning=(20, 5), memories=("own",))
    return open_context(Evaluation(folder, world="minecraft", weights=weights, **sizes))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(block_world, "DETOUR", 12)


@pytest.fixture
def followed(monkeypatch):
    monkeypatch.setattr(InventoryHead, "after", recipes_are_followed)


def counts(**carried):
    return torch.tensor([float(carried.get(name, 0)) for name in WORLD.inventory])


def clip_of(actions, *inventories):
    """A clip of one row: action t led from vector t to vector t + 1."""
    inventory, action = torch.stack(inventories)[None], torch.tensor([actions])
    nothing = torch.zeros(1, len(actions))
    return Segment(nothing[..., None, None], action, nothing, nothing, inventory[:, 1:], inventory[:, :-1], nothing, nothing)


def mean(results):
    return {name.split(": ", 1)[1]: (value.mean, value.clips) for name, value in results.items() if hasattr(value, "clips")}


def test_recipes_give_and_take_where_nothing_is_missing():
    carried = torch.stack([counts(log=1), counts(planks=1), counts(planks=3, stick=2), counts(cobblestone=3, stick=1), counts(log=5)])
    made = by_recipe(WORLD, carried, torch.tensor([PLANKS, STICKS, WOODEN, STONE, DIG]))
    assert torch.equal(carried[0] + made[0], counts(planks=4))
    assert torch.equal(carried[1] + made[1], counts(stick=4))
    assert torch.equal(carried[2] + made[2], counts(wooden_pickaxe=1))
    assert not made[3:].any()  # a stick is missing; digging is no craft


def test_every_case_is_counted_where_it_belongs():
    start = counts(log=2, planks=3, stick=1)
    after_planks, dirt = start + counts(log=-1, planks=4), counts(dirt=1)
    steps = [
        (PLANKS, start, after_planks, counts(log=-1, planks=4)),  # right
        (PLANKS, start, after_planks, counts(planks=4)),  # the log is still there: wrong
        (WOODEN, start, start, counts()),  # impossible, and nothing happens
        (STONE, start, start, counts(stone_pickaxe=1)),  # impossible, and something happens
        (STONE, start, start, counts()),
        (DIG, start, start + dirt, dirt),  # right
        (DIG, start, start + dirt, counts(sand=1)),  # seen, but wrong
        (DIG, start, start + dirt, counts()),  # missed
        (DIG, start, start, dirt),  # a false alarm
        (PLACE, start + dirt, start, -dirt),  # right
        (TURN, start, start, counts()),
        (FORWARD, start, start, counts(log=-1)),  # a false change
    ]
    action, before, after, predicted = (list(column) for column in zip(*steps, strict=True))
    clip = clip_of(action, *before, after[-1])
    clip = dataclasses.replace(clip, before=torch.stack(before)[None], inventory=torch.stack(after)[None])
    results = step_scores(WORLD, "x", clip, torch.stack(predicted)[None])
    assert mean(results) == {
        "possible crafts right": (0.5, 2),
        "impossible crafts without effect": (2 / 3, 3),
        "digging and placing, recall": (0.75, 4),
        "digging and placing, exactly right": (0.5, 4),
        "digging and placing, precision": (0.75, 4),
        "false changes in all other steps": (0.5, 2),
    }
    assert results["x: items dug for each that was really dug"] == 1  # dirt, sand and dirt for three of dirt


def test_few_cases_are_not_certain():
    sure = share(torch.ones(8).bool())
    assert (sure.mean, sure.clips, sure.error) == (1, 8, pytest.approx((0.9 * 0.1 / 10) ** 0.5))


def test_crafts_that_follow_the_recipes_are_right_at_their_step(bench, followed):
    results = crafting(bench)
    episodes, possible, impossible = 2, 4, 2  # planks, sticks, wooden pickaxe, planks; and a pickaxe of each kind too early
    real = {name.removeprefix("real frames: "): (s.mean, s.clips) for name, s in results.items() if "real frames" in name and s != 0}
    assert real["possible crafts right"] == (1, episodes * possible)
    assert real["impossible crafts without effect"] == (1, episodes * impossible)
    assert real["digging and placing, recall"] == (0, episodes * 3)  # recipes don't dig
    assert real["false changes in all other steps"] == (0, episodes * (FRAMES - 1 - 6 - PLAY.count(DIG)))
    assert results["dreamed frames: possible crafts right"].clips == episodes * 3  # the first planks come before the dream
    assert results["dreamed frames: possible crafts right"].mean == 1
    assert results["dreamed frames: impossible crafts without effect, by its own inventory"].mean == 1
    assert results["crafts tried: possible ones right"].mean == results["crafts tried: impossible ones without effect"].mean == 1
    with_any_bag = [results[f"crafts tried with any bag: {kind}"] for kind in ("possible ones right", "impossible ones without effect")]
    assert [score.mean for score in with_any_bag] == [1, 1]
    assert min(score.clips for score in with_any_bag) > 0
    tried = sum(results[f"crafts tried: {kind}"].clips for kind in ("possible ones right", "impossible ones without effect"))
    assert tried == episodes * 4 * len(range(AHEAD, FRAMES, AHEAD))


def test_a_craft_read_a_step_too_late_is_wrong(bench, monkeypatch):
    def late(head, features, before, action, chance=None):
        return recipes_are_followed(head, features, before, action.roll(1, -1))

    monkeypatch.setattr(InventoryHead, "after", late)
    results = crafting(bench)
    assert results["real frames: possible crafts right"].mean == 0
    assert results["real frames: false changes in all other steps"].mean > 0


def test_a_dream_goes_on_from_its_own_counts(bench, monkeypatch):
    """One that turns every log into dirt carries no planks later, and is right by its own inventory only."""

    def dreamed(head, features, before, action, chance=None):
        after = before.clone()
        after[..., DIRT] += before[..., LOG]
        after[..., LOG] = 0
        return torch.where((action == TURN).unsqueeze(-1), after, recipes_are_followed(head, features, before, action))

    monkeypatch.setattr(InventoryHead, "after", dreamed)
    results = crafting(dataclasses.replace(bench, run=dataclasses.replace(bench.run, ahead=7)))
    assert results["dreamed frames: possible crafts right"].mean < 1
    assert results["dreamed frames: possible crafts right, by the dream's own inventory"].mean == 1


def test_what_is_carried_is_kept_where_nothing_takes_it(bench, followed):
    results = inventory(bench)
    assert results["after 12 frames: inventory unchanged"] == share(torch.ones(4).bool())
    assert results["after 12 frames: share of items still there"].mean == 1
    assert results["after 12 frames: items from nowhere"].mean == 0
    assert results["any bag, after 12 frames: inventory unchanged"] == share(torch.ones(100).bool())


def test_what_is_lost_on_the_way_is_told(bench, monkeypatch):
    monkeypatch.setattr(InventoryHead, "after", lambda head, features, before, action, chance=None: before * (torch.arange(9) != LOG))
    results = inventory(bench)
    assert results["after 12 frames: inventory unchanged"].mean == 1  # there is no log any more after 20 frames
    monkeypatch.setattr(InventoryHead, "after", lambda head, features, before, action, chance=None: (before - 1).clamp(min=0))
    results = inventory(bench)
    assert results["after 12 frames: inventory unchanged"].mean == 0
    assert results["after 12 frames: share of items still there"].mean == 0


def test_a_detour_neither_digs_nor_places_nor_crafts():
    walk = detour(WORLD, 5, 300, seed=0)
    assert walk.shape == (5, 300)
    assert set(walk.flatten().tolist()) == set(range(DIG))
    assert torch.equal(walk, detour(WORLD, 5, 300, seed=0))
    assert not torch.equal(walk[0], walk[1])


def test_a_script_begins_where_its_crafts_have_become_possible(bench):
    ends = [len(past) - 1 for past in _pasts(bench, ("craft_planks", "craft_sticks", "craft_wooden_pickaxe"))]
    assert ends == [4, 7, 4, 7]  # with the first log and before the first planks, in each of two episodes
    assert not list(_pasts(bench, ("craft_stone_pickaxe",)))


def test_a_script_is_paid_once_and_in_order(bench, followed):
    results = milestones(bench)
    assert {name.removeprefix("wooden pickaxe: "): (s.mean, s.clips) for name, s in results.items() if "pickaxe" in name} == {
        "rewards given once each and in order": (1, 4),
        "rewards given in order the first time": (1, 4),
        "repeated crafts give no reward": (1, 4),
        "inventory follows the recipes throughout": (1, 4),
    }
    every_craft = [(s.mean, s.clips) for name, s in results.items() if "logs and cobblestones" in name]
    assert every_craft == [(1, 50)] * 2


def test_a_script_without_sticks_earns_no_pickaxe(bench, monkeypatch):
    def no_sticks(head, features, before, action, chance=None):
        return torch.where((action == STICKS).unsqueeze(-1), before, recipes_are_followed(head, features, before, action))

    monkeypatch.setattr(InventoryHead, "after", no_sticks)
    results = milestones(bench)
    assert results["wooden pickaxe: rewards given in order the first time"].mean == 0
    assert results["wooden pickaxe: repeated crafts give no reward"].mean == 1
    assert results["wooden pickaxe: inventory follows the recipes throughout"].mean == 0
    assert results["all crafts from logs and cobblestones: rewards given once each and in order"].mean == 0


def test_real_pasts_begin_with_the_counts_before_them(bench):
    clips = cut_clips(bench.episodes, 20, 3)
    assert torch.equal(clips.before[:, 1:], clips.inventory[:, :-1])
    assert clips.before[2, 0].any()  # the last clip begins with something in the bag
    model = bench.weights.world_model
    assert torch.equal(prefill_clips(model, clips).inventory, clips.inventory[:, -1])
    first = clips[:1]
    state, features, _ = prefill_further(model, prefill_clips(model, first), clips[1:])
    assert torch.equal(state.inventory, clips.inventory[:, -1])
    assert features[:, -1].allclose(prefill_clips(model, clips).features, atol=1e-4)


def test_followed_pasts_begin_with_the_counts_before_them(bench, followed):
    clips = cut_clips(bench.episodes, 20, 3)
    state, _, poses = prefill_without_poses(bench.weights.world_model, clips)
    assert torch.equal(state.inventory[2], clips.inventory[2, -1])  # nothing was dug in that part
    assert poses.shape == (6, 20, 6)


def test_clips_in_which_nothing_changed_are_scored_apart(bench):
    clips = cut_clips(bench.episodes, 10, 2)
    assert untouched(clips).tolist() == [False, True] * 2
    results = retrieval(bench)
    assert results["revisiting 10 frames, own memory: PSNR"].clips == 4
    assert results["revisiting 10 frames, own memory, untouched world: PSNR"].clips == 2


def test_the_worlds_own_tests_run_and_others_say_why_not(folder, weights, tmp_path, followed):
    out = tmp_path / "scores.json"
    sizes = dict(
        clips=1,
        context=20,
        ahead=5,
        retrieval=(10,),
        memories=("own",),
        reasoning=(20, 5),
        drift=30,
        cold_start=6,
        interruption=(1,),
    )
    run = Args(folder, world="minecraft", weights=weights, out=out, figures=tmp_path, **sizes)
    assert run.tests == (*SUITES["minecraft"]["tests"], *ALWAYS)
    evaluate(dataclasses.replace(run, tests=(*run.tests[1:], "reward")))  # reconstruction needs longer episodes
    report = json.loads(out.read_text())
    assert report["skipped"].keys() == {"identity", "reward", "reward_ahead", "dug_away"}
    assert tuple(report["scores"]) == tuple(name for name in run.tests[1:] if name not in report["skipped"])
    assert report["settings"]["reasoning"] == [20, 5]
    assert "real frames, step 30: tilt error (degrees)" in report["scores"]["drift"]
    assert (tmp_path / "reasoning.png").exists()
    assert (tmp_path / "map.png").exists()


def test_a_maze_has_nothing_to_craft(tiny_weights, tmp_path):
    maze = open_context(Evaluation(write_real_walks(tmp_path, 1), weights=tiny_weights))
    for test in (crafting, inventory, milestones):
        with pytest.raises(DoesNotApply, match="nothing is carried or crafted in this world"):
            test(maze)


def test_what_isnt_given_is_the_worlds_own(folder):
    run = Evaluation(folder, world="minecraft")
    assert (run.reasoning, run.retrieval) == ((100, 50), (100,))
    assert Evaluation(folder, world="minecraft", reasoning=(30, 7)).reasoning == (30, 7)
    assert "ends" in Evaluation(folder, world="elsewhere").tests
