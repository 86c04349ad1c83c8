"""The real world beside the dream: the same actions, what the dream sees of it, and what can't go back."""

from __future__ import annotations

import gymnasium
import numpy as np
import pygame
import pytest
from gymnasium.spaces import Box, Discrete
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same

from lssvwm_gym.play import Playing, run
from lssvwm_gym.play.input import Player
from lssvwm_gym.play.run import open_game
from lssvwm_gym.play.side_by_side import RealWorld
from lssvwm_gym.play.window import Window
from lssvwm_gym.real_envs import SimulatorDied
from lssvwm_gym.worlds import WORLDS

WATCHED = 3


class Counted(gymnasium.Env):
    """A real world of noise that remembers what was done to it; walks ahead of where it looks, along y."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Discrete(6)

    def __init__(self, steps=100, dies_at=None):
        self.limit, self.dies_at = steps, dies_at
        self.taken, self.resets, self.closed = [], [], False

    def moment(self):
        self.frame = np.random.default_rng(len(self.taken)).integers(256, size=(64, 64, 3), dtype=np.uint8)
        pos = np.array([5.0, 3.0 + len(self.taken)], np.float32)
        return self.frame, {"agent_pos": pos, "agent_dir": np.array([0.0, 1.0], np.float32)}

    def reset(self, *, seed=None, options=None):
        self.taken = []
        self.resets.append(seed)
        return self.moment()

    def step(self, action):
        self.taken.append(action)
        if len(self.taken) == self.dies_at:
            raise SimulatorDied("the client is gone")
        frame, info = self.moment()
        return frame, 0.5, False, len(self.taken) == self.limit, info

    def close(self):
        self.closed = True


class Carrying(Counted):
    """The same with a log more at every step."""

    action_space = Discrete(14)

    def moment(self):
        frame, _ = super().moment()
        pos, zero = np.array([5.0, 1.0, 3.0 + len(self.taken)], np.float32), np.float32(0)
        counts = np.zeros(9, np.int32)
        counts[0] = len(self.taken)
        return {"image": frame, "inventory": counts}, {"pos": pos, "yaw": zero, "pitch": zero}


@pytest.fixture
def beside(tiny_weights, monkeypatch, tmp_path):
    """A player beside a real world of that kind."""
    opened = []

    def open_beside(env, **settings):
        monkeypatch.setattr(run, "RealWorld", lambda world: RealWorld(world, env))
        defaults = dict(weights=tiny_weights, seed=3, scale=2, beside=True, context_frames=WATCHED, saves=tmp_path)
        game = open_game(Playing(**{**defaults, **settings}))
        opened.append(game)
        return Player(game, 4, tmp_path)

    yield open_beside
    for game in opened:
        game.close()


def tap(player, *codes):
    for code in codes:
        player.obey(pygame.event.Event(pygame.KEYDOWN, key=code))
        player.obey(pygame.event.Event(pygame.KEYUP, key=code))


def go(player, *codes):
    """Steps with one key each; the moments that they lead to."""
    moments = []
    for code in codes:
        tap(player, code)
        player.pace.due = 0.0
        player.act(1.0)
        moments.append(player.game.now)
    return moments


def test_both_take_the_same_actions_and_the_dream_goes_on_from_what_it_saw(beside):
    env = Counted()
    player = beside(env)
    w, a = pygame.K_w, pygame.K_a
    moments = [player.game.now, *go(player, w, a, w, w)]
    assert env.taken == [1, 2, 1, 1]
    assert [len(moment.moves) for moment in moments] == [0, 0, 0, 1, 2]  # three frames seen, then two dreamed
    assert [moment.steps for moment in moments] == [0, 1, 2, 3, 4]
    assert [moment.info["age"] for moment in moments] == [1, 2, 3, 4, 5]
    assert same([moment.real.frame for moment in moments][-1], env.frame)
    assert moments[2].earned == moments[2].real.earned == 1.0
    assert moments[-1].real.earned == 2.0


def test_the_real_trail_begins_where_the_game_does(beside):
    player = beside(Counted())
    go(player, pygame.K_w, pygame.K_w)
    assert same(np.stack(player.game.now.real.trail), np.array([[0, 0, 1, 0], [1, 0, 1, 0], [2, 0, 1, 0]], np.float32))
    assert len(player.game.now.trail) == 3


def test_the_real_world_stays_behind_when_the_dream_goes_back(beside):
    env = Counted()
    player = beside(env)
    go(player, *[pygame.K_w] * 5)
    tap(player, pygame.K_m)
    newest = player.game.now
    player.game.back()
    assert player.game.now.real.frame is not newest.real.frame  # as it was
    assert not player.game.goes_along
    assert go(player, pygame.K_a)[0].real is None
    assert len(env.taken) == 5
    tap(player, pygame.K_F1)
    assert player.game.goes_along  # back where it waits
    assert go(player, pygame.K_a)[0].real is not None
    assert env.taken[5:] == [2]


def test_begin_anew_begins_both_anew(beside):
    env = Counted()
    player = beside(env)
    go(player, *[pygame.K_w] * 4)
    tap(player, pygame.K_r)
    assert len(env.resets) == 2
    assert env.resets[0] == 3
    assert player.game.eyes == WATCHED - 1
    assert player.game.goes_along


def test_the_eyes_open_and_close(beside):
    player = beside(Counted())
    go(player, *[pygame.K_w] * 4)
    tap(player, pygame.K_e)
    assert not go(player, pygame.K_w, pygame.K_w)[-1].moves
    tap(player, pygame.K_e)
    assert len(go(player, pygame.K_w)[0].moves) == 1


@pytest.mark.parametrize(("env", "left"), [(Counted(steps=4), True), (Counted(dies_at=4), False)], ids=["over", "died"])
def test_the_dream_goes_on_when_the_real_world_has_ended(beside, env, left):
    player = beside(env)
    moments = go(player, *[pygame.K_w] * 7)
    assert len(env.taken) == 4
    assert [moment.real is not None for moment in moments] == [True] * 3 + [left] + [False] * 3
    assert moments[-1].steps == 7
    tap(player, pygame.K_r)
    assert player.game.goes_along


def test_a_real_world_that_does_not_begin_leaves_the_dream(beside, monkeypatch):
    env = Counted()
    player = beside(env)
    go(player, pygame.K_w)
    before = player.game.now

    def refuse(**arguments):
        raise SimulatorDied("no client starts")

    with monkeypatch.context() as patch:
        patch.setattr(env, "reset", refuse)
        tap(player, pygame.K_r)
    assert (player.message, player.is_error) == ("no client starts: r tries again", True)
    assert player.game.now is before
    assert go(player, pygame.K_w)[0].real is None
    tap(player, pygame.K_r)
    assert player.game.goes_along


def test_what_is_carried_is_told_while_the_dream_sees(tmp_path, beside):
    env = Carrying()
    player = beside(env, world="minecraft", weights=write_tiny_minecraft(tmp_path / "weights"))
    moments = [player.game.now, *go(player, pygame.K_w, pygame.K_w, pygame.K_w)]
    assert [int(moment.info["inventory"][0]) for moment in moments[:3]] == [0, 1, 2]
    assert moments[2].state.dream.peak[0, 0] == 2
    assert moments[3].real.counts[0] == 3
    assert same(moments[3].real.trail[-1], np.array([3, 0, 1, 0, 0, 0], np.float32))


def test_both_are_seen_swapped_and_filmed(beside):
    env = Counted()
    player = beside(env)
    window = Window(player.game, 2)
    boxes = [window.picture_box(number) for number in range(2)]
    go(player, pygame.K_w)

    def pictures():
        window.draw(player)
        screen = pygame.surfarray.array3d(window.screen).swapaxes(0, 1)
        return [screen[box.top : box.bottom : 2, box.left : box.right : 2] for box in boxes]

    wanted = [player.game.now.frame, env.frame]
    assert same(pictures(), wanted)
    tap(player, pygame.K_TAB)
    assert same(pictures(), wanted[::-1])
    tap(player, pygame.K_TAB, pygame.K_v)
    go(player, pygame.K_w)
    assert same(player.film[0], np.concatenate(wanted, 1))
    player.game.back()
    go(player, pygame.K_w)
    assert not player.film[-1][:, 64:].any()  # dark: it has stayed behind
    pygame.quit()


def test_closing_the_game_closes_the_real_world(tiny_weights, monkeypatch):
    env = Counted()
    monkeypatch.setattr(run, "RealWorld", lambda world: RealWorld(world, env))
    open_game(Playing(weights=tiny_weights, beside=True)).close()
    assert env.closed


def test_a_world_without_a_real_one_is_refused():
    lonely = WORLDS["memory-maze"].__class__(**{**WORLDS["memory-maze"].__dict__, "real_id": None})
    with pytest.raises(ValueError, match="no real world"):
        RealWorld(lonely)


@pytest.mark.slow
@pytest.mark.simulator
def test_the_real_maze_goes_along(tiny_weights, tmp_path):
    game = open_game(Playing(weights=tiny_weights, seed=3, beside=True, context_frames=2))
    for action in (1, 3, 1):
        game.step(action)
    assert game.goes_along
    assert game.now.real.frame.shape == (64, 64, 3)
    assert len(game.now.real.trail) == 4
    game.close()


@pytest.mark.slow
def test_the_real_block_world_goes_along(luanti, tmp_path):
    game = open_game(Playing(world="minecraft", weights=write_tiny_minecraft(tmp_path), seed=3, beside=True, context_frames=2))
    for action in (1, 8, 3):
        game.step(action)
    assert game.goes_along
    assert game.now.real.counts.shape == (9,)
    game.close()
