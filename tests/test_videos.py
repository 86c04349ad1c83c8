"""A folder of videos becomes episodes, with actions or without."""

from __future__ import annotations

import numpy as np
import pytest

from lssvwm_gym.data.convert import Converting, convert
from lssvwm_gym.data.episode import EpisodeError, read_episode
from lssvwm_gym.io.video import write_video

FRAMES = 6


@pytest.fixture
def source(tmp_path):
    (tmp_path / "films" / "train").mkdir(parents=True)
    frames = np.zeros((FRAMES, 32, 48, 3), np.uint8) + np.arange(0, 120, 20).astype(np.uint8)[:, None, None, None]
    write_video(tmp_path / "films" / "train" / "walk.mp4", frames, fps=9, crf=0)
    return tmp_path / "films"


def converted(source, tmp_path, **settings):
    convert(Converting(source, tmp_path / "out", "videos", size=16, **settings))
    return read_episode(tmp_path / "out" / "train" / "walk")


def test_without_actions_there_is_one_which_is_to_go_on(source, tmp_path):
    episode = converted(source, tmp_path, frame_skip=2)
    assert episode.frames.shape == (3, 16, 16, 3)
    assert episode.frames[:, 0, 0, 0].astype(int) == pytest.approx([0, 40, 80], abs=2)
    assert (episode.action.tolist(), episode.reward.tolist(), episode.pose) == ([0, 0, 0], [0, 0, 0], None)


@pytest.mark.parametrize(("outgoing", "expected"), [(False, [9, 1, 0, 2, 1, 3]), (True, [0, 9, 1, 0, 2, 1])])
def test_actions_in_lines(source, tmp_path, outgoing, expected):
    (source / "train" / "walk.csv").write_text("9\n1\n0\n2\n1\n3\n")
    episode = converted(source, tmp_path, outgoing=outgoing)
    assert episode.action.tolist() == expected
    assert episode.action.dtype.kind == "i"


def test_numbers_as_actions_and_all_else_in_an_npz(source, tmp_path):
    pose = {"agent_pos": np.ones((FRAMES, 2)), "agent_dir": np.tile([1.0, 0.0], (FRAMES, 1))}
    action, reward = np.arange(12.0).reshape(FRAMES, 2), np.ones(FRAMES)
    np.savez(source / "train" / "walk.npz", action=action, reward=reward, **pose)
    episode = converted(source, tmp_path)
    assert (episode.action == action).all()
    assert episode.action.dtype == np.float32
    assert episode.reward.tolist() == [1] * FRAMES
    assert episode.pose is not None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("1\n2\n", "6 frames, but 2 actions"),
        ("a\nb\n", "not lines of numbers"),
        ("-1\n" * 6, "whole numbers from 0"),
        ("nan,1\n" * 6, "not float64"),
    ],
)
def test_what_are_no_actions_is_refused(source, tmp_path, lines, said):
    (source / "train" / "walk.csv").write_text(lines)
    with pytest.raises(EpisodeError, match=said):
        converted(source, tmp_path)


def test_what_cannot_be_told_is_asked(source, tmp_path):
    (source / "train" / "walk.csv").write_text("0\n" * 6)
    with pytest.raises(EpisodeError, match="frames can be skipped only where there are no actions"):
        converted(source, tmp_path / "skipped", frame_skip=2)
    np.savez(source / "train" / "walk.npz", action=np.zeros(6, int))
    with pytest.raises(EpisodeError, match="which one tells its actions"):
        converted(source, tmp_path)
    np.savez(source / "train" / "walk.npz", reward=np.zeros(6))
    (source / "train" / "walk.csv").unlink()
    with pytest.raises(EpisodeError, match="no array named action"):
        converted(source, tmp_path)


def test_only_mp4_is_read(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.webm").write_bytes(b"")
    with pytest.raises(EpisodeError, match=r"only mp4 is read; `ffmpeg -i a.webm a.mp4`"):
        convert(Converting(tmp_path / "films", tmp_path / "out", "videos"))
