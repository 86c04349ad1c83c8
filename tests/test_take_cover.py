"""The example of Take Cover, but for the hours of training: what it does with a policy, in a dream and in a game that ends."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from short_game import Game
from tiny_world import write_tiny_weights

from agents.policies import Policy, PolicyConfig, save_policy
from examples import take_cover
from experiments.collect_with_policy import PolicyCollecting, RealPlayer, open_recorder
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.data.collect import Source, record
from lssvwm_gym.data.collect_gym import GymCollecting
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.wrappers import WorldModelObservation, observed_shape
from lssvwm_gym.worlds import WorldSpec, read_world, write_world


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    folder = write_tiny_weights(tmp_path_factory.mktemp("weights"), actions=3, memory_features=0, termination=True)
    actions = ("noop", "right", "left")
    world = WorldSpec("LSSVWM-Tried-v0", "tried", 64, actions, {}, 9, (0.0, 4.0), take_cover.STEPS, Path(folder))
    return Dream(world, load_weights(folder), "fast")


def test_games_are_played_to_their_ends_and_tics_counted(dream, monkeypatch):
    monkeypatch.setattr(take_cover, "make", lambda collecting: Game())
    trial = take_cover.in_games(None, dream, "random", take_cover.TakeCover(episodes=3))
    assert trial.tics.tolist() == [4, 8, 12]
    assert trial.frames.shape == (1, 64, 64, 3)
    said = take_cover.survival(trial.tics)
    assert said["mean"] == 8
    assert said["error"] == pytest.approx(4 / 3**0.5)


def test_dreams_count_until_each_ends(dream, monkeypatch):
    monkeypatch.setattr(take_cover, "STEPS", 30)
    run = take_cover.TakeCover(episodes=4)
    trial = take_cover.in_dreams(dream, "random", run)
    again = take_cover.in_dreams(dream, "random", run)
    assert np.array_equal(trial.tics, again.tics)
    assert (trial.tics <= 4 * 30).all()
    assert (trial.tics >= 4).all()
    assert len(trial.frames) * 4 <= trial.tics[0]
    ending = copy.deepcopy(dream.weights.world_model)
    ending.termination_head.network[-1].bias.data += 30
    ended = take_cover.in_dreams(replace(dream, weights=replace(dream.weights, world_model=ending)), "random", run)
    assert len(set(ended.tics.tolist())) == 1
    assert ended.tics[0] < trial.tics.max()


def test_a_policy_is_recorded_as_it_would_act_in_the_real_game(dream):
    """The player of a recording sees what the wrapper for real environments shows, and its episode is one to learn from."""

    class Watching:
        observation = "features"

        def __init__(self):
            self.seen = []

        def act(self, observation, info):
            self.seen.append(observation)
            return np.array([int(observation.sum() * 1e4) % 3])

    recorded, shown = Watching(), Watching()
    source = Source(lambda _: Game(), lambda rng: None, 9)
    episode = record(Game(), RealPlayer(recorded, dream), source, 8, 50)
    assert len(episode) == 10
    assert episode.extras["terminated"].tolist() == [False] * 9 + [True]
    env = WorldModelObservation(Game(), dream)
    seen, info = env.reset(seed=8)
    for action in episode.action[1:]:
        assert shown.act(torch.from_numpy(seen[None]), info) == action
        seen = env.step(np.int64(action))[0]
    assert all(torch.equal(a, b) for a, b in zip(recorded.seen, shown.seen, strict=True))


def test_a_second_round_of_recordings_is_of_a_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of a worker's process, which this isn't
    game = GymCollecting("CartPole-v1", tmp_path / "games", episodes=2, steps=12, fps=9)
    folder = write_tiny_weights(tmp_path / "weights", actions=2, memory_features=0)
    write_world(folder, WorldSpec("LSSVWM-Poled-v0", "poled", 64, ("0", "1"), {}, 9, (0.0, 1.0), 30, folder))
    poled = Dream(read_world(folder), load_weights(folder), "fast")
    save_policy(tmp_path / "policy.safetensors", Policy(PolicyConfig("poled", "features", observed_shape(poled, "features"), 2)), {})
    recorder = open_recorder(PolicyCollecting(tmp_path / "policy.safetensors", folder, game, random=0.0), replace(game, pixels="render"))
    (tmp_path / "games").mkdir()
    recorder(3)
    recorder.close()
    assert 2 <= len(read_episode(tmp_path / "games" / "000003")) <= 13
    with pytest.raises(ValueError, match="random is a chance from 0 to 1"):
        PolicyCollecting(tmp_path / "policy.safetensors", folder, game, random=2.0)
