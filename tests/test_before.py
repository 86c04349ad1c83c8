"""What version 0.1 wrote is still read, and goes on as it did then; `data/before` was written by its code."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import lssvwm_gym
from lssvwm_gym import envs
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import load_tensors
from lssvwm_gym.worlds import WORLDS, WorldSpec, read_world

BEFORE = Path(__file__).parent / "data" / "before"


def test_weights_and_states_are_read_under_their_old_names():
    world = read_world(BEFORE / "blocks")
    assert world.inventory == WORLDS["minecraft"].inventory
    assert world.length_scale == WORLDS["minecraft"].length_scale
    env = DreamEnv(world, weights=BEFORE / "blocks", dtype="float32", device="cpu", render_mode="rgb_array")
    env.load_state(BEFORE / "blocks_state.safetensors")
    after, header = load_tensors(BEFORE / "blocks_after.safetensors")
    for action in header["actions"]:
        env.step(action)
    state = env.clone_state().dream
    assert (state.latent - after["latent"]).abs().max() <= 2 / 64
    assert (state.pose - after["pose"]).abs().max() <= 2 / 1024
    assert torch.equal(state.inventory, after["vector"])
    assert np.abs(env.render().astype(int) - after["frame"].numpy()).max() <= 2


def test_a_state_of_before_is_saved_under_the_names_of_today(tmp_path):
    env = DreamEnv(read_world(BEFORE / "blocks"), weights=BEFORE / "blocks", device="cpu")
    env.load_state(BEFORE / "blocks_state.safetensors")
    env.save_state(tmp_path / "state.safetensors")
    names = load_tensors(tmp_path / "state.safetensors")[0].keys()
    assert not names & legacy.STATES.keys()
    assert {"inventory", "inventory_peak", "posterior_variance", "world.spatial_memory.explained"} <= names
    env.load_state(tmp_path / "state.safetensors")


def test_episodes_of_before_are_read():
    episode = read_episode(BEFORE / "episode.npz")
    assert episode.frames.shape == (6, 64, 64, 3)
    assert episode.pose.shape == (6, 4)


def test_two_names_for_one_value_are_refused():
    with pytest.raises(ValueError, match="counts and inventory"):
        legacy.renamed({"counts": 1, "inventory": 2}, legacy.SPEC)
    with pytest.raises(ValueError, match="place heads"):
        legacy.sizes({"place": [False, True]})


def test_an_option_and_infos_of_before_are_still_understood(tiny_weights):
    env = gymnasium.make("LSSVWM-MemoryMaze-v0", weights=tiny_weights, profile="fast", device="cpu")
    expected, _ = env.reset(seed=1, options={"context_id": 2})
    with pytest.warns(DeprecationWarning, match="an option of reset: 'clip' is now called 'context_id'"):
        frame, info = env.reset(seed=1, options={"clip": 2})
    assert np.array_equal(frame, expected)
    info = gymnasium.wrappers.RecordEpisodeStatistics(env).step(1)[-1]
    with pytest.warns(DeprecationWarning, match="estimated_pose"):
        assert info["believed_pose"] is info["estimated_pose"]
    with pytest.raises(KeyError, match="believed"):
        info["believed"]


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_infos_of_before_are_still_understood_in_a_batch(tiny_weights, output):
    how = dict(weights=tiny_weights, profile="fast", device="cpu", max_episode_steps=1, output=output)
    envs = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 2, **how)
    _, info = envs.reset(seed=[1, 2])
    with pytest.warns(DeprecationWarning, match="estimated_pose"):
        assert info["_believed_pose"] is info["_estimated_pose"]
    *_, info = envs.step(np.ones(2, int) if output == "numpy" else torch.ones(2, dtype=torch.int64))
    for part in (info, info["final_info"]):
        with pytest.warns(DeprecationWarning, match="estimated_pose"):
            assert part["believed_pose"] is part["estimated_pose"]


def test_classes_and_their_keywords_of_before_are_still_there(tiny_weights):
    with pytest.warns(DeprecationWarning, match=r"lssvwm_gym\.WorldSpec"):
        assert lssvwm_gym.World is WorldSpec
    with pytest.warns(DeprecationWarning, match="WorldModelObservation"):
        assert envs.SeenThroughModel is envs.WorldModelObservation
    dreams = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 1, weights=tiny_weights, profile="fast", device="cpu")
    real = gymnasium.make("LSSVWM-MemoryMaze-v0", weights=tiny_weights, profile="fast", device="cpu")
    with pytest.warns(DeprecationWarning, match="WorldModelObservation: 'told_poses' is now called 'true_poses'"):
        assert envs.WorldModelObservation(real, dreams.dream, told_poses=True).true_poses
    sizes = dict(id="X-v0", name="x", image_size=16, actions=("a",), keys={}, fps=4, reward_values=(0.0,), max_episode_steps=9)
    with pytest.warns(DeprecationWarning, match="WorldSpec: '"):
        old = WorldSpec(**sizes, weights=BEFORE, counts=("log",), most_counted=9, near=0.5)
    assert old == WorldSpec(**sizes, weights=BEFORE, inventory=("log",), max_inventory=9, length_scale=0.5)


def test_a_dream_of_before_still_goes_on(tiny_weights):
    dream = envs.open_dream("memory-maze", "fast", "cpu", tiny_weights)
    with pytest.warns(DeprecationWarning, match=r"Dream\.begin is now called Dream\.reset"):
        state = dream.begin(torch.tensor([1]))
    with pytest.warns(DeprecationWarning, match=r"Dream\.go_on is now called Dream\.step"):
        after, reward, terminated, info = dream.go_on(state, torch.tensor([2]))
    step = dream.step(state, torch.tensor([2]))
    assert torch.equal(after.latent, step.state.latent)
    assert (reward.tolist(), terminated.tolist()) == (step.reward.tolist(), step.terminated.tolist())
    assert info["familiarity"].dtype == np.float64
