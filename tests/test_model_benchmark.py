"""The benchmark of the model's parts, in `experiments/`, measures what it says."""

from __future__ import annotations

import builtins
from dataclasses import replace
from functools import partial

import pytest
import torch

from experiments.benchmark import cache, kernels, simulators, training
from experiments.benchmark.__main__ import bench
from experiments.benchmark.config import Benchmark
from experiments.benchmark.models import random_episode
from experiments.benchmark.processes import in_processes
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.models.rollout import commit, first_state, imagine
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.real_envs import SimulatorUnavailable


@pytest.fixture
def quick(tiny_weights):
    return Benchmark(weights=tiny_weights, repeats=1, steps=2, warm_up=0, many=0)


def test_a_cache_that_grows_beside_a_state_that_does_not(quick, tmp_path):
    rows = bench(replace(quick, parts=("cache",), cache_ages=(2, 8), plots=tmp_path))["cache"]
    assert [(row["model"], row["age"]) for row in rows] == [("ours", 2), ("ours", 8), ("full-causal", 2), ("full-causal", 8)]
    ours, causal = ([row["state_bytes"] for row in rows if row["model"] == model] for model in ("ours", "full-causal"))
    assert ours[0] == ours[1]
    frame = 2 * 16 * 32 * 4 * 2  # keys and values of 16 tokens, 32 wide, in 4 bytes, in 2 layers
    assert causal[1] - causal[0] == 6 * frame
    assert all(0 < row["ms_p10"] <= row["ms"] <= row["ms_p90"] for row in rows)
    assert (tmp_path / "bench_cache.png").read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
def test_a_cache_of_some_frames_is_attention_over_all_of_them(quick):
    """The same weights with room for many more frames, after as many steps, dream the same next frame."""
    config = training.training_of(quick, "full-causal", 2, 2).model
    roomy, exact = (WorldModel(replace(config, window=window)).eval().requires_grad_(False) for window in (14, 9))
    for parameter in roomy.parameters():  # zero-initialised parts must take part
        parameter += torch.randn_like(parameter) * 0.05
    exact.load_state_dict(roomy.state_dict())
    state, action = first_state(roomy, torch.tensor([0])), torch.tensor([1])
    for _ in range(9):
        state = commit(roomy, state, action, imagine(roomy, state, action, 1))
    layers = tuple(layer._replace(keys=layer.keys[:, -9:], values=layer.values[:, -9:]) for layer in state.world.layers)
    random = cache.filled_cache(exact, 9).world.layers
    assert [layer.keys.shape for layer in layers] == [layer.keys.shape for layer in random]
    expected = imagine(roomy, state, action, 1).latent
    seen, other = (imagine(exact, state._replace(world=state.world._replace(layers=held)), action, 1).latent for held in (layers, random))
    assert (seen - expected).abs().max() < 0.05
    assert (other - expected).abs().max() > 0.2


def test_training_is_measured_by_length_of_clips(quick, tmp_path, capsys):
    run = replace(quick, parts=("training",), clips=(4, 8), frames_a_step=8, plots=tmp_path)
    rows = bench(run)["training"]
    assert [(row["variant"], row["clip"], row["clips"], row["frames"]) for row in rows] == [
        ("ours", 4, 2, 8),
        ("ours", 8, 1, 8),
        ("full-causal", 4, 2, 8),
        ("full-causal", 8, 1, 8),
    ]
    for row in rows:
        assert row["frames_per_second"] == pytest.approx(1000 * row["frames"] / row["ms"])
        assert row["kept_bytes"] > 10_000
    assert rows[1]["growth"] == pytest.approx(rows[1]["ms"] / rows[0]["ms"] - 1)
    assert "full-causal" in capsys.readouterr().out
    assert (tmp_path / "bench_training.png").exists()


def test_a_clip_that_needs_too_much_memory_is_left_out_with_the_reason(quick, monkeypatch):
    monkeypatch.setattr(training, "free_bytes", lambda: 1000)
    row = training._length(quick, "ours", 100, 10**9)
    assert "about 2 GB" in row["skipped"]
    assert "ms" not in row


def test_every_length_is_trained_with_the_objective_that_was_asked_for(quick):
    for objective, shares in (("diffusion_forcing", (0, 0)), ("teacher_forcing", (1, 0)), ("self_rollout", (0, 1))):
        made = training.training_of(replace(quick, objective=objective), "ours", 4, 8)
        assert (made.teacher_forcing, made.self_rollout) == shares


def test_the_share_of_the_peak_is_accounted_for(quick):
    report = bench(replace(quick, parts=("peak",), peak_frames=80, peak_size=64, precision="float32"))["peak"]
    assert report["dtype"] == "float32"
    assert report["share"] == pytest.approx(report["step_flops"] / (report["ms"] / 1000) / report["peak_flops"])
    assert sum(part["share"] for part in report["account"].values()) == pytest.approx(1, abs=0.05)
    assert {training.PRODUCTS, training.ELEMENTWISE, training.OUTSIDE, "norms", "optimiser"} <= report["account"].keys()


def test_arithmetic_is_counted():
    a, b = torch.randn(7, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    assert training.counted(lambda: (a @ b).sum().backward()) == 3 * 2 * 7 * 5 * 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", training.PRODUCTS),
        ("aten::mul", training.ELEMENTWISE),
        ("aten::copy_", "copies and layout"),
        ("aten::normal_", training.ELEMENTWISE),
        ("aten::linalg_cholesky_ex", "factorisations"),
        ("aten::linalg_vector_norm", "norms"),
        ("MulBackward0", training.OUTSIDE),
        ("autograd::engine::evaluate_function: MulBackward0", training.OUTSIDE),
    ],
)
def test_operators_have_classes(name, kind):
    assert training.class_of(name) == kind


