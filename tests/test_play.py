"""Playing by hand: real key events go in; what the dream did, what is on the screen and what is on disk comes out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pygame
import pytest
from tiny_minecraft import write_tiny_minecraft
from tiny_world import same, write_tiny_weights

from lssvwm_gym.cli import main
from lssvwm_gym.data.episode import read_video
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.io.video import enlarged, write_movie
from lssvwm_gym.play import Playing, play
from lssvwm_gym.play import input as input_module
from lssvwm_gym.play import window as window_module
from lssvwm_gym.play.game import Game
from lssvwm_gym.play.input import COMMANDS, MARK_KEYS, POLICY, Controls, Keyboard, Pace, chosen_action, meaning
from lssvwm_gym.play.settings import open_game
from lssvwm_gym.play.view import on_map
from lssvwm_gym.play.window import Window, obey
from lssvwm_gym.worlds import WORLDS

WORLD = WORLDS["memory-maze"]
W, A, BACK = pygame.K_w, pygame.K_a, pygame.K_BACKSPACE


def down(code):
    return pygame.event.Event(pygame.KEYDOWN, key=code)


def up(code):
    return pygame.event.Event(pygame.KEYUP, key=code)


def tap(code):
    return [down(code), up(code)]


def dropped(path):
    return pygame.event.Event(pygame.DROPFILE, file=str(path))


@pytest.fixture(scope="module")
def tiny_minecraft(tmp_path_factory):
    return write_tiny_minecraft(tmp_path_factory.mktemp("minecraft"))


@pytest.fixture
def actions(monkeypatch):
    """All actions that any dream is given."""
    taken = []
    step = DreamEnv.step
    monkeypatch.setattr(DreamEnv, "step", lambda self, action: taken.append(action) or step(self, action))
    return taken


class Seen:
    """What a scripted player saw: one entry a redraw."""

    def __init__(self):
        self.screens, self.snapshots, self.messages, self.all_controls = [], [], [], []

    @property
    def controls(self):
        return self.all_controls[-1]


@pytest.fixture
def scripted(monkeypatch):
    """Gives the player a list of lists of events, one list a redraw, then quits; returns what was seen at each redraw."""

    def give(script):
        seen = Seen()

        class Scripted(Window):
            def draw(self, controls):
                super().draw(controls)
                seen.screens.append(pygame.surfarray.array3d(self.screen).swapaxes(0, 1))
                seen.snapshots.append(controls.game.now)
                seen.messages.append((controls.message, controls.is_error))
                seen.all_controls.append(controls)
                for event in script.pop(0) if script else [pygame.event.Event(pygame.QUIT)]:
                    pygame.event.post(event)

        monkeypatch.setattr(window_module, "Window", Scripted)
        return seen

    return give


@pytest.fixture
def run(tiny_weights, tmp_path, scripted):
    """Plays a script; returns the game and what was seen."""

    def run(script, **settings):
        seen = scripted(script)
        defaults = dict(weights=tiny_weights, fps=1000, seed=3, scale=2, saves=tmp_path / "saves")
        return play(Playing(**{**defaults, **settings})), seen

    return run


def frames(snapshots):
    return [snapshot.frame for snapshot in snapshots]


# ---- keys ----


@pytest.mark.parametrize(
    ("pressed", "action"),
    [
        ([], None),
        (["w"], 1),
        (["w", "a"], 4),
        (["a", "w"], 4),
        (["d", "w"], 5),
        (["a", "d"], 3),
        (["d", "a"], 2),
        (["w", "a", "d"], 5),
        (["x"], None),
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


@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_commands_leave_the_keys_of_every_world_alone(world):
    assert not set("".join(world.keys)) & {*COMMANDS, *POLICY, *MARK_KEYS}
    assert all(key in COMMANDS or len(meaning(key, world.keys)) == 1 for key in ("space", "left", "escape", "return", "."))


@pytest.mark.parametrize("settings", [{}, {"policy": "random"}])
def test_the_policys_key_is_there_where_there_is_one(tiny_weights, settings):
    game = open_game(Playing(weights=tiny_weights, **settings))
    controls = Controls(game, 4, Path("nowhere"))
    assert controls.commands.keys() == {*COMMANDS, *(POLICY if settings else {})}
    game.close()


def test_keys_drive_the_dream_and_it_is_recorded(tiny_weights, tmp_path, scripted, actions):
    scripted([[down(W)], [down(A)], [up(W)], [up(A), down(pygame.K_UP)], [up(pygame.K_UP)], []])
    movie = tmp_path / "new" / "walk.mp4"
    main(["play", "memory-maze", "--weights", str(tiny_weights), "--fps", "1000", "--seed", "3", "--scale", "4", "--record", str(movie)])
    assert actions[:6] == [1, 4, 2, 1, 0, 0]
    assert read_video(movie).shape == (len(actions) + 1, 256, 256, 3)


def test_every_key_of_minecraft_is_its_action(run, tiny_minecraft, actions):
    pygame.display.init()
    codes = [pygame.key.key_code("space" if key == " " else key) for key in WORLDS["minecraft"].keys]
    run([tap(code) for code in codes], world="minecraft", weights=tiny_minecraft)
    assert actions[: len(codes)] == list(WORLDS["minecraft"].keys.values())


def test_keys_are_up_when_the_window_is_left(run, actions):
    run([[down(W)], [pygame.event.Event(pygame.WINDOWFOCUSLOST)], []])
    assert actions[:3] == [1, 0, 0]


# ---- time ----


def test_pause_single_step_begin_anew_and_quit(run, actions):
    game, seen = run(
        [[], tap(pygame.K_p), [], [down(W), *tap(pygame.K_n), up(W)], [], tap(pygame.K_r), tap(pygame.K_p), [], tap(pygame.K_ESCAPE)]
    )
    assert actions == [0, 1, 0, 0]  # one before the pause, a single one in it, two after it was begun anew
    assert game.now.steps == 2
    assert seen.snapshots[-2].begin is not seen.snapshots[0].begin


def test_an_episode_that_ends_waits_for_the_player(run, monkeypatch):
    monkeypatch.setitem(WORLDS, "memory-maze", WORLD.__class__(**{**WORLD.__dict__, "max_episode_steps": 2}))
    game, seen = run([[], [], [], []])
    assert game.now.steps == 2
    assert "the episode is over" in seen.messages[-1][0]
    game, _ = run([[], [], [], tap(pygame.K_p), []])
    assert game.now.steps == 4  # it goes on all the same


def test_a_dream_that_ends_says_so(run, tmp_path):
    game, seen = run([[]] * 60, weights=write_tiny_weights(tmp_path / "mortal", termination=True))
    assert game.now.over == "the dream has ended"
    assert "the dream has ended" in seen.messages[-1][0]


def test_the_measured_speed_outlives_commands_that_take_no_time(tiny_weights, tmp_path):
    game = open_game(Playing(weights=tiny_weights, policy="random"))
    controls = Controls(game, 4, tmp_path)
    kept = set()
    for key, command in (COMMANDS | POLICY).items():
        controls.pace.step_times.extend(np.arange(20) * 0.25)
        command.do(controls)
        kept |= {key} if controls.pace.measured else set()
    assert kept == {"backspace", "m", "h", "q", "t"}
    game.close()


def test_the_pace_is_kept_and_measured():
    pace = Pace(4.0)
    assert [now for now in np.arange(0, 2, 0.01) if pace.is_due(now)] == pytest.approx(np.arange(0, 2, 0.25))
    assert pace.is_due(10.0)  # long overdue: once, and not for all that was missed
    assert not pace.is_due(10.01)
    pace.step_times.extend(np.arange(20) * 0.25)
    assert (pace.measured, pace.is_held) == (pytest.approx(4.0), True)
    pace.step_times.extend(np.arange(20) * 0.5)
    assert (pace.measured, pace.is_held) == (pytest.approx(2.0), False)


def test_steps_come_no_faster_than_asked_for(run):
    _, seen = run([[]] * 20, fps=20)
    times = np.array(seen.controls.pace.step_times)
    assert (times[-1] - times[0]) / (len(times) - 1) > 0.045


class VirtualClock:
    """Time that passes only where work takes some, or the loop waits for its next round."""

    def __init__(self):
        self.now = self.last = 100.0

    def perf_counter(self):
        return self.now

    def tick(self, rounds):
        self.now = self.last = max(self.now, self.last + int(1000 / rounds) / 1000)


@pytest.mark.parametrize(("wanted", "cost", "comes"), [(4, 0.2, 4), (5, 0.05, 5), (25, 0.034, 25), (30, 0.0, 30), (25, 0.1, 1 / 0.103)])
def test_the_loop_holds_its_rate_or_says_that_it_does_not(run, monkeypatch, wanted, cost, comes):
    """Steps that take `cost` seconds and redraws that take 3 ms: as many come as are wanted, or as the machine can, evenly."""
    clock, times = VirtualClock(), []

    def step(self, action):
        clock.now += cost
        times.append(clock.now)

    draw = Window.draw
    monkeypatch.setattr(window_module, "time", clock)
    monkeypatch.setattr(input_module, "time", clock)
    monkeypatch.setattr(pygame.time, "Clock", lambda: clock)
    monkeypatch.setattr(Game, "step", step)
    monkeypatch.setattr(Window, "draw", lambda self, controls: (draw(self, controls), setattr(clock, "now", clock.now + 0.003)))
    _, seen = run([[]] * 120, fps=float(wanted))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / comes, rel=0.03)
    assert np.abs(gaps - 1 / comes).max() < 1 / 30 + 0.004  # a step waits for no more than one redraw
    assert seen.controls.pace.is_held == (comes == wanted)


def test_the_speed_is_changed_by_keys(run):
    _, seen = run([tap(pygame.K_MINUS), tap(pygame.K_EQUALS), tap(pygame.K_EQUALS)], fps=100)
    assert [controls.pace.wanted for controls in seen.all_controls][-1] == pytest.approx(125)


# ---- going back ----


def test_rewinding_shows_the_very_same_frames(run):
    game, seen = run([[down(W)], [down(A)], [], [], [up(W), up(A), down(BACK)], [], [], [], [], [up(BACK), *tap(pygame.K_p)]])
    there, back = seen.snapshots[:5], seen.snapshots[5:10]
    assert [snapshot.steps for snapshot in there] == [0, 1, 2, 3, 4]
    assert [snapshot.steps for snapshot in back] == [3, 2, 1, 0, 0]
    assert same(frames(back[:4]), frames(there[3::-1]))
    assert back[0] is there[3]  # earnings, trail and all
    assert seen.messages[9][0] == "no earlier moment is kept"
    assert not game.now.moves


def test_after_a_rewind_the_same_keys_lead_to_the_same_dream(run):
    _, seen = run([[down(W)], [], [], [up(W), down(BACK)], [], [up(BACK), down(W)], [], []])
    assert [snapshot.steps for snapshot in seen.snapshots[:8]] == [0, 1, 2, 3, 2, 1, 2, 3]
    assert same(seen.snapshots[7].frame, seen.snapshots[3].frame)
    assert same(seen.snapshots[7].info, seen.snapshots[3].info)
    assert seen.snapshots[7].moves == seen.snapshots[3].moves


def test_a_branch_comes_back_bit_for_bit(run):
    """Forward to a mark, two steps on, to the left; back at the mark two steps forward are what they were."""
    _, seen = run([[down(W)], tap(pygame.K_m), [], [up(W), down(A)], [up(A), *tap(pygame.K_F1), down(W)], [], tap(pygame.K_b)])
    assert seen.controls.game.marks == [seen.snapshots[1]]
    assert [snapshot.steps for snapshot in seen.snapshots] == [0, 1, 2, 3, 4, 2, 3, 2]
    for again, first in ((5, 2), (6, 3), (7, 2)):
        assert same(seen.snapshots[again].frame, seen.snapshots[first].frame)
        assert same(seen.snapshots[again].info, seen.snapshots[first].info)
        assert seen.snapshots[again].moves == seen.snapshots[first].moves
    assert not same(seen.snapshots[4].frame, seen.snapshots[6].frame)


def test_only_eight_marks_are_kept_and_one_that_is_missing_is_named(run):
    _, seen = run([tap(pygame.K_b), tap(pygame.K_F4), *[tap(pygame.K_m)] * 10])
    assert seen.messages[1][0] == "no moment is marked"
    assert seen.messages[2][0] == "there is no mark 4: m marks a moment"
    marks = seen.all_controls[-1].game.marks
    assert [mark.steps for mark in marks] == [4, 5, 6, 7, 8, 9, 10, 11]


def test_what_can_be_gone_back_to_is_bounded(run):
    game, _ = run([[]] * 40, rewind_mb=1)
    assert game.now.steps == 40
    assert 1 < len(game.past) < 40
    assert game.past.held <= 10**6
    nothing, _ = run([[]] * 3, rewind_mb=0)
    assert len(nothing.past) == 1


# ---- profiles ----


def test_all_profiles_share_one_state(run, tiny_weights):
    _, seen = run([tap(pygame.K_p), tap(pygame.K_f), tap(pygame.K_n), tap(pygame.K_f), tap(pygame.K_n)])
    assert seen.snapshots[2] is seen.snapshots[1] is seen.snapshots[0]
    assert [move.profile for move in seen.snapshots[5].moves] == ["quality", "fast"]
    assert ["uncertainty" in seen.snapshots[number].info for number in (3, 5)] == [True, False]
    for profile, before, after in (("quality", 0, 3), ("fast", 3, 5)):
        env = DreamEnv("memory-maze", profile=profile, weights=tiny_weights)
        env.restore_state(seen.snapshots[before].state)
        assert same(env.step(0)[0], seen.snapshots[after].frame)


# ---- files ----


def test_a_saved_game_comes_back_with_its_story(run, tmp_path):
    script = [[down(W)], [], [up(W), *tap(pygame.K_F9)], tap(pygame.K_r), [], tap(pygame.K_F10), tap(pygame.K_p), []]
    _, seen = run(script)
    saved = seen.snapshots[2]
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == [
        f"memory-maze-001.{ending}" for ending in ("begin.safetensors", "json", "safetensors")
    ]
    loaded = seen.snapshots[6]  # and a step on from there
    assert loaded.moves[:-1] == saved.moves
    assert loaded.steps == saved.steps + 1
    assert same(list(loaded.trail[:-1]), list(saved.trail))
    assert loaded.moves == seen.snapshots[3].moves
    assert same(loaded.frame, seen.snapshots[3].frame)


@pytest.fixture
def saved(run, tmp_path):
    """A game of five steps, its last snapshot, and its file."""
    game, _ = run([[down(W)], [down(A)], [up(W)], tap(pygame.K_f), [], [*tap(pygame.K_p), *tap(pygame.K_F9)]])
    return game.now, tmp_path / "saves" / "memory-maze-001.safetensors"


def test_a_saved_file_is_restored_and_any_environment_reads_it(run, saved, tiny_weights):
    snapshot, path = saved
    _, seen = run([tap(pygame.K_p)], load=path)
    assert same(seen.snapshots[0].frame, snapshot.frame)
    assert seen.snapshots[0].moves == snapshot.moves
    assert seen.snapshots[0].earned == snapshot.earned
    assert same(DreamEnv("memory-maze", weights=tiny_weights).load_state(path), snapshot.frame)


def test_a_replay_shows_the_saved_game_again(run, saved):
    snapshot, path = saved
    game, seen = run([[]] * len(snapshot.moves), replay=path)
    again = seen.snapshots[len(snapshot.moves)]
    assert seen.snapshots[0].steps == 0
    assert again.moves == snapshot.moves
    assert {move.profile for move in again.moves} == {"balanced", "quality"}
    assert same(again.frame, snapshot.frame)
    assert same(again.info, snapshot.info)
    assert not game.replaying


def test_a_state_without_a_story_can_be_loaded_too(run, tmp_path, tiny_weights):
    env = DreamEnv("memory-maze", weights=tiny_weights)
    env.reset(seed=9)
    frame = env.step(1)[0]
    env.save_state(tmp_path / "plain.safetensors")
    _, seen = run([[*tap(pygame.K_p), dropped(tmp_path / "plain.safetensors")], []])
    assert same(seen.snapshots[1].frame, frame)
    assert not seen.snapshots[1].moves


def broken_files(folder, saved_path, other_weights):
    """Name of what is wrong: (file to load, what is said)."""
    (folder / "noise.safetensors").write_bytes(b"\x10" * 64)
    env = DreamEnv("memory-maze", weights=other_weights)
    env.reset(seed=0)
    env.save_state(folder / "other.safetensors")
    story = saved_path.with_suffix(".json")
    yield folder / "noise.safetensors", "noise.safetensors: not a safetensors file"
    yield folder / "missing.safetensors", "missing.safetensors: no such file"
    yield folder / "other.safetensors", "other.safetensors: a state of LSSVWM-MemoryMaze-v0 with weights"
    yield other_weights / "model.safetensors", "model.safetensors: not a saved state"
    whole = json.loads(story.read_text())
    for wrong in (
        {"format": "?"},
        {"world": "minecraft"},
        {"moves": [[99, "fast"]]},
        {"moves": [["w", "fast"]]},
        {"moves": [[1, "slow"]]},
        {"moves": 3},
        {"return": None},
        {"return": "nan"},
        {"trail": [["x"]]},
        {"trail": 1},
    ):
        story.write_text(json.dumps(whole | wrong))
        yield saved_path, "memory-maze-001.json: not the story of a game of memory-maze"
    story.write_text(json.dumps(whole | {"moves": whole["moves"][:-1]}))
    yield saved_path, "which do not lead from the beginning"
    story.write_text("[]")
    yield story, "memory-maze-001.json: not the story"
    story.write_text(json.dumps(whole))
    saved_path.with_suffix(".begin.safetensors").unlink()
    yield saved_path, "memory-maze-001.begin.safetensors: no such file"


def test_wrong_files_give_one_clear_error_and_the_game_goes_on(tiny_weights, tmp_path, saved):
    other = write_tiny_weights(tmp_path / "other_weights", seed=5)
    game = open_game(Playing(weights=tiny_weights, seed=1))
    controls = Controls(game, 4, tmp_path / "empty")
    for path, said in broken_files(tmp_path, saved[1], other):
        before = game.now
        obey(controls, dropped(path))
        assert said in controls.message
        assert controls.is_error
        assert "\n" not in controls.message
        assert game.now is before
        controls.act(1e9)
        assert game.now.steps == before.steps + 1
        controls.pace.due = 0.0
    obey(controls, down(pygame.K_F10))
    assert "no game of memory-maze is saved in" in controls.message
    (tmp_path / "a_file").write_text("")
    controls.saves = tmp_path / "a_file"
    obey(controls, down(pygame.K_F9))
    assert controls.is_error
    game.close()


def test_a_wrong_file_on_the_command_line_is_one_line(tmp_path, tiny_weights, capsys):
    with pytest.raises(SystemExit, match=r"lssvwm-gym play: .*missing.safetensors: no such file"):
        main(["play", "memory-maze", "--weights", str(tiny_weights), "--load", str(tmp_path / "missing.safetensors")])


def test_a_film_has_the_frames_between_two_keys(run, tmp_path):
    _, seen = run([[down(W)], tap(pygame.K_v), [], [], tap(pygame.K_v), [], tap(pygame.K_v), []])
    first, second = (read_video(tmp_path / "saves" / f"memory-maze-00{number}.mp4") for number in (1, 2))
    assert first.shape == (4, 256, 256, 3)
    wanted = enlarged(np.stack(frames(seen.snapshots[1:5])), 4)
    assert np.abs(first.astype(int) - wanted).mean() < 6  # lossy
    assert len(second) == 3  # one that was not ended is written at the end
    assert (f"{tmp_path / 'saves' / 'memory-maze-001.mp4'}: 4 frames", False) in seen.messages


def stops(action, when=2):
    """A step of a game that does something else the third time."""
    step, taken = Game.step, []

    def stopping(self, chosen):
        taken.append(chosen)
        if len(taken) > when:
            action()
        step(self, chosen)

    return stopping


def raises(error):
    def action():
        raise error

    return action


@pytest.fixture
def default_signals():
    """As in a terminal, also where the tests run under nohup, which ignores these."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT))}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ENDS = {  # how a game ends: (what happens in its third step, what `play` raises)
    "Ctrl-C": (raises(KeyboardInterrupt()), None),
    "SIGINT": (lambda: signal.raise_signal(signal.SIGINT), None),
    "SIGHUP": (lambda: signal.raise_signal(signal.SIGHUP), None),
    "exit": (raises(SystemExit(3)), SystemExit),
    "crash": (raises(MemoryError("no memory left")), MemoryError),
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=pytest.mark.skipif(not hasattr(signal, how), reason=f"no {how} here")) if how.startswith("SIG") else how
        for how in ENDS
    ],
)
def test_what_was_recorded_is_written_however_the_game_ends(run, tmp_path, monkeypatch, how, default_signals):
    happens, raised = ENDS[how]
    monkeypatch.setattr(Game, "step", stops(happens))
    with pytest.raises(raised) if raised else contextlib.nullcontext():
        run([tap(pygame.K_v), *[[]] * 5], record=tmp_path / "game.mp4")
    assert len(read_video(tmp_path / "game.mp4")) == 3
    assert len(read_video(tmp_path / "saves" / "memory-maze-001.mp4")) == 3
    assert not pygame.display.get_init()


