"""The benchmark measures what it says and writes it down."""

from __future__ import annotations

import json

import pytest
import torch

from lssvwm_gym.cli import main
from lssvwm_gym.evaluation.bench import Benchmark, bench
from lssvwm_gym.models.dreaming import first_state
from lssvwm_gym.models.state import state_bytes
from lssvwm_gym.models.weights import load_weights


def test_every_case_is_measured_and_written(tiny_weights, tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    main(["bench", "--weights", str(tiny_weights), "--steps", "3", "--warm-up", "1", "--many", "4", "--ages", "2", "5", "--out", str(out)])
    report = json.loads(out.read_text())
    assert [(s["profile"], s["envs"], s["passes"]) for s in report["speeds"]] == [
        ("fast", 1, 1),
        ("balanced", 1, 2),
        ("quality", 1, 4),
        ("fast", 4, 1),
    ]
    size = state_bytes(first_state(load_weights(tiny_weights).world_model, torch.tensor([0])))
    for speed in report["speeds"]:
        assert 0 < speed["ms_p10"] <= speed["ms"] <= speed["ms_p90"]
        assert 0 < speed["steps_per_second"] <= 1000 * speed["envs"] / speed["ms_p10"]
        assert speed["state_bytes"] == size
    assert report["ms_by_age"].keys() == {"2", "5"}
    assert "quality" in capsys.readouterr().out


def test_parts_can_be_left_out(tiny_weights):
    report = bench(Benchmark(weights=tiny_weights, profiles=("fast",), many=0, steps=2, warm_up=0, ages=()))
    assert len(report["speeds"]) == 1
    assert report["ms_by_age"] == {}


@pytest.mark.parametrize(
    ("wrong", "said"), [({"world": "mars"}, "mars"), ({"profiles": ("hasty",)}, "hasty"), ({"steps": 0}, "steps must")]
)
def test_nonsense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        bench(Benchmark(**wrong))
