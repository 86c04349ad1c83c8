"""Episodes of the same player in a dream and in its environment, both counted from the frame on that dreams begin with."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from short_game import Game
from tiny_world import OPENING_FRAMES, write_tiny_weights

from experiments.check_own_worlds import FIRST_SEED, Played, RandomPlayers, compared, given_steps, in_dreams, in_world
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.worlds import WorldSpec


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    folder = write_tiny_weights(tmp_path_factory.mktemp("weights"), actions=3, memory_features=0, termination=True)
    world = WorldSpec("LSSVWM-Tried-v0", "tried", 64, ("noop", "right", "left"), {}, 9, (0.0, 2.0), 50, Path(folder))
    return Dream(world, load_weights(folder), "fast")


random = partial(RandomPlayers, Game.action_space, (), 0.5)


def test_real_episodes_count_from_where_dreams_begin():
    assert FIRST_SEED % 10 == 0
    played = in_world(Game(2.0), random, random, episodes=3, steps=7, given=3, seed=1)
    assert played == [Played(1, True, 2.0), Played(2, True, 4.0), Played(3, True, 6.0)]  # those of 2 and 3 steps ended before
    assert in_world(Game(2.0), random, random, episodes=1, steps=7, given=0, seed=9) == [Played(7, False, 14.0)]


def test_dreams_count_until_each_ends(dream):
    assert given_steps(dream) == OPENING_FRAMES - 1
    played = in_dreams(dream, random, 4, 20, 0)
    assert played == in_dreams(dream, random, 4, 20, 0)
    assert all(one.ended or one.steps == 20 - given_steps(dream) for one in played)
    assert all(one.earned in range(0, 2 * one.steps + 1, 2) for one in played)
    ending = copy.deepcopy(dream.weights.world_model)
    ending.termination_head.network[-1].bias.data += 30
    ended = in_dreams(replace(dream, weights=replace(dream.weights, world_model=ending)), random, 4, 20, 0)
    assert [one[:2] for one in ended] == [(1, True)] * 4


def test_players_repeat_themselves_by_their_seed():
    actions = [np.stack([players.act(None, None) for _ in range(30)]) for players in (random(5, 0), random(5, 0), random(5, 1))]
    assert (actions[0] == actions[1]).all()
    assert (actions[0] != actions[2]).any()
    assert 0.5 < (actions[0][1:] == actions[0][:-1]).mean() < 0.85


def test_what_was_played_is_summed_up():
    said = compared([Played(2, True, 1.0), Played(4, False, 2.0)])
    assert {name: numbers["mean"] for name, numbers in said.items()} == {"steps": 3, "ended": 0.5, "earned": 1.5}
