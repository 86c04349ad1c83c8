"""What the process around an environment does: threads and forks, global settings of torch, folders that change, limits, specs as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights, save_weights
from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.io.video import write_movie
from lssvwm_gym.registry import DREAM_ID
from lssvwm_gym.worlds import WORLDS, write_world

WORLD = WORLDS["memory-maze"]

ASYNC = """
import gymnasium, lssvwm_gym
envs = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 2, vectorization_mode="async", profile="fast", device="cpu")
envs.reset(seed=1)
print(envs.step([1, 2])[0].shape)
envs.close()
"""
FORKED = """
import gymnasium, lssvwm_gym
from stable_baselines3.common.vec_env import SubprocVecEnv
make = lambda: gymnasium.make("LSSVWM-MemoryMaze-v0", profile="fast", device="cpu")
env = make()
env.reset(seed=1), env.step(1)
envs = SubprocVecEnv([make, make], start_method="fork")
print(envs.reset().shape, envs.step([1, 2])[0].shape)
envs.close()
"""
GLOBALS = """
import sys
import gymnasium, numpy as np, torch
import lssvwm_gym
dtype, device = sys.argv[2:]
torch.set_default_dtype(getattr(torch, dtype))
torch.set_default_device(device)
envs = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 2, weights=sys.argv[1], device="cpu", dtype="float32", observation="latent+features")
for options in (None, {"context_frames": 9}, {"start": "cold"}):
    envs.reset(seed=1, options=options)
    seen = envs.step(np.array([1, 2]))[0]
    print(seen.dtype, seen.tobytes().hex()[:4000])
env = gymnasium.make("LSSVWM-MemoryMaze-v0", weights=sys.argv[1], device="cpu", render_mode="rgb_array", dtype="float32")
env.reset(seed=1)
print(env.step(1)[0].sum(), env.unwrapped.branch(2).step(np.array([1, 2]))[0].sum())
assert (torch.get_default_dtype(), torch.get_default_device().type) == (getattr(torch, dtype), device)
"""
DRAWS = """
import sys
import gymnasium, torch
import lssvwm_gym
torch.manual_seed(0)
state = torch.get_rng_state()
env = gymnasium.make("LSSVWM-MemoryMaze-v0", weights=sys.argv[1], device="cpu")
env.reset(seed=1), env.step(1)
assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
"""


def run(program, *arguments):
    """What a program prints, with as many threads as torch takes by itself."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    threads = f"import torch; torch.set_num_threads(4); torch.ones(512, 512) @ torch.ones(512, 512)\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", threads, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_workers_that_are_forked_after_torch_has_computed_go_on():
    assert run(ASYNC) == "(2, 64, 64, 3)\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_workers_of_sb3_that_are_forked_after_a_step_go_on():
    pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    assert run(FORKED) == "(2, 64, 64, 3) (2, 64, 64, 3)\n"


def test_the_first_dream_of_a_process_draws_from_no_global_generator(tiny_weights):
    run(DRAWS, tiny_weights)


@pytest.mark.parametrize("settings", [("float64", "cpu"), ("float32", "meta")])
def test_a_dream_neither_touches_nor_needs_global_settings_of_torch(tiny_weights, settings):
    plain, other = (run(GLOBALS, tiny_weights, *which) for which in (("float32", "cpu"), settings))
    assert plain.count("float32") == 3
    assert plain == other


@pytest.fixture
def two_models(tmp_path):
    """Folders of different weights."""
    return write_tiny_weights(tmp_path / "one", seed=1), write_tiny_weights(tmp_path / "two", seed=2)


def test_new_weights_in_a_folder_are_read_anew(two_models):
    first, second = two_models
    old, prepacked = load_weights(first), DreamEnv("memory-maze", weights=first, device="cpu").dream
    assert load_weights(first) is old
    for path in second.iterdir():
        shutil.copy(path, first)
    assert torch.equal(load_weights(first).world_model.token_in.weight, load_weights(second).world_model.token_in.weight)
    assert DreamEnv("memory-maze", weights=first, device="cpu").dream.fingerprint != prepacked.fingerprint


def test_a_relative_path_is_of_the_current_folder(two_models, monkeypatch):
    dreams = []
    for folder in two_models:
        (folder / "here").mkdir()
        for path in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
            path.rename(folder / "here" / path.name)
        monkeypatch.chdir(folder)
        dreams.append(DreamEnv("memory-maze", weights="here", device="cpu").dream)
    assert dreams[0].fingerprint != dreams[1].fingerprint
    assert load_weights(Path("here")) is load_weights(two_models[1] / "here")


