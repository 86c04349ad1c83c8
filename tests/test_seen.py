"""What is seen of the real world through a model is what is seen of a dream."""

from __future__ import annotations

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from tiny_minecraft import write_tiny_minecraft
from tiny_world import WITH_A_MAP, write_tiny_weights

from lssvwm_gym.data.episode import Episode, read_episode, write_episode
from lssvwm_gym.envs import DreamEnv, WorldModelObservation, WorldModelObservationVec, open_dream
from lssvwm_gym.envs.wrappers import NUMBERS, observed, observed_shape

LIMITS = (3, 5, 4)  # steps of each row's episodes, so that they end one by one


@pytest.fixture(scope="module")
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


class Flicker(gymnasium.Env):
    """A real environment in which every frame is new: drawn by its seed, the number of the step and the action."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Discrete(6)

    def _frame(self, action):
        small = np.random.default_rng([int(self.np_random.integers(999)), action]).integers(0, 256, (8, 8, 3), np.uint8)
        return small.repeat(8, 0).repeat(8, 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._frame(9), {}

    def step(self, action):
        return self._frame(int(action)), 0.0, False, False, {}


def walk(poses, frames=9):
    rng = np.random.default_rng(0)
    heading = rng.uniform(0, 6, frames)
    place = {"agent_pos": rng.uniform(0, 9, (frames, 2)), "agent_dir": np.stack([np.cos(heading), np.sin(heading)], 1)}
    smooth = rng.integers(0, 256, (frames, 8, 8, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    extras = {name: value.astype(np.float32) for name, value in place.items()} if poses else {}
    return Episode(smooth, rng.integers(0, 6, frames), np.zeros(frames, np.float32), extras)


def differ(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max()


@pytest.mark.parametrize("poses", [False, True])
@pytest.mark.parametrize("observation", [name for name in NUMBERS if "inventory" not in name])
def test_the_real_world_is_seen_as_a_dream_remembers_it(dream, tmp_path, poses, observation):
    pytest.importorskip("av", reason="needs lssvwm_gym[video]")
    if "map" in observation:
        dream = open_dream("memory-maze", "fast", "cpu", write_tiny_weights(tmp_path / "weights", seed=9, **WITH_A_MAP))
    write_episode(tmp_path / "walk", walk(poses), fps=4, crf=0)
    episode = read_episode(tmp_path / "walk")
    env = WorldModelObservation(Recorded(episode), dream, observation, true_poses=poses)
    seen, _ = env.reset()
    for frames in range(1, len(episode) + 1):
        state = dream.reset(torch.tensor([0]), {"episode": str(tmp_path / "walk.npz"), "context_frames": frames})
        assert env.observation_space.contains(seen)
        assert differ(seen, observed(dream, state, observation)[0]) < 5e-3
        if frames < len(episode):
            seen, *_ = env.step(int(episode.action[frames]))
    assert env.reset()[0].shape == observed_shape(dream, observation)


class Dreamed(gymnasium.Env):
    """A dream that passes for a real world: frames, and as its pose what it believes."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Discrete(6)

    def __init__(self, **arguments):
        self.dreamed = DreamEnv(render_mode="rgb_array", observation="features", **arguments)

    def _told(self, info):
        return {"agent_pos": info["estimated_pose"][:2], "agent_dir": info["estimated_pose"][2:]}

    def reset(self, *, seed=None, options=None):
        self.features, info = self.dreamed.reset(seed=seed, options=options)
        return self.dreamed.render(), self._told(info)

    def step(self, action):
        self.features, *rest, info = self.dreamed.step(action)
        return self.dreamed.render(), *rest, self._told(info)


def test_a_dream_seen_through_the_model_has_the_dreams_own_features(tiny_weights, dream, monkeypatch):
    """From an empty memory on, and with the dream's latents: what encoding a decoded frame loses is the autoencoder's."""
    dreamed = Dreamed(world="memory-maze", weights=tiny_weights, profile="fast", device="cpu")
    monkeypatch.setattr(type(dream.weights.autoencoder), "encode", lambda *_: dreamed.dreamed.clone_state().dream.latent)
    env = WorldModelObservation(dreamed, dream, "features", true_poses=True)
    seen, _ = env.reset(seed=0, options={"start": "cold"})
    differences = [differ(seen, dreamed.features)]
    for action in (1, 2, 3, 1, 4, 0):
        seen, *_ = env.step(action)
        differences.append(differ(seen, dreamed.features))
    assert max(differences) < 0.02
    assert differ(env.step(1)[0], seen) > 0.1


def test_gymnasiums_checker_is_content(dream, recwarn):
    check_env(WorldModelObservation(Flicker(), dream, "latent+features"))
    said = [str(warning.message) for warning in recwarn.list]
    assert [one for one in said if "wrapper applied" not in one and "render" not in one] == []


def alone(dream, limit, observation="features"):
    return WorldModelObservation(TimeLimit(Flicker(), limit), dream, observation)


