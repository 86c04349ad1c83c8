"""The benchmark measures what it says and writes it down."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from experiments.benchmark.__main__ import bench
from experiments.benchmark.config import Benchmark
from experiments.benchmark.machine import Times, memory_bytes, seconds_of, state_bytes
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.models.rollout import first_state


@pytest.fixture
def quick(tiny_weights):
    return Benchmark(weights=tiny_weights, steps=2, warm_up=0, many=0, profiles=("fast",), rounds=2)


def test_every_case_is_measured_and_written(tiny_weights, tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    bench(Benchmark(weights=tiny_weights, steps=3, warm_up=1, many=4, ages=(2, 5), out=out))
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


def test_times_are_medians_with_percentiles():
    times = Times.of(np.arange(101) / 1000)
    assert (times.ms, times.ms_p10, times.ms_p90) == (50, 10, 90)
    assert str(Times(1.234, 1.0, 2.0)) == "1.23 (1.00, 2.00)"


def test_warm_up_is_not_counted():
    calls = []
    assert len(seconds_of(lambda: calls.append(1), 3, 2)) == 3
    assert len(calls) == 5


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
