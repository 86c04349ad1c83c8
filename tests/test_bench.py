"""The benchmark measures what it says and writes it down."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from lssvwm_gym.benchmark import step
from lssvwm_gym.benchmark.config import Benchmark
from lssvwm_gym.benchmark.machine import Times, in_processes, memory_bytes, seconds_of
from lssvwm_gym.benchmark.run import bench
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.cli import main
from lssvwm_gym.models.rollout import first_state
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.real_envs import SimulatorUnavailable


@pytest.fixture
def quick(tiny_weights):
    return Benchmark(weights=tiny_weights, steps=2, warm_up=0, many=0, profiles=("fast",), rounds=2)


def test_every_case_is_measured_and_written(tiny_weights, tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    main(
        [
            "benchmark",
            "--weights",
            str(tiny_weights),
            "--steps",
            "3",
            "--warm-up",
            "1",
            "--many",
            "4",
            "--ages",
            "2",
            "5",
            "--out",
            str(out),
        ]
    )
    report = json.loads(out.read_text())
    assert [(s["profile"], s["envs"], s["passes"]) for s in report["speed"]] == [
        ("fast", 1, 1),
        ("balanced", 1, 2),
        ("quality", 1, 4),
        ("fast", 4, 1),
    ]
    size = state_bytes(first_state(load_weights(tiny_weights).world_model, torch.tensor([0])))
    for speed in report["speed"]:
        assert 0 < speed["ms_p10"] <= speed["ms"] <= speed["ms_p90"]
        assert 0 < speed["steps_per_second"] <= 1000 * speed["envs"] / speed["ms_p10"]
        assert speed["state_bytes"] == size
    assert [(row["age"], row["state_bytes"]) for row in report["ages"]] == [(2, size), (5, size)]
    assert report["ages"][0]["growth"] == 0
    assert report["ages"][0]["memory_bytes"] is None or report["ages"][0]["memory_bytes"] > 2**24
    said = capsys.readouterr().out
    assert "quality" in said
    assert "threads" in said
    assert torch.__version__ in said


def test_parts_can_be_left_out(quick):
    report = bench(replace(quick, parts=("speed",)))
    assert len(report["speed"]) == 1
    assert "ages" not in report


def test_a_step_at_an_age_is_one_of_that_age(quick, monkeypatch):
    """What is timed goes on from a state that has dreamed so many frames, the same one every time."""
    begun, made = [], gymnasium.make

    def watched(*args, **kwargs):
        env = made(*args, **kwargs)
        step = env.step
        monkeypatch.setattr(env, "step", lambda action: (begun.append(int(env.unwrapped.clone_state().steps[0])), step(action))[1])
        return env

    monkeypatch.setattr(gymnasium, "make", watched)
    bench(replace(quick, parts=("ages",), ages=(3, 6)))
    assert begun == [*range(6), 3, 6, 3, 6]


def test_a_simulator_that_is_missing_is_left_out_with_the_reason(quick, monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise SimulatorUnavailable("pip install 'lssvwm_gym[memory-maze]'")

    monkeypatch.setattr(step.gymnasium, "make", missing)
    rows = bench(replace(quick, parts=("simulators",), processes=(1,)))["simulators"]
    missing = {"id": "MemoryMaze9x9-Real-v0", "processes": 1, "skipped": "pip install 'lssvwm_gym[memory-maze]'"}
    assert rows == [{**missing, "observation": observation} for observation in ("all", "features")]
    assert "left out" in capsys.readouterr().out


@pytest.mark.slow
def test_dreams_are_measured_in_processes_beside_it(quick, monkeypatch, capsys):
    monkeypatch.setattr(step, "_stepped", lambda real, row, run: {"steps_per_second": 0.5, "ms": 1.0, "ms_p10": 1.0, "ms_p90": 1.0})
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


def test_times_are_medians_with_percentiles():
    times = Times.of(np.arange(101) / 1000)
    assert (times.ms, times.ms_p10, times.ms_p90) == (50, 10, 90)
    assert str(Times(1.234, 1.0, 2.0)) == "1.23 (1.00, 2.00)"


def test_warm_up_is_not_counted():
    calls = []
    assert len(seconds_of(lambda: calls.append(1), 3, 2)) == 3
    assert len(calls) == 5


def test_calls_are_made_in_processes_and_failures_are_reported():
    assert in_processes([partial(divmod, 7, by) for by in (2, 3)], 1) == [(3, 1), (2, 1)]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_processes([partial(divmod, 7, 0)], 1)


def test_memory_of_the_process_is_what_it_holds_now():
    before = memory_bytes()
    if before is None:
        pytest.skip("this system doesn't tell")
    with mmap.mmap(-1, 2**26) as held:
        held[:: mmap.PAGESIZE] = bytes(2**26 // mmap.PAGESIZE)  # a byte a page: what is kept of freed memory must not grow with it
        assert memory_bytes() - before > 0.9 * 2**26
    assert memory_bytes() - before < 0.5 * 2**26


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"world": "mars"}, "mars"),
        ({"profiles": ("hasty",)}, "hasty"),
        ({"steps": 0}, "steps must"),
        ({"parts": ("everything",)}, "no part named 'everything'; there are speed"),
        ({"ages": (0,)}, "ages must be at least 1"),
        ({"ages": ()}, "no ages"),
        ({"device": "abacus"}, "device must be"),
    ],
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        bench(Benchmark(**wrong))
