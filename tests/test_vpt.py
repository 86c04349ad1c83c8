"""Recordings of people who play Minecraft, written as their recorder does: picture and state first, then what mouse and keyboard did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_teco import write_mp4

from lssvwm_gym.data.convert import Converting, convert
from lssvwm_gym.data.convert.human_actions import BUTTONS, SCREEN, action_names, discrete, pressed
from lssvwm_gym.data.convert.vpt import ITEMS, count_items
from lssvwm_gym.data.episode import Episode, EpisodeError, read_episode

NAMES = action_names()
Line = dict[str, Any]
Change = Callable[[list[Line]], None]


def recorded(length: int = 24) -> tuple[np.ndarray, list[Line]]:
    """A world in which W steps a block ahead, the mouse turns, E opens and closes the inventory; the frame shows x, yaw and screen."""
    rng = np.random.default_rng(0)
    frames, lines = [], []
    x, yaw, screen, slot = 0.0, 170.0, False, 0
    for number in range(length):
        frames.append(picture(x, yaw, screen))
        keys = [key for key in ("key.keyboard.w",) if rng.random() < 0.5]
        keys += ["key.keyboard.e"] if number in (8, 12) else []
        dx = (
            float(rng.choice([0, 0, 20, -100])) if not 6 <= number < 14 else 30.0
        )  # degrees: 0, 3, -15; the pointer while there is a screen
        mouse = {"x": 1.0, "y": 2.0, "dx": dx, "dy": 0.0, "buttons": [0] if number > 17 else [], "newButtons": [0] if number == 18 else []}
        state = {"yaw": yaw, "pitch": 30.0, "xpos": x, "ypos": 64.0, "zpos": -3.5, "tick": number, "hotbar": slot}
        inventory = [{"type": "oak_log", "quantity": number}, {"type": "air", "quantity": 0}]
        lines.append(
            {"mouse": mouse, "keyboard": {"keys": keys, "newKeys": [], "chars": ""}, "isGuiOpen": screen, **state, "inventory": inventory}
        )
        if not screen:
            x += "key.keyboard.w" in keys
            yaw += dx * 360 / 2400
        screen ^= "key.keyboard.e" in keys
        slot = 4 if number >= 15 else 0  # by the wheel, after line 15
    frames.append(frames[-1])  # the recorder writes the last picture once more
    return np.stack(frames), lines


def picture(x: float, yaw: float, screen: bool) -> np.ndarray:
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, :80] = int(x) * 10
    frame[:45, 80:] = int(yaw % 360 / 360 * 250)
    frame[45:, 80:] = 200 * screen
    return frame


def write_recording(path: Path, frames: np.ndarray, lines: list[Line]) -> None:
    write_mp4(path.with_suffix(".mp4"), frames)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_recording(tmp_path / "vpt/8.0/cheeky-setter-1a-20220315.mp4", *recorded())
    return tmp_path / "vpt"


def converted(source: Path, change: Change = lambda lines: None, **settings: Any) -> Episode:
    """Convert the recording with changed lines, and read its episode."""
    frames, lines = recorded()
    change(lines)
    write_recording(source / "8.0/cheeky-setter-1a-20220315.mp4", frames, lines)
    assert convert(Converting(source, source.parent / "out", layout="vpt", **{"size": 0, "crf": 0, **settings})) == 1
    return read_episode(source.parent / "out/8_0-cheeky-setter-1a-20220315.npz")


def column(episode: Episode, button: str) -> np.ndarray:
    return episode.extras["buttons"][:, BUTTONS.index(button)]


def test_what_was_done_stands_at_the_frame_that_it_led_to(source):
    episode = converted(source)
    assert len(episode) == 24  # without the repeated last picture
    x = episode.frames[:, 10, 10, 0] / 10.0
    yaw = episode.frames[:, 10, 120, 0] / 250.0 * 360
    seen = episode.extras["screen"]
    np.testing.assert_allclose(x, episode.extras["pos"][:, 0], atol=0.3)  # the state is that of the frame
    np.testing.assert_array_equal(episode.frames[:, 80, 120, 0] > 100, seen)
    steps = column(episode, "forward")[1:] * ~seen[:-1]
    np.testing.assert_allclose(np.diff(x), steps, atol=0.3)  # and what was done led to it
    turns = (np.diff(yaw) + 180) % 360 - 180
    np.testing.assert_allclose(turns, episode.extras["camera"][1:, 1], atol=3)
    assert not episode.extras["buttons"][0].any()
    assert episode.action[0] == 0


def test_ids_follow_from_buttons_and_camera(source):
    episode = converted(source)
    for action, ahead, camera, attack, before, after in zip(
        episode.action[1:],
        column(episode, "forward")[1:],
        episode.extras["camera"][1:, 1],
        column(episode, "attack")[1:],
        episode.extras["screen"][:-1],
        episode.extras["screen"][1:],
        strict=True,
    ):
        turn = {0: "", -15: "turn_left_fast"}.get(round(float(camera)), "turn_right")
        parts = ["forward" * ahead, turn, "attack" * attack]
        assert NAMES[action] == ("screen" if before or after else "+".join(filter(None, parts)) or "none")
    assert episode.action.dtype == np.uint16


def test_frames_with_a_screen_stay_and_are_marked(source):
    episode = converted(source)
    np.testing.assert_array_equal(np.flatnonzero(episode.extras["screen"]), [9, 10, 11, 12])
    np.testing.assert_array_equal(np.flatnonzero(episode.action == SCREEN), [9, 10, 11, 12, 13])  # opens, is open, closes
    assert not episode.extras["camera"][10:14].any()  # the pointer moved, not the view
    assert episode.extras["camera"][9, 1] == pytest.approx(4.5)


def test_state_is_that_of_the_frame(source):
    extras = converted(source).extras
    yaw = np.array([line["yaw"] for line in recorded()[1]])
    np.testing.assert_allclose(np.sin(extras["yaw"]), np.sin(np.pi - np.radians(yaw)), atol=1e-5)
    assert np.abs(extras["yaw"]).max() <= np.pi
    np.testing.assert_allclose(extras["pitch"], np.radians(30), atol=1e-6)
    np.testing.assert_array_equal(extras["pos"][:, 1:], [[64, 3.5]] * 24)
    np.testing.assert_array_equal(extras["inventory"][:, ITEMS.index("log")], np.arange(24))
    assert {name: (array.dtype.name, array.shape[1:]) for name, array in extras.items()} == {
        "buttons": ("uint8", (23,)),
        "camera": ("float32", (2,)),
        "screen": ("bool", ()),
        "hotbar": ("uint8", ()),
        "pos": ("float32", (3,)),
        "yaw": ("float32", ()),
        "pitch": ("float32", ()),
        "inventory": ("int32", (len(ITEMS),)),
    }


@pytest.mark.parametrize(("yaw", "ahead"), [(0, (0, -1)), (90, (-1, 0)), (180, (0, 1)), (-90, (1, 0)), (630, (1, 0))])
def test_ahead_is_to_the_east_and_north(source, yaw, ahead):
    """Minecraft: 0 is south, 90 west, 180 north, -90 east. Turning right is clockwise, so the package's yaw falls."""

    def turn(lines: list[Line]) -> None:
        for line in lines:
            line["yaw"] = yaw
        lines[-1]["yaw"] += 10

    turned = converted(source, turn).extras["yaw"]
    np.testing.assert_allclose((-np.sin(turned[0]), np.cos(turned[0])), ahead, atol=1e-5)
    assert (turned[-1] - turned[0] + np.pi) % (2 * np.pi) - np.pi == pytest.approx(-np.radians(10), abs=1e-5)


