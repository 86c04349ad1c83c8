"""The agents' scripts, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lssvwm_gym.data.episode import read_video

ROOT = Path(__file__).parent.parent
SMALL = {"--num-envs": 2, "--rollout-steps": 8, "--minibatch": 8, "--epochs": 1, "--episode-steps": 6, "--evaluation-episodes": 3}


def run_ppo(*arguments):
    small = [word for option in SMALL.items() for word in option]
    command = [sys.executable, ROOT / "agents" / "ppo.py", *small, *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_ppo_learns_in_a_dream_is_tried_and_goes_on(tiny_weights, tmp_path):
    here = "--weights", tiny_weights, "--out", tmp_path
    first = run_ppo(*here, "--total-timesteps", 32, "--save-every", 16)
    assert first.returncode == 0, first.stderr
    assert "32 of 32 steps" in first.stdout
    tried = json.loads((tmp_path / "evaluation.json").read_text())
    assert (tried["steps"], tried["lengths"]) == (32, [6, 6, 6])
    assert read_video(tmp_path / "policy.mp4").shape == (6, 256, 256, 3)
    assert list(tmp_path.rglob("events.out.tfevents.*"))

    again = run_ppo(*here, "--total-timesteps", 64)
    assert again.returncode != 0
    assert "--resume" in again.stderr

    second = run_ppo(*here, "--total-timesteps", 64, "--resume", "--evaluation-episodes", 0)
    assert second.returncode == 0, second.stderr
    assert "policy.zip: 32 steps so far" in second.stdout
    assert "64 of 64 steps" in second.stdout


@pytest.mark.slow
@pytest.mark.simulator
def test_ppo_learns_in_the_real_maze(tmp_path):
    done = run_ppo("--env", "MemoryMaze9x9-Real-v0", "--out", tmp_path, "--total-timesteps", 16, "--evaluation-episodes", 0)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "policy.zip").exists()