def stepped_alone(singles, actions, mode, over):
    """What the rows see after a step, and the last that those saw that began anew within it."""
    seen, ends = [], {}
    for row, env in enumerate(singles):
        if over[row] and mode is AutoresetMode.NEXT_STEP:
            seen.append(env.reset()[0])
            continue
        numbers, _, _, ended, _ = env.step(actions[row])
        if ended and mode is AutoresetMode.SAME_STEP:
            ends[row], numbers = numbers, env.reset()[0]
        seen.append(numbers)
    return seen, ends


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_row_of_a_batch_is_seen_as_if_alone(dream, mode):
    """Over several episodes that end at different times; a row that begins anew has forgotten the last."""
    rows = [lambda limit=limit: TimeLimit(Flicker(), limit) for limit in LIMITS]
    envs = WorldModelObservationVec(SyncVectorEnv(rows, autoreset_mode=mode), dream, "features")
    singles = [alone(dream, limit) for limit in LIMITS]
    assert envs.observation_space.shape == (3, 256)
    seen, _ = envs.reset(seed=5)
    assert differ(seen, [env.reset(seed=5 + row)[0] for row, env in enumerate(singles)]) < 0.02
    over, episodes = np.zeros(3, bool), 0
    for actions in np.random.default_rng(0).integers(0, 6, (12, 3)):
        if mode is AutoresetMode.DISABLED and over.any():
            before = seen
            seen, _ = envs.reset(options={"reset_mask": over.copy()})
            assert np.array_equal(seen[~over], before[~over])
            assert differ(seen[over], [singles[row].reset()[0] for row in np.flatnonzero(over)]) < 0.02
        seen, _, _, truncated, info = envs.step(actions)
        expected, ends = stepped_alone(singles, actions, mode, over)
        assert differ(seen, expected) < 0.02
        last = info.get("final_obs", [None] * 3)
        assert sorted(ends) == [row for row in range(3) if last[row] is not None]
        assert all(differ(last[row], end) < 0.02 for row, end in ends.items())
        over, episodes = truncated, episodes + truncated.sum()
    assert episodes >= 6


def test_sb3s_batches_are_seen_alike(dream):
    pytest.importorskip("stable_baselines3", reason="needs lssvwm_gym[agents]")
    from stable_baselines3.common.vec_env import DummyVecEnv

    from lssvwm_gym.envs.sb3 import WorldModelObservationVecEnv

    venv = WorldModelObservationVecEnv(
        DummyVecEnv([lambda limit=limit: TimeLimit(Flicker(), limit) for limit in LIMITS]), dream, "features"
    )
    reference = DummyVecEnv([lambda limit=limit: alone(dream, limit) for limit in LIMITS])
    assert venv.observation_space == reference.observation_space
    for env in (venv, reference):
        env.seed(2)
    assert differ(venv.reset(), reference.reset()) < 0.02
    for actions in np.random.default_rng(1).integers(0, 6, (12, 3)):
        mine, theirs = venv.step(actions), reference.step(actions)
        assert differ(mine[0], theirs[0]) < 0.02
        assert np.array_equal(mine[2], theirs[2])
        for row in np.flatnonzero(mine[2]):
            assert differ(mine[3][row]["terminal_observation"], theirs[3][row]["terminal_observation"]) < 0.02
            assert mine[3][row]["TimeLimit.truncated"]


def test_counts_are_told_where_the_world_shows_them(tmp_path):
    dream = open_dream("minecraft", "fast", "cpu", write_tiny_minecraft(tmp_path))

    class Bag(Flicker):
        observation_space = Dict({"image": Flicker.observation_space, "inventory": Box(0, 3267, (9,), np.int32)})
        action_space = Discrete(14)

        def _frame(self, action):
            return {"image": super()._frame(action), "inventory": np.full(9, action, np.int32)}

    env = WorldModelObservation(Bag(), dream, "features")
    seen, _ = env.reset(seed=0)
    assert env.estimator.state.inventory.tolist() == [[9.0] * 9]
    env.step(4)
    assert env.estimator.state.inventory.tolist() == [[4.0] * 9]
    assert env.estimator.state.inventory_peak.tolist() == [[9.0] * 9]
    envs = WorldModelObservationVec(SyncVectorEnv([Bag], autoreset_mode=AutoresetMode.SAME_STEP), dream, "features")
    assert differ(envs.reset(seed=0)[0][0], seen) < 0.02


def test_another_world_and_other_observations_are_refused(dream):
    with pytest.raises(ValueError, match=r"the environment's observations are Box"):
        WorldModelObservation(gymnasium.make("CartPole-v1"), dream, "features")
    other = copy.copy(Recorded(walk(False)))
    other.action_space = Discrete(5)
    with pytest.raises(ValueError, match=r"has the actions Discrete\(6\)"):
        WorldModelObservation(other, dream, "features")
    for observation in ("image", "smell"):
        with pytest.raises(ValueError, match="observation must be one of features, latent"):
            WorldModelObservation(Flicker(), dream, observation)
    with pytest.raises(ValueError, match="observation must be one of image, features"):
        observed_shape(dream, "smell")