def test_a_slot_chosen_by_the_wheel_is_pressed(source):
    episode = converted(source)
    np.testing.assert_array_equal(np.flatnonzero(column(episode, "hotbar.5")), [16])
    np.testing.assert_array_equal(np.flatnonzero(np.diff(episode.extras["hotbar"].astype(int))), [15])


def test_attack_that_is_stuck_from_the_start_is_left_out(source):
    def stick(lines: list[Line]) -> None:
        for line in lines:
            line["mouse"]["buttons"] = [0]
        lines[0]["mouse"]["newButtons"] = [0]

    np.testing.assert_array_equal(np.flatnonzero(column(converted(source, stick), "attack")), np.arange(19, 24))


def test_attack_from_the_start_is_kept_where_it_is_not_stuck(source):
    def hold(lines: list[Line]) -> None:
        lines[0]["mouse"]["buttons"] = [0]

    assert column(converted(source, hold), "attack")[1] == 1


@pytest.mark.parametrize("skip", [2, 3])
def test_skipped_steps_are_summed_up(source, skip):
    whole = converted(source)
    (source.parent / "out").rename(source.parent / "whole")
    few = converted(source, frame_skip=skip)
    steps = (len(whole) - 1) // skip
    assert len(few) == steps + 1
    led = {name: whole.extras[name][1 : 1 + steps * skip].reshape(steps, skip, -1) for name in ("buttons", "camera")}
    np.testing.assert_array_equal(few.extras["buttons"][1:], led["buttons"].max(1))
    np.testing.assert_allclose(few.extras["camera"][1:], led["camera"].sum(1), atol=1e-5)
    np.testing.assert_array_equal(few.extras["pos"], whole.extras["pos"][::skip])
    np.testing.assert_array_equal(few.frames[:, 10, 10], whole.frames[::skip][:, 10, 10])
    touched = np.array([(whole.action[1 + step * skip :][:skip] == SCREEN).any() for step in range(steps)])
    np.testing.assert_array_equal(few.action[1:] == SCREEN, touched)