def test_time_that_no_operator_took_is_outside_of_them():
    account = training.shares([("aten::mm", 2.0, 4), ("aten::mul", 1.0, 2)], wall=10.0, steps=2)
    assert account[training.OUTSIDE]["share"] == pytest.approx(0.7)
    assert account[training.PRODUCTS] == {"share": 0.2, "calls": 2}
    assert list(account) == [training.OUTSIDE, training.PRODUCTS, training.ELEMENTWISE]


def test_scans_are_compared_with_the_same_outcome(quick, tmp_path, capsys):
    pytest.importorskip("transformers", reason="pip install 'lssvwm_gym[bench]'")
    run = replace(quick, parts=("scan",), scan_rows=1, scan_frames=3, plots=tmp_path, precision="bfloat16")
    rows = bench(run)["scan"]
    scans = {f"scan, blocks of {size}{dtype}" for size in ("4x4", "1x1") for dtype in ("", ", bfloat16")}
    assert {row["what"] for row in rows} == {*scans, "layer, one block"}
    for row in rows:
        assert row["off"] < (0.15 if "bfloat16" in row["what"] else 1e-4)
        assert 0 < row["forward"]["ms"]
        assert 0 < row["both"]["ms"]
    assert {row["by"] for row in rows} == {"ours", "transformers"}
    assert "times ours forward" in capsys.readouterr().out
    assert (tmp_path / "bench_scan.png").exists()


def test_another_outcome_would_show(quick):
    given = kernels.scan_inputs(1, 6, 2, 4, 3)
    calls = {("ours", 2): (kernels.ours_scan, (*given, 2)), ("theirs", 2): (lambda *g: 1.01 * kernels.ours_scan(*g), (*given, 2))}
    ours, theirs = kernels._compared("scan", (1,), calls, given, quick, "cpu")
    assert (ours["off"], theirs["off"]) == (0, pytest.approx(0.01, rel=0.1))


def test_without_transformers_scans_are_left_out_with_the_reason(quick, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (row,) = kernels.measure_scans(quick)
    assert "lssvwm_gym[bench]" in row["skipped"]


def test_random_episodes_fit_any_world(quick):
    config = load_weights(quick.weights).world_model.config
    episode = random_episode(config, 5)
    assert episode.latent.shape == (5, config.tokens, config.latent_channels)
    assert episode.pose.shape == (5, config.pose_size)
    assert torch.allclose(episode.pose[:, 2:4].norm(dim=1), torch.ones(5))
    space = random_episode(replace(config, motion_scale=(0.1,) * 5), 5)
    assert space.pose.shape == (5, 6)


def test_a_simulator_that_is_missing_is_left_out_with_the_reason(quick, monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise SimulatorUnavailable("pip install 'lssvwm_gym[memory-maze]'")

    monkeypatch.setattr(simulators.gymnasium, "make", missing)
    rows = bench(replace(quick, parts=("simulators",), processes=(1,)))["simulators"]
    missing = {"id": "MemoryMaze9x9-Real-v0", "processes": 1, "skipped": "pip install 'lssvwm_gym[memory-maze]'"}
    assert rows == [{**missing, "observation": observation} for observation in ("all", "features")]
    assert "left out" in capsys.readouterr().out


@pytest.mark.slow
def test_dreams_are_measured_in_processes_beside_it(quick, monkeypatch, capsys):
    monkeypatch.setattr(simulators, "_stepped", lambda real, row, run: {"steps_per_second": 0.5, "ms": 1.0, "ms_p10": 1.0, "ms_p90": 1.0})
    rows = bench(replace(quick, parts=("simulators",), processes=(2,), many=3, steps=4))["simulators"]
    assert [(row["id"], row["observation"], row["processes"], row.get("envs")) for row in rows] == [
        ("MemoryMaze9x9-Real-v0", "all", 2, None),
        ("LSSVWM-MemoryMaze-v0", "all", 2, 3),
        ("MemoryMaze9x9-Real-v0", "features", 2, None),
        ("LSSVWM-MemoryMaze-v0", "features", 2, 3),
    ]
    said = capsys.readouterr().out
    for dreamed in rows[1::2]:
        assert 0 < dreamed["ms_p10"] <= dreamed["ms"]
        assert 0 < dreamed["steps_per_second"] <= 2 * 3 * 1000 / dreamed["ms_p10"]
        assert f"{dreamed['steps_per_second'] / 0.5:.1f}" in said  # times the real one's


@pytest.mark.simulator
@pytest.mark.slow
def test_the_real_maze_is_measured_in_processes(quick):
    rows = bench(replace(quick, parts=("simulators",), processes=(2,)))["simulators"]
    assert [row["observation"] for row in rows] == ["all", "features"]
    for row in rows:
        assert row["processes"] == 2
        assert 0 < row["steps_per_second"] <= 2000 / row["ms_p10"]


def test_calls_are_made_in_processes_and_failures_are_reported():
    assert in_processes([partial(divmod, 7, by) for by in (2, 3)], 1) == [(3, 1), (2, 1)]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_processes([partial(divmod, 7, 0)], 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parts": ("everything",)}, "no part named 'everything'; there are speed"),
        ({"variants": ("others",)}, "others"),
        ({"objective": "crawling"}, "no objective named"),
        ({"memory": 2.0}, "memory is a share"),
        ({"parts": ("training",), "clips": (2000,)}, "raise frames_a_step"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        bench(Benchmark(**wrong))
