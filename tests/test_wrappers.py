"""Gymnasium's own wrappers around both worlds, alone and in batches: what they promise holds for a dream."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.spaces import Dict
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same

from lssvwm_gym.data.episode import read_video
from lssvwm_gym.worlds import WORLDS

LIMIT = 3  # steps an episode


@pytest.fixture(scope="module", params=["memory-maze", "minecraft"])
def world(request, tmp_path_factory, tiny_weights):
    """Keyword arguments for a world's id, and the id."""
    weights = tiny_weights if request.param == "memory-maze" else write_tiny_minecraft(tmp_path_factory.mktemp("minecraft"))
    return WORLDS[request.param].id, dict(weights=weights, profile="fast", render_mode="rgb_array")


@pytest.fixture
def env(world):
    env = gymnasium.make(world[0], max_episode_steps=LIMIT, **world[1])
    yield env
    env.close()


@pytest.fixture(params=["native", "sync"])
def envs(world, request):
    mode = {"vectorization_mode": "sync"} if request.param == "sync" else {}
    limit = {"max_episode_steps": LIMIT} if request.param == "native" else {}
    envs = gymnasium.make_vec(world[0], num_envs=2, **mode, **limit, **world[1])
    yield envs
    envs.close()


def test_statistics_of_an_episode(env):
    recorded = wrappers.RecordEpisodeStatistics(env)
    recorded.reset(seed=0)
    steps = [recorded.step(action) for action in (1, 2, 3)]
    assert steps[-1][3]
    assert steps[-1][4]["episode"]["l"] == LIMIT
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps))


def test_a_video_has_every_frame(env, tmp_path):
    recorded = wrappers.RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    for _ in range(2):
        recorded.reset(seed=0)
        for action in (1, 2, 3):
            recorded.step(action)
    recorded.close()
    videos = sorted((tmp_path / "videos").glob("*.mp4"))
    assert [read_video(video).shape for video in videos] == [(LIMIT + 1, 64, 64, 3)] * 2


def test_pictures_of_an_episode_are_collected(env):
    collected = wrappers.RenderCollection(env)
    collected.reset(seed=0)
    for action in (1, 2, 3):
        collected.step(action)
    assert np.stack(collected.render()).shape == (LIMIT + 1, 64, 64, 3)


def test_observations_are_flattened_stacked_and_given_the_time(env):
    pixels = isinstance(env.observation_space, Dict)
    flat = wrappers.FlattenObservation(env)
    assert flat.observation_space.contains(flat.reset(seed=0)[0])
    stacked = wrappers.FrameStackObservation(env, 2)
    stacked.reset(seed=0)
    assert stacked.observation_space.contains(stacked.step(1)[0])
    timed = wrappers.TimeAwareObservation(env, flatten=False)
    timed.reset(seed=0)
    assert timed.observation_space.contains(timed.step(1)[0])
    if pixels:
        image = wrappers.TransformObservation(env, lambda seen: seen["image"], env.observation_space["image"])
        assert same(image.reset(seed=0)[0], env.render())


def test_an_episode_begins_by_itself(env):
    again = wrappers.Autoreset(env)
    again.reset(seed=0)
    ages = [again.step(1)[4]["age"] for _ in range(LIMIT + 1)]
    assert ages[LIMIT] == ages[0] - 1


def test_batches_keep_statistics(envs):
    recorded = vector.RecordEpisodeStatistics(envs)
    recorded.reset(seed=0)
    for _ in range(LIMIT):
        _, reward, _, truncated, info = recorded.step(np.ones(2, int))
    assert reward.shape == (2,)
    if truncated.any():  # the batch that Gymnasium makes has the world's own limit
        assert info["episode"]["l"].tolist() == [LIMIT] * 2


def test_batches_are_transformed_and_their_infos_listed(envs):
    listed = vector.DictInfoToList(envs)
    observation, infos = listed.reset(seed=0)
    assert [info["age"] for info in infos] == [6, 6]
    assert envs.observation_space.contains(observation)
    if envs.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:  # Gymnasium transforms no observations of that mode
        flat = vector.FlattenObservation(envs)
        assert flat.observation_space.contains(flat.reset(seed=0)[0])
    rewarded = vector.ClipReward(envs, 0, 0.5)
    rewarded.reset(seed=0)
    assert rewarded.step(np.ones(2, int))[1].max() <= 0.5


@pytest.mark.skipif(not hasattr(vector, "RecordVideo"), reason="this release of Gymnasium records no batches")
@pytest.mark.filterwarnings("ignore:.*autoreset mode is same-step")  # as in every batch of that mode, the last frame is not in it
def test_a_video_of_a_batch(envs, tmp_path):
    recorded = vector.RecordVideo(envs, str(tmp_path / "videos"), episode_trigger=lambda episode: True, video_length=2)
    recorded.reset(seed=0)
    for _ in range(LIMIT):
        recorded.step(np.ones(2, int))
    recorded.close()
    videos = [read_video(video) for video in (tmp_path / "videos").glob("*.mp4")]
    assert LIMIT in [len(video) for video in videos]
    assert {video.shape[1:] for video in videos} == {(64, 2 * 64, 3)}  # both rows side by side


def test_worlds_in_processes_of_their_own(world):
    envs = gymnasium.make_vec(world[0], num_envs=2, vectorization_mode="async", **world[1])
    observation, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observation)
    assert same(observation, gymnasium.make_vec(world[0], num_envs=2, vectorization_mode="sync", **world[1]).reset(seed=0)[0])
    envs.close()
