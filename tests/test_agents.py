"""The agents on Stable-Baselines3, run as a user would, and the files they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import OPENING_FRAMES, WALK_FRAMES

pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
pytest.importorskip("sb3_contrib", reason="needs lssvwm_gym[agents]")

from agents.ppo_sb3 import Args, check, open_envs, open_model, world_of
from agents.sb3_policies import SB3PolicyConfig, load_sb3_policy, policy_arguments, save_sb3_policy
from lssvwm_gym.envs import DreamEnv, open_dream
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors

ROOT = Path(__file__).parent.parent
DREAM, REAL = "LSSVWM-MemoryMaze-v0", "MemoryMaze9x9-Real-v0"
ALGORITHMS = ("ppo", "recurrent_ppo")
SMALL = {"--num-envs": 2, "--rollout-steps": 8, "--minibatch": 8, "--epochs": 1, "--episode-steps": 6}
SMALL |= {"--hidden": 16, "--lstm": 8, "--profile": "fast"}


def run(algorithm, *arguments):
    small = [word for option in SMALL.items() for word in option]
    command = [sys.executable, ROOT / "agents" / "ppo_sb3.py", "--algorithm", algorithm, *small, *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_in_a_dream_and_goes_on(algorithm, tiny_weights, tmp_path):
    here = "--weights", tiny_weights, "--out", tmp_path
    first = run(algorithm, *here, "--total-timesteps", 32, "--save-every", 16)
    assert first.returncode == 0, first.stderr
    assert "32 of 32 steps" in first.stdout
    assert f"check_transfer --policies random {tmp_path / 'policy.safetensors'}" in first.stdout
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    before, header = load_tensors(tmp_path / "checkpoint.safetensors")
    assert header["config"]["observation"] == "features"
    assert before["policy.features_extractor.norm.seen"] == 2 + 16  # the first observations and all rollouts but the last

    again = run(algorithm, *here, "--total-timesteps", 64)
    assert again.returncode != 0
    assert "--resume" in again.stderr

    second = run(algorithm, *here, "--total-timesteps", 64, "--resume")
    assert second.returncode == 0, second.stderr
    assert "checkpoint.safetensors: 32 steps so far" in second.stdout
    assert "48 of 64 steps" in second.stdout
    after, header = load_tensors(tmp_path / "checkpoint.safetensors")
    assert header["about"]["steps"] == 64
    assert after["optimizer.0.step"] == 2 * before["optimizer.0.step"]
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("policy.action_net"))

    other = run(algorithm, *here, "--total-timesteps", 96, "--resume", "--observation", "latent")
    assert other.returncode != 0
    assert "of another policy or world model" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pictures_are_learned_from_too(algorithm, tiny_weights, tmp_path):
    done = run(algorithm, "--weights", tiny_weights, "--out", tmp_path, "--total-timesteps", 16, "--observation", "image")
    assert done.returncode == 0, done.stderr
    policy, config = load_sb3_policy(tmp_path / "policy.safetensors", open_dream("memory-maze", "fast", "cpu", tiny_weights))
    assert config.frame_stack == (4 if algorithm == "ppo" else 1)
    assert policy.observation_space.shape == (3 * config.frame_stack, 64, 64)


@pytest.mark.slow
@pytest.mark.simulator
def test_learns_in_the_real_maze_seen_through_the_model(tiny_weights, tmp_path):
    done = run("ppo", "--env", REAL, "--weights", tiny_weights, "--out", tmp_path, "--total-timesteps", 16)
    assert done.returncode == 0, done.stderr
    policy, _ = load_sb3_policy(tmp_path / "policy.safetensors", open_dream("memory-maze", "fast", "cpu", tiny_weights))
    assert policy.observation_space.shape == (256,)


@pytest.fixture(scope="module")
def saved(tiny_weights, tmp_path_factory):
    """A policy and the dream it is of, made without learning anything."""
    folder, dream = tmp_path_factory.mktemp("run"), open_dream("memory-maze", "fast", "cpu", tiny_weights)
    args = Args(weights=tiny_weights, out=folder, profile="fast", device="cpu", num_envs=2, rollout_steps=4, minibatch=4)
    config = SB3PolicyConfig("memory-maze", "recurrent_ppo", "features", hidden=16, lstm=8)
    model = open_model(args, config, dream, open_envs(args, dream, args.env, 2, 1))
    assert policy_arguments(config)["lstm_hidden_size"] == 8
    save_sb3_policy(folder / "policy.safetensors", model.policy, config, {"steps": 0})
    return folder / "policy.safetensors", dream, model


@pytest.mark.parametrize(("context", "ages"), [(None, {WALK_FRAMES}), (7, {7}), (0, {OPENING_FRAMES})])
def test_every_dream_begins_after_a_walk(tiny_weights, context, ages):
    dream = open_dream("memory-maze", "fast", "cpu", tiny_weights)
    args = Args(weights=tiny_weights, profile="fast", device="cpu", episode_steps=2, context_frames=context)
    envs = open_envs(args, dream, args.env, 2, 1)
    envs.reset()
    assert {int(info["age"]) for info in envs.unwrapped.reset_infos} == ages
    began = set()
    for step in range(1, 5):
        *_, done, infos = envs.step(np.zeros(2, np.int64))
        assert list(done) == [step % 2 == 0] * 2
        began |= {int(info["age"]) for info in infos} if step % 2 else set()
    assert began == {age + 1 for age in ages}  # the second and third episode, too
    envs.close()


def test_a_policy_from_a_file_acts_as_it_did(saved, tiny_weights):
    path, dream, model = saved
    policy, config = load_sb3_policy(path, dream)
    env, memory, remembered = DreamEnv("memory-maze", weights=tiny_weights, profile="fast", observation=config.observation), None, None
    seen, _ = env.reset(seed=0)
    for step in range(4):
        first = [step == 0]
        mine, memory = policy.predict(seen[None], memory, first, deterministic=True)
        theirs, remembered = model.predict(seen[None], remembered, first, deterministic=True)
        assert mine == theirs
        assert all((a == b).all() for a, b in zip(memory, remembered, strict=True))
        seen, *_ = env.step(int(mine[0]))


def test_files_of_others_are_refused(saved, tmp_path):
    path, dream, model = saved
    model.save(tmp_path / "policy.zip")
    with pytest.raises(TensorFileError, match="not a safetensors file"):
        load_sb3_policy(tmp_path / "policy.zip", dream)
    tensors, header = load_tensors(path)
    for name, change, message in (
        ("kind", "something else", "not a policy of agents/ppo_sb3.py"),
        ("config", {**header["config"], "hidden": 10**9}, "hidden must be a whole number"),
        ("config", {**header["config"], "hidden": 17}, "wrong shape"),
        ("config", {**header["config"], "algorithm": "os.system"}, "algorithm must be one of ppo"),
    ):
        save_tensors(tmp_path / "wrong.safetensors", tensors, {**header, name: change})
        with pytest.raises(TensorFileError, match=message):
            load_sb3_policy(tmp_path / "wrong.safetensors", dream)


def test_what_is_wrong_with_a_command_line_is_said_at_once():
    for wrong, message in (
        (dict(observation="smell"), "observation must be one of all, image, features"),
        (dict(num_envs=0), "num_envs must be at least 1"),
        (dict(algorithm="recurrent_ppo", lstm=0), "lstm must be at least 1"),
        (dict(env="MemoryMaze9x9-Real-v7"), "MemoryMaze9x9-Real"),
    ):
        with pytest.raises(ValueError, match=message):
            check(Args(**wrong))
    assert world_of(Args(env=REAL)).name == "memory-maze"
    assert world_of(Args(env="MemoryMaze11x11-Real-v0", world="memory-maze")).name == "memory-maze"
    with pytest.raises(ValueError, match="name the world that MemoryMaze11x11-Real-v0 is"):
        world_of(Args(env="MemoryMaze11x11-Real-v0"))
