"""Walking by hand: keys become actions, the window shows the dream, and what was seen can be kept."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pygame
import pytest

from lssvwm_gym import play as play_module
from lssvwm_gym.cli import main
from lssvwm_gym.data.episode import read_video
from lssvwm_gym.data.movie import enlarged, write_movie
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.play import Keyboard, Playing, Walk, Window, chosen_action, on_map, play
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]


def key(code, down=True):
    return pygame.event.Event(pygame.KEYDOWN if down else pygame.KEYUP, key=code)


@pytest.fixture
def actions(monkeypatch):
    """All actions that any dream is given."""
    taken = []
    step = DreamEnv.step
    monkeypatch.setattr(DreamEnv, "step", lambda self, action: taken.append(action) or step(self, action))
    return taken


@pytest.fixture
def scripted(monkeypatch):
    """Gives the player a list of lists of events, one list a redraw; quits at its end. Returns the last picture of the window."""
    shown = []

    def give(script):
        class Scripted(Window):
            def draw(self, walk):
                super().draw(walk)
                shown.append(pygame.surfarray.array3d(self.screen).swapaxes(0, 1))
                for event in script.pop(0) if script else [pygame.event.Event(pygame.QUIT)]:
                    pygame.event.post(event)

        monkeypatch.setattr(play_module, "Window", Scripted)
        return shown

    return give


@pytest.mark.parametrize(
    ("pressed", "action"),
    [
        ([], 0),
        (["w"], 1),
        (["w", "a"], 4),
        (["a", "w"], 4),
        (["d", "w"], 5),
        (["a", "d"], 3),
        (["d", "a"], 2),
        (["w", "a", "d"], 5),
        (["x"], 0),
    ],
)
def test_the_longest_combination_counts_and_the_latest_key_decides(pressed, action):
    assert chosen_action(WORLD.keys, pressed) == action


def test_a_tap_between_two_steps_is_not_lost():
    keyboard = Keyboard()
    keyboard.press("w")
    keyboard.press("a")
    keyboard.release("a")
    assert [keyboard.read(), keyboard.read()] == [["w", "a"], ["w"]]
    keyboard.release("w")
    assert keyboard.read() == []


def test_the_map_has_ahead_up_and_left_left():
    origin, ahead, left = on_map(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), size=100)
    assert ahead[1] < origin[1]
    assert left[0] < origin[0]
    assert (on_map(np.random.default_rng(0).normal(size=(50, 2)) * 30, size=100) // 100 == 0).all()


def test_keys_drive_the_dream_and_it_is_recorded(tiny_weights, tmp_path, scripted, actions):
    w, a, up = pygame.K_w, pygame.K_a, pygame.K_UP
    scripted([[key(w)], [key(a)], [key(w, down=False)], [key(a, down=False), key(up)], [key(up, down=False)], []])
    movie = tmp_path / "new" / "walk.mp4"
    main(["play", "memory-maze", "--weights", str(tiny_weights), "--fps", "1000", "--seed", "3", "--scale", "4", "--record", str(movie)])
    assert actions[:6] == [1, 4, 2, 1, 0, 0]
    assert read_video(movie).shape == (len(actions) + 1, 256, 256, 3)


def test_pause_reset_and_quit(tiny_weights, scripted, actions):
    scripted([[], [key(pygame.K_p)], [], [], [key(pygame.K_r)], [key(pygame.K_p)], [], [key(pygame.K_ESCAPE)]])
    walk = play(Playing(weights=tiny_weights, fps=1000, start="cold"))
    assert len(actions) == 3  # one before the pause, two after it
    assert walk.steps == 2


def test_an_episode_that_ends_waits_for_the_player(tiny_weights, scripted):
    walk = Walk(gymnasium.make(WORLD.id, weights=tiny_weights, profile="fast", max_episode_steps=2), {})
    walk.reset(0)
    scripted([[], [], [], []])
    play_module._walk_until_quit(walk, play_module.Window(WORLD, 4), WORLD.keys, fps=1000)
    assert (walk.steps, walk.over) == (2, True)


def test_the_window_shows_the_frame(tiny_weights, scripted):
    shown = scripted([])
    walk = play(Playing(weights=tiny_weights, seed=1, scale=8))
    assert np.array_equal(shown[-1][:512, :512], enlarged(walk.frame, 8))
    assert len(np.unique(shown[-1][:, 512:].reshape(-1, 3), axis=0)) > 10  # text and map beside it


@pytest.mark.filterwarnings("ignore:.*matplotlib is not installed")  # its plots are not used here
def test_gymnasiums_own_player_works(tiny_weights, actions, monkeypatch):
    from gymnasium.utils.play import play as gymnasium_play

    env = gymnasium.make(WORLD.id, weights=tiny_weights, profile="fast", render_mode="rgb_array")
    script = [[key(pygame.K_w)], [key(pygame.K_a)], [pygame.event.Event(pygame.QUIT)]]
    monkeypatch.setattr(pygame.event, "get", lambda: script.pop(0))
    gymnasium_play(env, fps=1000, zoom=4, seed=0)
    assert 1 in actions
    assert 4 in actions


@pytest.mark.parametrize(("wrong", "said"), [({"world": "mars"}, "mars"), ({"record": "walk.avi"}, "walk.avi")])
def test_what_can_not_be_played_is_refused_first(wrong, said):
    run = Playing(**{name: Path(value) if name == "record" else value for name, value in wrong.items()})
    with pytest.raises(ValueError, match=said):
        play(run)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "A.GIF"])
def test_movies_of_both_kinds(tmp_path, name):
    write_movie(tmp_path / name, np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8), fps=4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_movie_has_frames(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_movie(tmp_path / "a.gif", np.zeros((0, 16, 16, 3), np.uint8), fps=4)