def test_a_film_that_can_not_be_written_goes_on(tiny_weights, tmp_path):
    (tmp_path / "a_file").write_text("")
    game = open_game(Playing(weights=tiny_weights))
    controls = Controls(game, 4, tmp_path / "a_file")
    obey(controls, down(pygame.K_v))
    game.step(0)
    obey(controls, down(pygame.K_v))
    assert controls.is_error
    controls.saves = tmp_path / "saves"
    game.step(0)
    obey(controls, down(pygame.K_v))
    assert len(read_video(tmp_path / "saves" / "memory-maze-001.mp4")) == 3
    game.close()


def test_a_film_that_can_not_be_written_costs_no_other(run, tmp_path):
    (tmp_path / "saves").write_text("no folder")
    with pytest.raises(OSError, match="saves"):
        run([tap(pygame.K_v), []], record=tmp_path / "game.mp4")
    assert len(read_video(tmp_path / "game.mp4")) == 3


# ---- the display ----


@pytest.mark.parametrize("driver", ["offscreen", "dummy"])
def test_a_display_that_nobody_sees_is_refused_unless_it_was_asked_for(run, monkeypatch, driver):
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(pygame.display, "init", lambda: None)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: driver)
    with pytest.raises(OSError, match=rf"no screen .*'{driver}'.*--web.*ssh -X.*SDL_VIDEODRIVER=dummy"):
        play(Playing(weights=Path("never looked for"), world="memory-maze"))
    monkeypatch.undo()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # a window of the other would end what EGL draws in this process
    assert run([[], []])[0].now.steps == 2


