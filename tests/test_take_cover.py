"""The example of Take Cover, but for the hours of training: what it does with a policy, in a dream and in a game that ends."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from short_game import Game
from tiny_world import write_tiny_weights

from examples import take_cover
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.worlds import WorldSpec


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