def test_what_basalt_strips_is_left_out(source):
    def strip(lines: list[Line]) -> None:
        for line in lines:
            for name in ("xpos", "ypos", "zpos", "yaw", "pitch", "inventory", "hotbar", "tick"):
                del line[name]

    assert converted(source, strip).extras.keys() == {"buttons", "camera", "screen"}


def test_a_state_that_only_some_lines_have_is_left_out(source):
    assert "pos" not in converted(source, lambda lines: lines[3].pop("ypos")).extras


def test_a_jump_of_the_pointer_is_no_turn(source):
    def jump(lines: list[Line]) -> None:
        lines[20]["mouse"]["dx"] = 5000.0

    assert converted(source, jump).extras["camera"][21, 1] == 0


def of_line(number: int, **changed: Any) -> Change:
    def change(lines: list[Line]) -> None:
        lines[number] = {name: value for name, value in {**lines[number], **changed}.items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_line(4, keyboard=None), "jsonl: line 5 is not a tick of a recording .*keyboard"),
        (of_line(0, isGuiOpen=None), "jsonl: line 1 is not a tick of a recording .*isGuiOpen"),
        (of_line(2, mouse=[]), "line 3 is not a tick"),
        (of_line(2, hotbar=9), "line 3 is not a tick of a recording .*hotbar must be 0 to 8, got 9"),
        (of_line(2, mouse={"dx": float("nan"), "dy": 0, "buttons": [], "newButtons": []}), "line 3 .*the mouse moved by nan"),
        (lambda lines: lines.clear(), "holds no ticks"),
        (lambda lines: lines.append(lines[-1]), None),  # as many lines as frames: nothing is missing
        (lambda lines: lines.extend(lines[-1:] * 2), "25 frames for 26 lines; take what both have with --cut"),
        (lambda lines: lines.pop(), "25 frames for 23 lines"),
    ],
)
def test_broken_lines_are_refused(source, change, says):
    if says is None:
        assert len(converted(source, change)) == 25
        return
    with pytest.raises(EpisodeError, match=says):
        converted(source, change)
    assert not list((source.parent / "out").glob("*.*4"))


@pytest.mark.parametrize("lines_left", [10, 24])
def test_different_lengths_can_be_cut(source, lines_left):
    def change(lines: list[Line]) -> None:
        lines[:] = (lines * 2)[: lines_left + 4] if lines_left == 24 else lines[:lines_left]

    episode = converted(source, change, cut=True)
    assert len(episode) == min(lines_left, 25) + (lines_left == 24)
    assert len(episode.extras["pos"]) == len(episode)


def test_a_recording_may_be_a_single_tick(source):
    episode = converted(source, lambda lines: lines.__delitem__(slice(1, None)), cut=True, frame_skip=3)
    assert (len(episode), episode.action.tolist(), len(episode.extras["buttons"])) == (1, [0], 1)


@pytest.mark.parametrize("ending", [".mp4", ".jsonl"])
def test_half_of_a_recording_is_named(source, ending):
    (source / f"8.0/cheeky-setter-1a-20220315{ending}").unlink()
    with pytest.raises(EpisodeError, match=rf"20220315\{ending}: no such file; a recording is an mp4 and a jsonl"):
        convert(Converting(source, source.parent / "out", layout="vpt"))


LINES = "8.0/cheeky-setter-1a-20220315.jsonl"


@pytest.mark.parametrize(
    ("damage", "ticks", "noted"),
    [
        (lambda text: text[:-20], 23, "line 24 is not a tick of a recording"),
        (lambda text: text[:-20] + b"\n\n", 23, "line 24 is not a tick of a recording"),
        (lambda text: text + b"\n", 24, "line 25 is empty"),
        (lambda text: text + b"\xff\xfe", 24, "line 25 is not a tick of a recording"),
        (lambda text: b"\xef\xbb\xbf" + text, 24, ""),
    ],
)
def test_broken_lines_at_the_end_are_left_out_with_a_note(source, capsys, damage, ticks, noted):
    lines = source / LINES
    lines.write_bytes(damage(lines.read_bytes()))
    assert convert(Converting(source, source.parent / "out", layout="vpt", size=0)) == 1
    assert len(read_episode(source.parent / "out/8_0-cheeky-setter-1a-20220315.npz")) == ticks
    said = capsys.readouterr().err
    assert noted in said
    assert ("the recording ends before it" in said) == bool(noted)


def test_a_slot_may_be_written_as_a_float(source):
    assert (converted(source, lambda lines: [line.update(hotbar=3.0) for line in lines]).extras["hotbar"] == 3).all()