def test_a_machine_without_a_screen_is_told_so_by_the_command_line(tiny_weights):
    hidden = {name: value for name, value in os.environ.items() if name not in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")}
    for chosen in ({}, {"SDL_VIDEODRIVER": "x11"}):
        command = [sys.executable, "-m", "lssvwm_gym.cli", "play", "memory-maze", "--weights", str(tiny_weights)]
        done = subprocess.run(command, env=hidden | chosen, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("lssvwm-gym play: no screen to open a window on")


# ---- policies ----


def test_a_policy_steers_until_a_key_is_held_and_gives_the_wheel_back(run, actions):
    _, seen = run([[], [], [down(A)], [], [up(A), *tap(pygame.K_t)], [], tap(pygame.K_t)], policy="wander")
    assert actions[2:4] == [2, 2]
    assert actions[4:6] == [0, 0]
    assert [controls.game.policy_acts for controls in seen.all_controls][-1]


@pytest.mark.parametrize("world", ["memory-maze", "minecraft"])
@pytest.mark.parametrize("policy", ["random", "wander"])
def test_policies_that_are_there_know_every_world(world, policy, tiny_weights, tiny_minecraft):
    weights = tiny_minecraft if world == "minecraft" else tiny_weights
    game = open_game(Playing(world=world, weights=weights, profile="fast", policy=policy, seed=0))
    taken = {game.policy_action() for _ in range(100)}
    assert len(taken) > 3
    assert taken <= set(range(len(WORLDS[world].actions)))
    game.close()


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_policy.py").write_text(
        "def turn(dream, argument, seed):\n"
        "    return lambda snapshot: int(argument or 3)\n"
        "def fails(dream, argument, seed):\n"
        "    def act(snapshot):\n"
        "        raise RuntimeError('it is lost')\n"
        "    return act\n"
        "def nothing(dream, argument, seed):\n"
        "    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_policy", None)


@pytest.mark.usefixtures("own_module")
def test_a_policy_of_ones_own_is_found_in_the_current_folder(run, actions):
    run([[], []], policy="own_policy:turn")
    run([[], []], policy="own_policy:turn:2")
    assert actions[0] == 3
    assert actions[-1] == 2


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(("policy", "said"), [("fails", "RuntimeError: it is lost"), ("turn:77", "the policy chose 77")])
def test_a_policy_that_fails_leaves_the_wheel_to_the_player(run, policy, said):
    game, seen = run([[], [], []], policy=f"own_policy:{policy}")
    assert game.now.steps == 3
    assert said in seen.messages[1][0]
    assert not game.policy_acts


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("nobody", "a policy is random, wander, or module:attribute"),
        ("runs/policy.safetensors", "not 'runs/policy.safetensors'"),
        ("no_such_module:act", "no module named 'no_such_module'"),
        ("own_policy:act", "own_policy has no 'act'"),
        ("own_policy:nothing", "opened 7"),
    ],
)
def test_a_policy_that_is_none_is_refused(tiny_weights, policy, said):
    with pytest.raises(ValueError, match=said):
        play(Playing(weights=tiny_weights, policy=policy))


