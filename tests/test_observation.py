"""Observations that are numbers of the model: what they hold, that they spare the decoder, and that all else stays as it was."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from tiny_minecraft import write_tiny_minecraft
from tiny_world import IMAGE, same

from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.inference.prepacked import PrepackedDecoder
from lssvwm_gym.worlds import WORLDS

ID = WORLDS["memory-maze"].id
LATENT = IMAGE.tokens * IMAGE.latent_channels
NUMBERS = {"features": 256, "latent": LATENT, "latent+features": LATENT + 256}
LIMIT = 4


@pytest.fixture
def arguments(tiny_weights):
    return dict(world="memory-maze", weights=tiny_weights, profile="fast", device="cpu", render_mode="rgb_array")


@pytest.fixture
def decoded(monkeypatch):
    """How many pictures have been decoded, by whatever way."""
    pictures = []
    smoothly = Autoencoder.decode_smoothly
    monkeypatch.setattr(Autoencoder, "decode_smoothly", lambda self, latent: pictures.append(len(latent)) or smoothly(self, latent))
    packed = PrepackedDecoder.__call__
    monkeypatch.setattr(PrepackedDecoder, "__call__", lambda self, latent: pictures.append(len(latent)) or packed(self, latent))
    return pictures


def numbers(state, observation):
    parts = {"latent": state.dream.latent.flatten(1).clamp(-32, 32), "features": state.dream.features, "pose": state.dream.pose}
    return torch.cat([parts[part] for part in observation.split("+")], -1).numpy()


@pytest.mark.parametrize(("observation", "count"), NUMBERS.items())
def test_they_are_the_numbers_of_the_committed_state(arguments, observation, count):
    env, whole = DreamEnv(**arguments, observation=observation), DreamEnv(**arguments)
    assert env.observation_space.shape == (count,)
    assert env.observation_space.dtype == np.float32
    seen, _ = whole.reset(seed=3) and env.reset(seed=3)
    for action in (1, 2, 3, 1):
        assert env.observation_space.contains(seen)
        assert np.array_equal(seen, numbers(whole.clone_state(), observation)[0])
        whole.step(action)
        seen, *_ = env.step(action)
    assert np.array_equal(env.render(), whole.render())


@pytest.mark.parametrize("observation", NUMBERS)
def test_steps_decode_nothing_and_render_decodes_once(arguments, decoded, observation):
    env = DreamEnv(**arguments, observation=observation)
    envs = DreamVectorEnv(num_envs=3, max_episode_steps=LIMIT, **arguments, observation=observation)
    env.reset(seed=0), envs.reset(seed=0)
    for _ in range(2 * LIMIT):
        env.step(1), envs.step(np.ones(3, int))
    assert decoded == []
    assert env.render().any()
    assert np.array_equal(env.render(), env.render())
    assert env.clone_state().frame.shape == (1, 64, 64, 3)
    assert len(envs.render()) == 3
    assert set(decoded) == {1, 3}
    picture = env.render()
    env.step(2)
    assert not np.array_equal(env.render(), picture)


def test_pictures_are_decoded_as_they_are_seen(arguments, decoded):
    env = DreamEnv(**arguments)
    env.reset(seed=0), env.step(1), env.render(), env.clone_state()
    assert set(decoded) == {1}


@pytest.mark.parametrize("observation", NUMBERS)
def test_gymnasiums_checker_is_content(tiny_weights, recwarn, observation):
    made = dict(weights=tiny_weights, render_mode="rgb_array", profile="fast", observation=observation)
    check_env(gymnasium.make(ID, **made).unwrapped, skip_render_check=False)
    gymnasium.make(ID, **made).reset(seed=0)
    assert not recwarn.list


@pytest.mark.parametrize("observation", NUMBERS)
def test_a_batch_is_what_gymnasium_makes_of_single_environments(arguments, observation):
    envs = gymnasium.make_vec(
        ID, 3, max_episode_steps=LIMIT, **{name: arguments[name] for name in ("weights", "profile")}, observation=observation
    )
    singles = [lambda: TimeLimit(DreamEnv(**arguments, observation=observation), LIMIT)] * 3
    reference = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    assert envs.observation_space == reference.observation_space
    assert np.abs(envs.reset(seed=1)[0] - reference.reset(seed=1)[0]).max() < 0.02
    for _ in range(2 * LIMIT):
        mine, theirs = envs.step(np.array([1, 2, 3])), reference.step(np.array([1, 2, 3]))
        assert np.abs(mine[0] - theirs[0]).max() < 0.02
        for row in np.flatnonzero(mine[3]):
            assert np.abs(mine[4]["final_obs"][row] - theirs[4]["final_obs"][row]).max() < 0.02
            assert np.abs(mine[4]["final_obs"][row] - mine[0][row]).max() > 0.1
    before = mine[0]
    after, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert same(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])


@pytest.mark.parametrize("observation", NUMBERS)
def test_states_branches_and_files_keep_working(arguments, tmp_path, observation):
    env = DreamEnv(**arguments, observation=observation)
    env.reset(seed=0), env.step(1)
    moment, first = env.clone_state(), [env.step(action)[0] for action in (2, 3)]
    assert np.array_equal(env.restore_state(moment), numbers(moment, observation)[0])
    assert same(first, [env.step(action)[0] for action in (2, 3)])
    env.restore_state(moment)
    env.save_state(tmp_path / "moment.safetensors")
    pictures = DreamEnv(**arguments)
    assert np.array_equal(pictures.load_state(tmp_path / "moment.safetensors"), env.render())
    many = env.branch(3)
    assert many.single_observation_space == env.observation_space
    seen, *_ = many.step(np.full(3, 2))
    assert np.abs(seen[0] - first[0]).max() < 0.02
    assert many.branch(2).observation_space.shape == (6, NUMBERS[observation])


def test_sb3_takes_them(arguments):
    pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env

    from lssvwm_gym.envs.sb3 import make_sb3_vec_env

    check_env(DreamEnv(**arguments, observation="latent+features"), warn=True, skip_render_check=False)
    rest = {name: value for name, value in arguments.items() if name != "world"}
    venv = make_sb3_vec_env(ID, 2, max_episode_steps=LIMIT, **rest, observation="features")
    PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)
    venv.reset()
    for _ in range(LIMIT):
        seen, _, done, infos = venv.step(np.zeros(2, int))
    assert done.all()
    assert np.abs(infos[0]["terminal_observation"] - seen[0]).max() > 0.1


def test_worlds_with_counts_have_them_too(tmp_path):
    env = DreamEnv("minecraft", weights=write_tiny_minecraft(tmp_path), profile="fast", observation="features")
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert env.step(8)[4]["inventory"].shape == (9,)


@pytest.mark.parametrize("observation", ["features+inventory", "latent+features+inventory"])
def test_counts_may_stand_behind_the_numbers(tmp_path, observation):
    weights = write_tiny_minecraft(tmp_path)
    env, without = (
        DreamEnv("minecraft", weights=weights, profile="fast", observation=seen)
        for seen in (observation, observation.removesuffix("+inventory"))
    )
    assert env.observation_space.shape[0] == without.observation_space.shape[0] + 9
    seen, rest = env.reset(seed=0)[0], without.reset(seed=0)[0]
    for action in (8, 10, 11):
        assert env.observation_space.contains(seen)
        assert np.array_equal(seen[:-9], rest)
        assert np.array_equal(seen[-9:], env.clone_state().dream.inventory[0].numpy())
        seen, rest = env.step(action)[0], without.step(action)[0]


def test_counts_of_a_world_that_has_none_are_refused(arguments):
    with pytest.raises(ValueError, match=r"observation must be one of all, .*map\+wanted\+pose, not 'latent\+features\+inventory'"):
        DreamEnv(**arguments, observation="latent+features+inventory")
