"""What a policy sees of the real world is what it sees of a dream."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from agents.seen import SeenThroughModel, observed, observed_shape
from lssvwm_gym.data.episode import Episode, read_episode, write_episode
from lssvwm_gym.envs.dream import open_dream


@pytest.fixture
def dream(tiny_weights):
    return open_dream("memory-maze", "fast", "cpu", tiny_weights)


class Recorded(gymnasium.Env):
    """Plays a recorded episode, whatever is done."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Discrete(6)

    def __init__(self, episode):
        self.episode, self.now = episode, 0

    def _moment(self):
        return self.episode.frames[self.now], {name: extra[self.now] for name, extra in self.episode.extras.items()}

    def reset(self, *, seed=None, options=None):
        self.now = 0
        return self._moment()

    def step(self, action):
        assert action == self.episode.action[self.now + 1]
        self.now += 1
        frame, info = self._moment()
        return frame, float(self.episode.reward[self.now]), False, self.now == len(self.episode) - 1, info


def walk(poses, frames=9):
    rng = np.random.default_rng(0)
    heading = rng.uniform(0, 6, frames)
    place = {"agent_pos": rng.uniform(0, 9, (frames, 2)), "agent_dir": np.stack([np.cos(heading), np.sin(heading)], 1)}
    smooth = rng.integers(0, 256, (frames, 8, 8, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    extras = {name: value.astype(np.float32) for name, value in place.items()} if poses else {}
    return Episode(smooth, rng.integers(0, 6, frames), np.zeros(frames, np.float32), extras)


@pytest.mark.parametrize("poses", [False, True])
@pytest.mark.parametrize("observation", ["latent", "features", "latent+features"])
def test_the_real_world_is_seen_as_a_dream_sees_it(dream, tmp_path, poses, observation):
    pytest.importorskip("av", reason="needs lssvwm_gym[video]")
    write_episode(tmp_path / "walk", walk(poses), fps=4, crf=0)
    episode = read_episode(tmp_path / "walk")
    env = SeenThroughModel(Recorded(episode), dream, observation, told_poses=poses)
    seen, _ = env.reset()
    for frames in range(1, len(episode) + 1):
        state, _ = dream.reset(torch.tensor([0]), {"episode": str(tmp_path / "walk.npz"), "context_frames": frames})
        assert env.observation_space.contains(seen)
        assert np.abs(seen - observed(dream, state, observation)[0].numpy()).max() < 5e-3
        if frames < len(episode):
            seen, *_ = env.step(int(episode.action[frames]))
    assert np.array_equal(env.reset()[0].shape, observed_shape(dream, observation))


def test_pixels_are_those_of_the_real_world(dream):
    episode = walk(False)
    env = SeenThroughModel(Recorded(episode), dream, "pixels")
    assert np.array_equal(env.reset()[0], episode.frames[0])


def test_another_world_is_refused(dream):
    with pytest.raises(ValueError, match=r"the environment's are Box"):
        SeenThroughModel(gymnasium.make("CartPole-v1"), dream, "features")
    other = Recorded(walk(False))
    other.action_space = Discrete(5)
    with pytest.raises(ValueError, match="has 6 actions"):
        SeenThroughModel(other, dream, "features")
