"""What the check of Pendulum rests on: angles are read from pictures, and the controllers differ in skill."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.check_own_worlds import in_world
from experiments.check_pendulum import LAWS, Controllers, rod_angle
from lssvwm_gym.data.collect_gym import Framed, GymCollecting, make


@pytest.fixture
def pendulum():
    env = make(GymCollecting("Pendulum-v1", Path("nowhere")))
    yield env
    env.close()


def test_the_angle_is_read_from_pictures(pendulum: Framed):
    frames, angles = [], []
    for seed in range(20):
        pendulum.reset(seed=seed)
        frames.append(pendulum.step(np.array([2 * (-1) ** seed], np.float32))[0])  # the arrow of the torque is in the picture
        angles.append(pendulum.unwrapped.state[0])
    off = (rod_angle(np.stack(frames)) - angles + math.pi) % (2 * math.pi) - math.pi
    assert np.abs(off).max() < 0.02


def test_a_picture_without_a_rod_has_an_angle_all_the_same():
    assert np.isfinite(rod_angle(np.full((2, 64, 64, 3), 255, np.uint8))).all()


def test_a_controller_balances_what_another_lets_hang(pendulum: Framed):
    earned = {}
    for name in ("balances", "slows down"):
        controllers = partial(Controllers, *LAWS[name])
        (played,) = in_world(pendulum, controllers, controllers, episodes=1, steps=100, given=50, seed=0)
        assert (played.steps, played.ended) == (50, False)
        earned[name] = played.earned
    assert earned["balances"] > -100 > -300 > earned["slows down"]