@pytest.fixture
def home(tmp_path, tiny_weights, monkeypatch):
    """What `~` is, with weights of a world in it and another folder to work in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_weights, tmp_path / "mine")
    write_world(tmp_path / "mine", WORLD)
    monkeypatch.chdir(tiny_weights)
    return tmp_path


@pytest.mark.parametrize("name", [WORLD.id, DREAM_ID])
def test_weights_under_a_tilde_are_those_of_the_home_folder(home, name):
    assert gymnasium.make(name, weights="~/mine", device="cpu").reset(seed=1)[0].shape == (64, 64, 3)


def test_states_under_a_tilde_are_in_the_home_folder(home, tiny_weights):
    env = DreamEnv("memory-maze", weights=tiny_weights, device="cpu")
    env.reset(seed=1)
    env.save_state("~/state.safetensors")
    assert (home / "state.safetensors").exists()
    env.load_state("~/state.safetensors")


def test_episodes_and_films_under_a_tilde_are_in_the_home_folder(home, tiny_weights):
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    write_episode("~/walk.npz", Episode(frames, np.ones(9, np.int64), np.zeros(9, np.float32), {}), fps=4)
    assert (home / "walk.npz").exists()
    DreamEnv("memory-maze", weights=tiny_weights, device="cpu").reset(options={"episode": "~/walk.npz"})
    write_movie(Path("~/film.mp4"), frames, 4)
    assert (home / "film.mp4").exists()


def test_weights_written_under_a_tilde_leave_no_contexts_of_before(home, tiny_weights):
    (home / "mine" / "starts.safetensors").touch()
    save_weights(Path("~/mine"), load_weights(tiny_weights))
    assert not (home / "mine" / "starts.safetensors").exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of a world whose episodes have 4 steps."""
    from dataclasses import replace

    folder = write_tiny_weights(tmp_path_factory.mktemp("own"))
    write_world(folder, replace(WORLD, max_episode_steps=4))
    return folder


@pytest.mark.parametrize(
    ("asked", "ends"), [({}, 4), ({"max_episode_steps": 2}, 2), ({"max_episode_steps": 6}, 6), ({"max_episode_steps": -1}, None)]
)
@pytest.mark.parametrize("mode", [None, "sync"])
def test_limits_are_those_that_were_asked_for(own, asked, ends, mode):
    how = dict(weights=own, profile="fast", device="cpu", observation="features", **asked)
    env, envs = gymnasium.make(DREAM_ID, **how), gymnasium.make_vec(DREAM_ID, 1, vectorization_mode=mode, **how)
    env.reset(seed=0), envs.reset(seed=0)
    for step in range(1, 8):
        if step == (ends or 99) + 1:
            break
        assert (env.step(1)[3], envs.step(np.ones(1, int))[3][0]) == (step == ends, step == ends)
    assert env.spec.max_episode_steps == ends


def test_no_episode_has_zero_steps(own):
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, not 0"):
        gymnasium.make_vec(DREAM_ID, 1, weights=own, device="cpu", max_episode_steps=0)


def test_a_registered_world_has_the_limit_that_was_asked_for(tiny_weights):
    how = dict(weights=tiny_weights, profile="fast", device="cpu", observation="features")
    longer = WORLD.max_episode_steps + 5
    for asked, limit in ((None, WORLD.max_episode_steps), (longer, longer), (-1, None)):
        given = {} if asked is None else {"max_episode_steps": asked}
        assert gymnasium.make(WORLD.id, **how, **given).spec.max_episode_steps == limit
        assert gymnasium.make_vec(WORLD.id, 1, **how, **given).max_episode_steps == limit


@pytest.mark.parametrize("name", [WORLD.id, DREAM_ID])
def test_a_spec_becomes_json_and_makes_the_same_environment(own, name):
    env = gymnasium.make(name, weights=own, profile="fast", device="cpu", render_mode="rgb_array", max_episode_steps=3)
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    assert np.array_equal(env.reset(seed=3)[0], again.reset(seed=3)[0])
    for step in range(3):
        (frame, *rest), (other, *others) = env.step(step), again.step(step)
        assert np.array_equal(frame, other)
        assert rest[:3] == others[:3]
    envs = gymnasium.make_vec(name, 2, weights=own, profile="fast", device="cpu")
    spec = json.loads(envs.spec.to_json())
    assert spec["kwargs"]["num_envs"] == 2
    assert gymnasium.make_vec(EnvSpec.from_json(envs.spec.to_json())).num_envs == 2


def test_what_recorders_read_is_there_as_in_cartpole(own):
    cartpole, env = gymnasium.make("CartPole-v1", render_mode="rgb_array"), gymnasium.make(DREAM_ID, weights=own, render_mode="rgb_array")
    assert cartpole.metadata.keys() <= env.metadata.keys()
    assert env.metadata["render_fps"] == WORLD.fps
    assert (env.render_mode, env.unwrapped.spec.id) == ("rgb_array", DREAM_ID)
    envs = DreamVectorEnv(WORLD, 2, weights=own)
    theirs = gymnasium.make_vec("CartPole-v1", 2)
    assert theirs.metadata.keys() <= envs.metadata.keys()
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is AutoresetMode.SAME_STEP  # TorchRL reads the latter


def test_sb3_records_at_the_speed_of_the_world(own):
    pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from lssvwm_gym.envs.sb3 import make_sb3_vec_env

    envs = make_sb3_vec_env(WORLD, 2, weights=own, render_mode="rgb_array")
    assert envs.metadata["render_fps"] == WORLD.fps
    assert envs.render_mode == "rgb_array"
