"""The public offline Memory Maze set: one npz an episode, with its own keys and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lssvwm_gym.data.convert import Converting, convert, read_public
from lssvwm_gym.data.episode import EpisodeError, read_episode

LENGTH, BALLS = 8, 3


def public_arrays(length: int = LENGTH) -> dict[str, np.ndarray]:
    """What an npz of the set holds, but for the length."""
    rng = np.random.default_rng(0)
    action = rng.integers(0, 6, length)
    turned = rng.uniform(0, 2 * np.pi, length)
    arrays: dict[str, np.ndarray] = {
        "image": np.repeat(rng.integers(0, 256, (length, 1, 1, 3)), 64, axis=1).repeat(64, axis=2).astype(np.uint8),
        "action": np.eye(6)[action],
        "reward": (rng.random(length) < 0.3).astype(np.float64),
        "maze_layout": np.repeat(rng.integers(0, 2, (1, 9, 9), np.uint8), length, axis=0),
        "agent_pos": rng.uniform(0, 9, (length, 2)),
        "agent_dir": np.stack([np.cos(turned), np.sin(turned)], axis=1),
        "targets_pos": np.repeat(rng.uniform(0, 9, (1, BALLS, 2)), length, axis=0),
        "target_color": rng.random((length, 3)),
    }
    arrays["action"][0] = 0  # nothing led to the first image
    arrays["target_pos"] = arrays["targets_pos"][:, 1]
    return arrays | {"target_vec": np.zeros((length, 2)), "targets_vec": np.zeros((length, BALLS, 2))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "public"
    folder.mkdir()
    for name in ("b", "a"):
        np.savez_compressed(folder / f"{name}.npz", **public_arrays())  # type: ignore[arg-type]
    return folder


def change(path: Path, **changed: Any) -> None:
    arrays = {name: array for name, array in (public_arrays() | changed).items() if array is not None}
    np.savez_compressed(path, **arrays)


def test_an_episode_of_the_set_is_read(source):
    episode, there = read_public(source / "a.npz"), public_arrays()
    np.testing.assert_array_equal(episode.frames, there["image"])
    np.testing.assert_array_equal(episode.action[1:], there["action"][1:].argmax(1))
    assert episode.action.dtype == np.uint8
    assert episode.action[0] == 0
    np.testing.assert_array_equal(episode.reward, there["reward"])
    assert episode.extras.keys() == {"maze_layout", "agent_pos", "agent_dir", "targets_pos", "target_pos", "target_color"}
    assert episode.extras["maze_layout"].shape == (9, 9)
    assert episode.extras["targets_pos"].shape == (BALLS, 2)
    assert {array.dtype.name for array in episode.extras.values()} == {"float32", "uint8"}
    np.testing.assert_allclose(episode.extras["agent_pos"], there["agent_pos"], rtol=1e-6)


def test_action_and_reward_stay_at_their_frame(source):
    """The set's action and reward are those that led to the image, like ours: nothing moves."""
    change(source / "a.npz", action=np.eye(6)[[0, 1, 2, 3, 4, 5, 0, 1]], reward=np.arange(8.0))
    episode = read_public(source / "a.npz")
    np.testing.assert_array_equal(episode.action, [0, 1, 2, 3, 4, 5, 0, 1])
    np.testing.assert_array_equal(episode.reward, np.arange(8))


def test_converting_goes_on_where_it_was(source, tmp_path):
    out = tmp_path / "ours"
    convert(Converting(source, out))
    (out / "a.mp4").unlink()
    before = (out / "b.npz").stat().st_mtime_ns
    assert convert(Converting(source, out)) == 1
    assert (out / "b.npz").stat().st_mtime_ns == before
    assert len(read_episode(out / "a")) == LENGTH


def test_one_broken_file_does_not_stop_the_others(source, tmp_path):
    change(source / "a.npz", action=None)
    with pytest.raises(EpisodeError, match=r"1 of 2 recordings can't be converted(.|\n)*a\.npz: .*no array named action"):
        convert(Converting(source, tmp_path / "ours"))
    assert len(read_episode(tmp_path / "ours/b")) == LENGTH
    assert convert(Converting(source, tmp_path / "ours", skip_broken=True)) == 0
    assert not list((tmp_path / "ours").glob("a.*"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"image": None}, "no array named image"),
        ({"action": None, "reward": None}, "no array named action, reward"),
        ({"image": np.zeros((LENGTH, 64, 64, 3), np.float32)}, "frames must be uint8"),
        ({"action": np.zeros(LENGTH, np.uint8)}, r"action must be one-hot \(T, 6\)"),
        ({"action": np.zeros((LENGTH, 6))}, r"action\[1\] must have a single 1"),
        ({"action": np.full((LENGTH, 6), 0.5)}, r"action\[0\] must have a single 1"),
        ({"action": np.eye(6)}, "action has 6 entries for 8 frames"),
        ({"reward": np.full(LENGTH, np.inf)}, "not finite"),
        ({"agent_pos": np.zeros((LENGTH - 1, 2))}, "agent_pos must have an entry for each"),
        ({"maze_layout": np.random.default_rng(0).random((LENGTH, 9, 9))}, "maze_layout changes within"),
        ({"target_color": np.array([{}] * LENGTH, dtype=object)}, "pickle"),
    ],
)
def test_what_is_not_of_the_set_is_refused(source, changed, says):
    change(source / "a.npz", **changed)
    with pytest.raises(EpisodeError, match=says) as caught:
        read_public(source / "a.npz")
    assert "a.npz" in str(caught.value)


def test_folders_must_differ_and_hold_something(source, tmp_path):
    with pytest.raises(EpisodeError, match="different folders"):
        convert(Converting(source, source))
    with pytest.raises(EpisodeError, match="holds no episode"):
        convert(Converting(tmp_path / "nothing", tmp_path / "out"))
