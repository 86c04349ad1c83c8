"""Worlds are records; a new one from outside is registered by one call."""

import dataclasses

import gymnasium
import pytest

import lssvwm_gym
from lssvwm_gym.io.tensors import TensorFileError
from lssvwm_gym.worlds import WORLDS, weights_of


@pytest.fixture
def pond(tiny_weights):
    world = dataclasses.replace(WORLDS["memory-maze"], id="LSSVWM-Pond-v0", name="pond", weights=tiny_weights, max_episode_steps=5)
    yield world
    WORLDS.pop("pond", None)
    gymnasium.registry.pop("LSSVWM-Pond-v0", None)


def test_a_world_from_outside_is_made_by_its_id(pond):
    lssvwm_gym.register(pond)
    env = gymnasium.make("LSSVWM-Pond-v0")
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]
    assert gymnasium.make_vec("LSSVWM-Pond-v0", num_envs=2).num_envs == 2


def test_a_name_is_given_once(pond):
    lssvwm_gym.register(pond)
    with pytest.raises(ValueError, match="another world named 'pond'"):
        lssvwm_gym.register(dataclasses.replace(pond, fps=9))


def test_keys_and_rewards_fit_the_actions():
    for world in WORLDS.values():
        assert set(world.keys.values()) <= set(range(len(world.actions)))
        assert 0.0 in world.reward_values


def test_other_weights_are_asked_for_by_their_folder(tiny_weights):
    maze = WORLDS["memory-maze"]
    assert weights_of(maze, None) == maze.weights != weights_of(maze, str(tiny_weights)) == tiny_weights
    with pytest.raises(TensorFileError, match=r"sharp: no such folder"):
        gymnasium.make(maze.id, weights="sharp")
