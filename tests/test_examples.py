"""The examples, run as a user would, with tiny random weights."""

from __future__ import annotations

import functools
import re
import runpy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from PIL import Image
from tiny_minecraft import write_real_plays, write_tiny_minecraft

from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.models.geometry import integrate_motion, relative_to
from lssvwm_gym.worlds import WORLDS

EXAMPLES = Path(__file__).parent.parent / "examples"
WORLD = WORLDS["memory-maze"]


def run(monkeypatch, name, *arguments):
    """Run an example like `python examples/NAME.py ARGUMENTS` and return its names."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def pictures(path):
    """All frames of a GIF, (T, height, width, 3)."""
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


@pytest.fixture
def real_episode(tmp_path):
    """A stand-in for the recorded maze: grey frames that tell their number, on a straight way."""
    frames = np.zeros((20, 64, 64, 3), np.uint8) + np.arange(0, 800, 40).astype(np.uint8)[:, None, None, None]
    extras = {
        "agent_pos": np.linspace([1, 1], [5, 1], 20, dtype=np.float32),
        "agent_dir": np.tile(np.array([1, 0], np.float32), (20, 1)),
        "maze_layout": np.ones((9, 9), np.uint8),
    }
    write_episode(tmp_path / "real", Episode(frames, np.ones(20, np.uint8), np.zeros(20, np.float32), extras), fps=4, crf=0)
    return tmp_path / "real.npz"


def test_hello(tiny_weights, monkeypatch, capsys):
    monkeypatch.setitem(gymnasium.registry[WORLD.id].kwargs, "weights", tiny_weights)
    run(monkeypatch, "hello")
    assert "(64, 64, 3)" in capsys.readouterr().out


def test_memory_probe_tells_own_memory_from_none(tiny_weights, real_episode, tmp_path, monkeypatch, capsys):
    sheet, sizes = tmp_path / "new" / "memory.png", ("--frames", 12, "--shown", 4)
    run(monkeypatch, "memory_probe", "--weights", tiny_weights, "--episode", real_episode, "--out", sheet, *sizes)
    assert re.findall(r"(\w+) memory: [\d.]+ dB", capsys.readouterr().out) == ["own", "emptied"]
    with Image.open(sheet) as image:
        rows = np.asarray(image).reshape(3, 128, 4, 128, 3)
    assert rows[0, 64, :, 64, 0].astype(int) == pytest.approx(40 * np.array([10, 7, 3, 0]) % 256, abs=15)  # the last seen first
    assert (rows[1] != rows[2]).any()


def test_memory_probe_finds_that_the_shipped_maze_remembers(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "memory_probe", "--frames", 40, "--out", tmp_path / "memory.png")
    own, emptied = map(float, re.findall(r"memory: ([\d.]+) dB", capsys.readouterr().out))
    assert own > 28
    assert own > emptied + 8


def test_memory_probe_needs_poses(tiny_weights, real_episode, tmp_path, monkeypatch):
    arrays = dict(np.load(real_episode))
    np.savez(real_episode, action=arrays["action"], reward=arrays["reward"])
    with pytest.raises(SystemExit, match="no poses"):
        run(monkeypatch, "memory_probe", "--weights", tiny_weights, "--episode", real_episode, "--out", tmp_path / "memory.png")


def test_ppo_learns_and_keeps_its_policy(tiny_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gymnasium.registry[WORLD.id].kwargs, "weights", tiny_weights)
    monkeypatch.setattr(stable_baselines3, "PPO", functools.partial(stable_baselines3.PPO, n_epochs=1, batch_size=256))
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "ppo", 1)
    assert "after 512 steps in dreams" in capsys.readouterr().out  # one rollout of 8 dreams
    assert (tmp_path / "demo" / "policy.zip").is_file()


def test_demo_writes_the_dream_beside_the_real_maze(tiny_weights, real_episode, tmp_path, monkeypatch, capsys):
    sizes = "--steps", 3, "--many", 2, "--context-frames", 3
    run(monkeypatch, "demo", "--weights", tiny_weights, "--episode", real_episode, "--out", tmp_path / "demo", *sizes)
    assert "2 dreams at once" in capsys.readouterr().out
    assert len(pictures(tmp_path / "demo" / "dream.gif")) == 4
    shown = pictures(tmp_path / "demo" / "dream_vs_real.gif")
    assert shown[:, 150, 100, 0].astype(int) == pytest.approx([80, 120, 160, 200], abs=15)  # from the last remembered frame on


def test_demo_stops_where_the_recording_does_and_does_without_poses(tiny_weights, real_episode, tmp_path, monkeypatch):
    arrays = dict(np.load(real_episode))
    np.savez(real_episode, action=arrays["action"], reward=arrays["reward"])
    run(monkeypatch, "demo", "--weights", tiny_weights, "--episode", real_episode, "--out", tmp_path, "--steps", 8, "--context-frames", 15)
    shown = pictures(tmp_path / "dream_vs_real.gif")
    assert (shown.shape[0], shown.shape[2]) == (6, 2 * (256 + 8))


def test_demo_tells_what_is_carried_in_a_block_world(tmp_path, monkeypatch):
    weights, episode = write_tiny_minecraft(tmp_path / "weights"), write_real_plays(tmp_path / "real", 1, 20) / "000000.npz"
    sizes = "--steps", 4, "--many", 2, "--context-frames", 8, "--scale", 3
    run(monkeypatch, "demo", "--env", "LSSVWM-Minecraft-v0", "--weights", weights, "--episode", episode, "--out", tmp_path, *sizes)
    shown = pictures(tmp_path / "dream_vs_real.gif")
    assert shown.shape[:3] == (5, 26 + 192 + 4 * 14, 2 * (192 + 8) + 192)
    carried = shown[:, -4 * 14 :, :192].astype(int)
    assert np.abs(carried[1] - carried[0]).max() > 50  # one log less, four planks more
    assert np.abs(carried[2] - carried[1]).max() < 50


@pytest.mark.parametrize(("size", "motions"), [(4, 3), (6, 5)])
def test_demo_puts_estimated_poses_into_the_world(size, motions):
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    origin = torch.tensor([2.0, 3.0, 0.6, 0.8, 1.0, 0.1])[:size]
    pose = integrate_motion(origin.expand(4, size), torch.randn(4, motions))
    assert demo["in_the_world"](relative_to(pose, origin).numpy(), origin.numpy()) == pytest.approx(pose[:, :2].numpy(), abs=1e-5)


def test_branches_part_on_one_sheet(tiny_weights, tmp_path, monkeypatch, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    run(monkeypatch, "branch", "--weights", tiny_weights, "--out", sheet, "--before", 1, "--ahead", 4)
    assert "right then forward" in capsys.readouterr().out
    with Image.open(sheet) as image:
        rows = np.asarray(image).reshape(8, 128, 3, 128, 3)
    assert (rows[:, :, 0] == rows[:1, :, 0]).all()  # all begin with the same moment
    assert all((rows[i, :, -1] != rows[j, :, -1]).any() for i in range(8) for j in range(i))


def test_own_world_goes_from_an_environment_to_a_dream(tmp_path, monkeypatch, capsys):
    """CartPole: collect, train, package, evaluate, make, by one command."""
    run(monkeypatch, "own_world", "--out", tmp_path, "--episodes", 3, "--threads", 1)
    assert "a dream of cartpole: (64, 64, 3), Discrete(2), 0, 1" in capsys.readouterr().out
    assert (tmp_path / "weights" / "world.json").exists()