@pytest.mark.parametrize(
    "change", [of_line(3, hotbar=3.5), of_line(3, inventory=[{"type": "dirt", "quantity": 1e400}]), of_line(3, xpos=10**400)]
)
def test_a_broken_line_within_costs_its_recording_only(source, capsys, change):
    frames, lines = recorded()
    write_recording(source / "8.0/whole.mp4", frames, lines)
    change(lines)
    write_recording(source / LINES, frames, lines)
    assert convert(Converting(source, source.parent / "out", layout="vpt", size=0, skip_broken=True)) == 1
    assert "line 4 is not a tick of a recording" in capsys.readouterr().err


def test_endings_in_capitals_are_found(source):
    for file in (source / "8.0").iterdir():
        file.rename(file.with_suffix(file.suffix.upper()))
    assert convert(Converting(source, source.parent / "out", layout="vpt", size=0)) == 1


def test_cut_videos_are_refused(source):
    video = (source / LINES).with_suffix(".mp4")
    video.write_bytes(video.read_bytes()[:-400])
    with pytest.raises(EpisodeError, match="not a readable video"):
        convert(Converting(source, source.parent / "out", layout="vpt"))


@pytest.mark.parametrize("listed", ["8.0/cheeky-setter-1a-20220315", "8.0/cheeky-setter-1a-20220315.mp4"])
@pytest.mark.parametrize("flat", [False, True])
def test_an_index_chooses(source, listed, flat):
    write_recording(source / "8.0/another.mp4", *recorded())
    if flat:
        for file in (source / "8.0").iterdir():
            file.rename(source / file.name)
    index = source.parent / "index.json"
    index.write_text(json.dumps({"basedir": "somewhere/data/", "relpaths": [listed]}))
    out = source.parent / "out"
    assert convert(Converting(source, out, layout="vpt", index=index)) == 1
    assert [path.name for path in out.glob("*.npz")] == ["8_0-cheeky-setter-1a-20220315.npz"]


def test_what_an_index_lists_and_is_not_there_is_named(source):
    index = source.parent / "index.json"
    index.write_text(json.dumps({"basedir": "somewhere/", "relpaths": ["8.0/cheeky-setter-1a-20220315", "9.0/missing"]}))
    with pytest.raises(EpisodeError, match=r"1 of 2 recordings(.|\n)*missing.mp4: no such file"):
        convert(Converting(source, source.parent / "out", layout="vpt", index=index))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "not an index of recordings"),
        ("[", "not an index of recordings"),
        ('{"relpaths": [3]}', "not an index of recordings"),
        ('{"relpaths": []}', "lists nothing"),
        ('{"relpaths": ["../other/a"]}', "outside of the source"),
        ('{"relpaths": ["/etc/a"]}', "outside of the source"),
    ],
)
def test_an_index_that_is_none_is_refused(source, text, says):
    index = source.parent / "index.json"
    index.write_text(text)
    with pytest.raises(EpisodeError, match=says) as caught:
        convert(Converting(source, source.parent / "out", layout="vpt", index=index))
    assert "index.json" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "buttons", "camera", "name"),
    [
        ([], [], (0, 0), "none"),
        ([], [], (1.4, -1.4), "none"),
        (["w"], [], (0, 1.5), "forward+turn_right"),
        (["w", "space", "left.control"], [0], (-3, -10), "jump_forward+turn_left_fast+look_up+attack"),
        (["w", "s", "a"], [1], (9, 10), "left+turn_right_fast+look_down+use"),
        (["s", "space"], [0, 1, 2], (0, -9.9), "jump+turn_left+attack"),
        (["d", "f3"], [7], (0, 0), "right"),
    ],
)
def test_the_table_of_actions(keys, buttons, camera, name):
    row = pressed([f"key.keyboard.{key}" for key in keys], buttons)
    assert NAMES[discrete(row[None], np.array([camera]), np.array([False]))[0]] == name
    assert discrete(row[None], np.array([camera]), np.array([True]))[0] == SCREEN


def test_every_action_has_a_name_of_its_own():
    assert len(set(NAMES)) == len(NAMES) == SCREEN + 1 == 316
    assert NAMES[0] == "none"
    assert NAMES[1 + 7 * 3 + 35 * 2 + 105] == "forward+turn_right+look_down+attack"


def test_items_are_counted():
    stacks = [("oak_log", 3), ("minecraft:birch_log", 2), ("dark_oak_planks", 4), ("diamond", 1), ("rotten_flesh", 7), ("air", 0)]
    counts = dict(zip(ITEMS, count_items([{"type": kind, "quantity": many} for kind, many in stacks]).tolist(), strict=True))
    assert {name: many for name, many in counts.items() if many} == {"log": 5, "planks": 4, "diamond": 1, "other": 7}
