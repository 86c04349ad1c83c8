"""Policies tried in dreams and in the real world, as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tyro", reason="needs lssvwm_gym[agents]")

from agents.players import opened_player
from agents.policy import Policy, PolicyConfig, save_policy
from agents.transfer import Args, Tried, correlation, main, mean_and_error, table
from lssvwm_gym.envs.dream import open_dream

ROOT = Path(__file__).parent.parent


def run_transfer(*arguments):
    command = [sys.executable, "-m", "agents.transfer", *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


@pytest.fixture
def policy_file(tmp_path):
    torch.manual_seed(1)
    save_policy(tmp_path / "policy.safetensors", Policy(PolicyConfig("memory-maze", "features", (256,), 6, 16)), {})
    return tmp_path / "policy.safetensors"


@pytest.mark.slow
@pytest.mark.simulator
def test_policies_are_tried_in_both_worlds(tiny_weights, policy_file, tmp_path):
    out, video = tmp_path / "transfer.json", tmp_path / "transfer.mp4"
    policies = ["random", "explorer", str(policy_file)]
    small = ["--episodes", 2, "--steps", 5, "--profile", "fast", "--device", "cpu"]
    done = run_transfer("--policies", *policies, *small, "--weights", tiny_weights, "--out", out, "--video", video)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 real episodes" in done.stdout
    result = json.loads(out.read_text())
    assert [entry["policy"] for entry in result["policies"]] == policies
    assert [len(entry["real"]["returns"]) for entry in result["policies"]] == [2, 2, 2]
    assert [len(entry["dream"]["returns"]) for entry in result["policies"]] == [2, 0, 2]
    assert result["policies"][1]["dream"] == {"mean": None, "standard_error": None, "returns": []}
    from lssvwm_gym.data.episode import read_video

    assert read_video(video).shape == (3 * 6, 256, 512, 3)


def test_a_dream_alone_can_be_tried(tiny_weights, policy_file, tmp_path):
    policies = ("random", str(policy_file))
    args = Args(policies, episodes=3, steps=4, processes=0, weights=tiny_weights, device="cpu")
    results = []
    for name in ("a", "b"):
        main(replace(args, out=tmp_path / name))
        results.append(json.loads((tmp_path / name).read_text())["policies"])
    assert results[0] == results[1]
    assert len(results[0][0]["dream"]["returns"]) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(policies=("clever",)), "a policy is random, wander, explorer, or a file"),
        (dict(policies=("gone.safetensors",)), r"gone\.safetensors: no such file"),
        (dict(policies=("random", "random")), "name each policy once"),
        (dict(episodes=0), "episodes must be at least 1"),
        (dict(steps=1001), "has at most 1000 steps"),
    ],
)
def test_wrong_arguments_end_it_before_it_begins(tiny_weights, wrong, said):
    with pytest.raises(SystemExit, match=said):
        main(replace(Args(weights=tiny_weights, device="cpu"), **wrong))


def test_a_policy_of_another_world_or_model_is_refused(dream, tmp_path):
    for config, said in (
        (PolicyConfig("minecraft", "features", (256,), 6, 16), "plays in minecraft"),
        (PolicyConfig("memory-maze", "features", (255,), 6, 16), r"this model's is \(256,\)"),
    ):
        path = tmp_path / "policy.safetensors"
        save_policy(path, Policy(config), {})
        with pytest.raises(ValueError, match=said):
            opened_player(str(path), dream, 1, 0)


def test_a_policy_of_sb3_sees_the_last_frames(dream, tiny_weights, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from stable_baselines3.common.vec_env import VecFrameStack

    from lssvwm_gym.envs.sb3 import make_sb3_vec_env

    envs = VecFrameStack(make_sb3_vec_env("memory-maze", 2, weights=tiny_weights, device="cpu"), 2)
    model = sb3.PPO("CnnPolicy", envs, n_steps=4, batch_size=4, device="cpu", seed=0)
    model.save(tmp_path / "policy.zip")
    player = opened_player(str(tmp_path / "policy.zip"), dream, 2, 0)
    asked = []
    player._model.predict = lambda seen, deterministic: (asked.append(seen), (np.array([1, 2]), None))[1]
    frames = torch.randint(256, (3, 2, 64, 64, 3), dtype=torch.uint8)
    for frame in frames:
        assert player.act(frame, None).tolist() == [1, 2]
    assert np.array_equal(asked[0][:, 3:], frames[0].permute(0, 3, 1, 2))
    assert not asked[0][:, :3].any()
    assert np.array_equal(asked[2][:, :3], frames[1].permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["random", "wander"])
def test_scripts_act_within_the_world_and_repeat(dream, name):
    first, second = (opened_player(name, dream, 4, 7) for _ in range(2))
    seen = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    for _ in range(30):
        actions = first.act(seen, None)
        assert actions.shape == (4,)
        assert 0 <= actions.min() <= actions.max() < 6
        assert np.array_equal(actions, second.act(seen, None))


def test_numbers_are_what_they_are_called():
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert np.isnan(mean_and_error([2.0])[1])
    tried = [Tried("a", [0.0, 1.0], [0.0]), Tried("b", [1.0, 2.0], [2.0]), Tried("c", [], [5.0])]
    assert correlation(tried) is None
    assert correlation([*tried, Tried("d", [3.0, 4.0], [4.0])]) == pytest.approx(np.corrcoef([0.5, 1.5, 3.5], [0, 2, 4])[0, 1])
    assert correlation([Tried(name, [1.0], [float(n)]) for n, name in enumerate("abc")]) is None
    assert "1.50 ± 0.50" in table(tried)
