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
from lssvwm_gym.play.input import Controls
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

    def snapshot(self):
        self.frame = np.random.default_rng(len(self.taken)).integers(256, size=(64, 64, 3), dtype=np.uint8)
        pos = np.array([5.0, 3.0 + len(self.taken)], np.float32)
        return self.frame, {"agent_pos": pos, "agent_dir": np.array([0.0, 1.0], np.float32)}

    def reset(self, *, seed=None, options=None):
        self.taken = []
        self.resets.append(seed)
        return self.snapshot()

    def step(self, action):
        self.taken.append(action)
        if len(self.taken) == self.dies_at:
            raise SimulatorDied("the client is gone")
        frame, info = self.snapshot()
        return frame, 0.5, False, len(self.taken) == self.limit, info

    def close(self):
        self.closed = True


class Carrying(Counted):
    """The same with a log more at every step."""

    action_space = Discrete(14)

    def snapshot(self):
        frame, _ = super().snapshot()
        pos, zero = np.array([5.0, 1.0, 3.0 + len(self.taken)], np.float32), np.float32(0)
        counts = np.zeros(9, np.int32)
        counts[0] = len(self.taken)
        return {"image": frame, "inventory": counts}, {"pos": pos, "yaw": zero, "pitch": zero}


@pytest.fixture
def beside(tiny_weights, monkeypatch, tmp_path):
    """A controls beside a real world of that kind."""
    opened = []

    def open_beside(env, **settings):
        monkeypatch.setattr(run, "RealWorld", lambda world: RealWorld(world, env))
        defaults = dict(weights=tiny_weights, seed=3, scale=2, side_by_side=True, context_frames=WATCHED, saves=tmp_path)
        game = open_game(Playing(**{**defaults, **settings}))
        opened.append(game)
        return Controls(game, 4, tmp_path)

    yield open_beside
    for game in opened:
        game.close()


def tap(controls, *codes):
    for code in codes:
        controls.obey(pygame.event.Event(pygame.KEYDOWN, key=code))
        controls.obey(pygame.event.Event(pygame.KEYUP, key=code))


def go(controls, *codes):
    """Steps with one key each; the snapshots that they lead to."""
    snapshots = []
    for code in codes:
        tap(controls, code)
        controls.pace.due = 0.0
        controls.act(1.0)
        snapshots.append(controls.game.now)
    return snapshots


def test_both_take_the_same_actions_and_the_dream_goes_on_from_what_it_saw(beside):
    env = Counted()
    controls = beside(env)
    w, a = pygame.K_w, pygame.K_a
    snapshots = [controls.game.now, *go(controls, w, a, w, w)]
    assert env.taken == [1, 2, 1, 1]
    assert [len(snapshot.moves) for snapshot in snapshots] == [0, 0, 0, 1, 2]  # three frames seen, then two dreamed
    assert [snapshot.steps for snapshot in snapshots] == [0, 1, 2, 3, 4]
    assert [snapshot.info["age"] for snapshot in snapshots] == [1, 2, 3, 4, 5]
    assert same([snapshot.real.frame for snapshot in snapshots][-1], env.frame)
    assert snapshots[2].earned == snapshots[2].real.earned == 1.0
    assert snapshots[-1].real.earned == 2.0


def test_the_real_trail_begins_where_the_game_does(beside):
    controls = beside(Counted())
    go(controls, pygame.K_w, pygame.K_w)
    assert same(np.stack(controls.game.now.real.trail), np.array([[0, 0, 1, 0], [1, 0, 1, 0], [2, 0, 1, 0]], np.float32))
    assert len(controls.game.now.trail) == 3


def test_the_real_world_stays_behind_when_the_dream_goes_back(beside):
    env = Counted()
    controls = beside(env)
    go(controls, *[pygame.K_w] * 5)
    tap(controls, pygame.K_m)
    newest = controls.game.now
    controls.game.back()
    assert controls.game.now.real.frame is not newest.real.frame  # as it was
    assert not controls.game.goes_along
    assert go(controls, pygame.K_a)[0].real is None
    assert len(env.taken) == 5
    tap(controls, pygame.K_F1)
    assert controls.game.goes_along  # back where it waits
    assert go(controls, pygame.K_a)[0].real is not None
    assert env.taken[5:] == [2]


def test_begin_anew_begins_both_anew(beside):
    env = Counted()
    controls = beside(env)
    go(controls, *[pygame.K_w] * 4)
    tap(controls, pygame.K_r)
    assert len(env.resets) == 2
    assert env.resets[0] == 3
    assert controls.game.real_frames_left == WATCHED - 1
    assert controls.game.goes_along


