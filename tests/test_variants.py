"""Baselines and ablations: as many weights as ours, one thing different, trained by the same trainer."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import RUN, signalling_episode

from experiments.ablations import VARIANTS, variant
from lssvwm_gym.evaluation.context import Evaluation
from lssvwm_gym.io.tensors import TensorFileError, save_tensors
from lssvwm_gym.models.config import preset
from lssvwm_gym.models.world_model import FrameInputs, WorldModel
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import Trainer
from lssvwm_gym.worlds import WORLDS

TINY_PRESET = replace(RUN, model=preset("tiny"))


@pytest.fixture(scope="module")
def episodes():
    return [signalling_episode(seed=seed) for seed in range(3)]


def weights_of(run):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in WorldModel(run.model).parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_as_many_weights_as_ours(name):
    assert weights_of(variant(name, TINY_PRESET)) == pytest.approx(weights_of(TINY_PRESET), rel=0.05)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name, episodes):
    run = variant(name, replace(RUN, teacher_forcing=0.5, self_rollout=0.0, odometry_updates=1, curriculum=(Stage(1.0, 8, 2),)))
    trainer = Trainer(run, episodes)
    for _ in range(2):
        losses = trainer.train_step()
    assert all(loss.isfinite().all() for loss in losses.values())


def test_each_variant_lacks_what_it_says():
    models = {name: variant(name, TINY_PRESET).model for name in VARIANTS}
    assert [name for name, model in models.items() if not model.has_spatial_memory] == [
        "no-spatial-memory",
        "sliding-window",
        "mamba",
        "mamba-attention",
        "full-causal",
    ]
    assert [name for name, model in models.items() if not model.d_state] == ["sliding-window", "full-causal"]
    assert [name for name, model in models.items() if not model.heads] == ["mamba"]
    assert set(models["mamba-attention"].blocks) == {(4, 4)}
    assert set(models["small-blocks"].blocks) == {(1, 1)}
    assert variant("no-long-context", TINY_PRESET).noising.noise.prefix == 0
    assert {stage.clips for stage in variant("no-carried-state", TINY_PRESET).curriculum} == {1}


def test_what_is_compared_fits_its_world():
    compare = runpy.run_path(str(Path(__file__).parent.parent / "experiments" / "compare_variants.py"))
    for name, plan in compare["PLANS"].items():
        kind = {"short": "short" in name, "long": "as long" in name}
        run, world = compare["Comparison"](Path("data"), world=plan.world, **kind), WORLDS[plan.world]
        assert run.plan is plan
        assert (plan.model.actions, plan.model.inventory_size) == (len(world.actions), len(world.inventory))
        assert plan.pictured[0] in Evaluation(run.data, world=plan.world, **plan.measured).tests
        assert WorldTraining(run.data, run.seeing, run.folder("ours"), model=plan.model, **plan.training).steps == plan.training["steps"]
    with pytest.raises(ValueError, match="nothing is compared in a world named mars; there are memory-maze, minecraft"):
        compare["Comparison"](Path("data"), world="mars")
    with pytest.raises(ValueError, match="short clips and long training are compared in memory-maze alone, not in minecraft"):
        compare["Comparison"](Path("data"), world="minecraft", short=True)
    with pytest.raises(ValueError, match="give one of --short and --long"):
        compare["Comparison"](Path("data"), short=True, long=True)


def test_what_sees_all_frames_sees_whole_short_walks():
    compare = runpy.run_path(str(Path(__file__).parent.parent / "experiments" / "compare_variants.py"))
    plan = compare["PLANS"][compare["SHORT"]]
    run = variant("full-causal", WorldTraining(Path("data"), Path("autoencoder"), Path("out"), model=plan.model, **plan.training))
    assert run.model.window >= max(stage.frames * stage.clips for stage in run.curriculum)
    assert run.model.window >= max(2 * max(plan.measured["retrieval"]), sum(plan.measured["reasoning"]))


def test_a_scan_reaches_further_than_a_window():
    """Of one layer that looks 4 frames back, with and without a scan."""
    shallow = replace(preset("tiny"), blocks=((4, 4),), memory_features=0, window=4)
    for d_state, expected in ((0, 5), (32, 50)):
        torch.manual_seed(0)
        model = WorldModel(replace(shallow, d_state=d_state))
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        latent = torch.randn(1, 50, 16, 32, requires_grad=True)
        zeros = torch.zeros(1, 50)
        pose = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(1, 50, 4)
        inputs = FrameInputs(zeros, zeros.long(), pose, torch.zeros(1, 50, 3), zeros, torch.zeros(1, 50, 0))
        model(latent, inputs, model.initial_state(1)).clean[:, -1].square().sum().backward()
        assert 50 - int(latent.grad.abs().sum((0, 2, 3)).nonzero()[0]) == expected


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match="no variant named 'lstm'; there are ours, no-spatial-memory"):
        variant("lstm", TINY_PRESET)


def test_a_run_begins_with_the_weights_of_another_where_they_fit(episodes, tmp_path):
    first = Trainer(RUN, episodes)
    first.train_step()
    first.save(tmp_path / "first.safetensors")
    wider = replace(RUN, model=replace(RUN.model, mlp=3))
    second = Trainer(wider, episodes)
    own = second.model.state_dict()["layers.0.mlp.0.weight"].clone()
    taken = second.begin_with(tmp_path / "first.safetensors")
    state, theirs = second.model.state_dict(), first.average.state_dict()
    fits = [name for name in state if name in theirs and state[name].shape == theirs[name].shape]
    assert taken == len(fits) < len(state)
    assert all(torch.equal(state[name], theirs[name]) for name in fits)
    assert torch.equal(state["layers.0.mlp.0.weight"], own)
    assert torch.equal(second.average.state_dict()["token_in.weight"], theirs["token_in.weight"])


def test_weights_of_which_none_fits_are_refused(episodes, tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"something": torch.zeros(3)}, {})
    with pytest.raises(TensorFileError, match="no tensor of it has the name and shape"):
        Trainer(RUN, episodes).begin_with(tmp_path / "other.safetensors")