def test_a_policy_that_learned_in_dreams_takes_the_wheel(run, tiny_weights, tmp_path):
    from agents.policies import Policy, PolicyConfig, save_policy

    config = PolicyConfig("memory-maze", "features", (256,), 6, hidden=8)
    save_policy(tmp_path / "policy.safetensors", Policy(config), {})
    game, seen = run([[], [], []], policy=f"agents.agent:from_file:{tmp_path / 'policy.safetensors'}")
    assert game.policy_acts
    assert not any(is_error for _, is_error in seen.messages)
    with pytest.raises(ValueError, match="needs the policy's file"):
        play(Playing(weights=tiny_weights, policy="agents.agent:from_file"))


# ---- the screen ----


def test_the_map_has_ahead_up_and_left_left():
    origin, ahead, left = on_map(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), size=100)[0]
    assert ahead[1] < origin[1]
    assert left[0] < origin[0]
    assert (on_map(np.random.default_rng(0).normal(size=(50, 2)) * 30, size=100)[0] // 100 == 0).all()


def test_the_window_shows_the_frame_and_what_is_known(run):
    _, seen = run([], seed=1, scale=8)
    assert np.array_equal(seen.screens[-1][30 : 30 + 512, :512], enlarged(seen.snapshots[-1].frame, 8))
    assert len(np.unique(seen.screens[-1][:, 512:].reshape(-1, 3), axis=0)) > 10  # text and map beside it


def test_help_marks_and_errors_are_on_the_screen(run, tmp_path):
    _, seen = run([tap(pygame.K_p), [], tap(pygame.K_h), tap(pygame.K_h), tap(pygame.K_m), [dropped(tmp_path / "x.safetensors")]])
    plain, helped, unhelped, marked, wrong = seen.screens[2:7]
    assert (plain != helped).any(-1).mean() > 0.2
    assert np.array_equal(plain, unhelped)
    assert not np.array_equal(marked, unhelped)
    red = (wrong == (255, 104, 96)).all(-1)
    assert red.any()
    assert not (marked == (255, 104, 96)).all(-1)[:, : red.shape[1] // 2].any()


def test_minecraft_shows_what_is_carried(run, tiny_minecraft):
    game, seen = run([[], []], world="minecraft", weights=tiny_minecraft, scale=4)
    assert "inventory" in game.now.info
    before, after = seen.screens[0][:, 256:], seen.screens[-1][:, 256:]
    assert before.shape == after.shape
    assert np.array_equal(seen.screens[-1][30:286, :256], enlarged(seen.snapshots[-1].frame, 4))


# ---- what is refused, and others' players ----


@pytest.mark.parametrize(
    "wrong",
    [
        {"world": "mars"},
        {"record": Path("walk.avi")},
        {"fps": 0.0},
        {"scale": 0},
        {"rewind_mb": -1},
        {"load": Path("a"), "replay": Path("b")},
    ],
)
def test_what_can_not_be_played_is_refused_first(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match="both" if name == "load" else str(value)):
        play(Playing(**wrong))


@pytest.mark.filterwarnings("ignore:.*matplotlib is not installed")  # its plots are not used here
@pytest.mark.parametrize("world", ["memory-maze", "minecraft"])
def test_gymnasiums_own_player_works(world, tiny_weights, tiny_minecraft, actions, monkeypatch):
    from gymnasium.utils.play import play as gymnasium_play

    weights = tiny_minecraft if world == "minecraft" else tiny_weights
    env = gymnasium.make(WORLDS[world].id, weights=weights, profile="fast", render_mode="rgb_array")
    script = [[down(W)], [up(W), down(A)], [pygame.event.Event(pygame.QUIT)]]
    observations = []
    monkeypatch.setattr(pygame.event, "get", lambda: script.pop(0))
    gymnasium_play(env, fps=1000, zoom=4, seed=0, callback=lambda before, after, *_: observations.append(after))
    keys = WORLDS[world].keys
    assert {keys["w"], keys["a"]} <= set(actions)
    assert all(env.observation_space.contains(observation) for observation in observations)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "A.GIF"])
def test_movies_of_both_kinds(tmp_path, name):
    write_movie(tmp_path / name, np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8), fps=4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_movie_has_frames(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_movie(tmp_path / "a.gif", np.zeros((0, 16, 16, 3), np.uint8), fps=4)