def test_the_dream_sees_real_frames_or_not(beside):
    controls = beside(Counted())
    go(controls, *[pygame.K_w] * 4)
    tap(controls, pygame.K_e)
    assert not go(controls, pygame.K_w, pygame.K_w)[-1].moves
    tap(controls, pygame.K_e)
    assert len(go(controls, pygame.K_w)[0].moves) == 1


@pytest.mark.parametrize(("env", "left"), [(Counted(steps=4), True), (Counted(dies_at=4), False)], ids=["over", "died"])
def test_the_dream_goes_on_when_the_real_world_has_ended(beside, env, left):
    controls = beside(env)
    snapshots = go(controls, *[pygame.K_w] * 7)
    assert len(env.taken) == 4
    assert [snapshot.real is not None for snapshot in snapshots] == [True] * 3 + [left] + [False] * 3
    assert snapshots[-1].steps == 7
    tap(controls, pygame.K_r)
    assert controls.game.goes_along


def test_a_real_world_that_does_not_begin_leaves_the_dream(beside, monkeypatch):
    env = Counted()
    controls = beside(env)
    go(controls, pygame.K_w)
    before = controls.game.now

    def refuse(**arguments):
        raise SimulatorDied("no client starts")

    with monkeypatch.context() as patch:
        patch.setattr(env, "reset", refuse)
        tap(controls, pygame.K_r)
    assert (controls.message, controls.is_error) == ("no client starts: r tries again", True)
    assert controls.game.now is before
    assert go(controls, pygame.K_w)[0].real is None
    tap(controls, pygame.K_r)
    assert controls.game.goes_along


def test_what_is_carried_is_told_while_the_dream_sees(tmp_path, beside):
    env = Carrying()
    controls = beside(env, world="minecraft", weights=write_tiny_minecraft(tmp_path / "weights"))
    snapshots = [controls.game.now, *go(controls, pygame.K_w, pygame.K_w, pygame.K_w)]
    assert [int(snapshot.info["inventory"][0]) for snapshot in snapshots[:3]] == [0, 1, 2]
    assert snapshots[2].state.dream.inventory_peak[0, 0] == 2
    assert snapshots[3].real.inventory[0] == 3
    assert same(snapshots[3].real.trail[-1], np.array([3, 0, 1, 0, 0, 0], np.float32))


def test_both_are_seen_swapped_and_filmed(beside):
    env = Counted()
    controls = beside(env)
    window = Window(controls.game, 2)
    boxes = [window.picture_box(number) for number in range(2)]
    go(controls, pygame.K_w)

    def pictures():
        window.draw(controls)
        screen = pygame.surfarray.array3d(window.screen).swapaxes(0, 1)
        return [screen[box.top : box.bottom : 2, box.left : box.right : 2] for box in boxes]

    wanted = [controls.game.now.frame, env.frame]
    assert same(pictures(), wanted)
    tap(controls, pygame.K_TAB)
    assert same(pictures(), wanted[::-1])
    tap(controls, pygame.K_TAB, pygame.K_v)
    go(controls, pygame.K_w)
    assert same(controls.film[0], np.concatenate(wanted, 1))
    controls.game.back()
    go(controls, pygame.K_w)
    assert not controls.film[-1][:, 64:].any()  # dark: it has stayed behind
    pygame.quit()


def test_closing_the_game_closes_the_real_world(tiny_weights, monkeypatch):
    env = Counted()
    monkeypatch.setattr(run, "RealWorld", lambda world: RealWorld(world, env))
    open_game(Playing(weights=tiny_weights, side_by_side=True)).close()
    assert env.closed


def test_a_world_without_a_real_one_is_refused():
    lonely = WORLDS["memory-maze"].__class__(**{**WORLDS["memory-maze"].__dict__, "real_id": None})
    with pytest.raises(ValueError, match="no real world"):
        RealWorld(lonely)


@pytest.mark.slow
@pytest.mark.simulator
def test_the_real_maze_goes_along(tiny_weights, tmp_path):
    game = open_game(Playing(weights=tiny_weights, seed=3, side_by_side=True, context_frames=2))
    for action in (1, 3, 1):
        game.step(action)
    assert game.goes_along
    assert game.now.real.frame.shape == (64, 64, 3)
    assert len(game.now.real.trail) == 4
    game.close()


@pytest.mark.slow
def test_the_real_block_world_goes_along(luanti, tmp_path):
    game = open_game(Playing(world="minecraft", weights=write_tiny_minecraft(tmp_path), seed=3, side_by_side=True, context_frames=2))
    for action in (1, 8, 3):
        game.step(action)
    assert game.goes_along
    assert game.now.real.inventory.shape == (9,)
    game.close()
