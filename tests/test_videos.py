"""A folder of videos becomes episodes, with actions or without."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lssvwm_gym.data.convert import Converting, convert
from lssvwm_gym.data.convert.videos import frames_a_second
from lssvwm_gym.data.episode import EpisodeError, read_episode, read_video
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


def test_endings_in_capitals_are_read(source, tmp_path):
    (source / "train" / "walk.mp4").rename(source / "train" / "walk.MP4")
    (source / "train" / "walk.CSV").write_text("9\n1\n0\n2\n1\n3\n")
    assert converted(source, tmp_path).action.tolist() == [9, 1, 0, 2, 1, 3]


def test_two_files_of_one_name_are_asked_about(source, tmp_path):
    (source / "train" / "walk.MP4").write_bytes((source / "train" / "walk.mp4").read_bytes())
    with pytest.raises(EpisodeError, match=r"would become the same episode as .*walk.MP4"):
        converted(source, tmp_path)


def corners(height: int = 32, width: int = 64) -> np.ndarray:
    """One frame whose corners are, from the top left clockwise, 0, 80, 160 and 240."""
    frame = np.zeros((height, width, 3), np.uint8)
    for shade, rows, columns in ((80, 0, 1), (160, 1, 1), (240, 1, 0)):
        frame[rows * height // 2 : (rows + 1) * height // 2, columns * width // 2 : (columns + 1) * width // 2] = shade
    return frame


def filmed(path: Path, times: list[int], aspect: Fraction | None = None, matrix: tuple[int, ...] | None = None) -> None:
    """A video of 10 ticks a second, a frame at each of the ticks, brighter by 20 each where it has no corners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "rgb24"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, time in enumerate(times):
            picture = corners() if len(times) == 1 else np.full((32, 64, 3), 20 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if matrix is not None:
        content = path.read_bytes()
        at = content.index(b"tkhd") + 44
        a, b, c, d = (number << 16 for number in matrix)
        path.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[0, 80], [240, 160]]),
        ((0, 1, -1, 0), [[240, 0], [160, 80]]),  # to the right by 90 degrees, as a phone held upright films
        ((0, -1, 1, 0), [[80, 160], [0, 240]]),
        ((-1, 0, 0, -1), [[160, 240], [80, 0]]),
        ((-1, 0, 0, 1), [[80, 0], [160, 240]]),  # mirrored
    ],
)
def test_frames_are_turned_as_the_file_says(tmp_path, matrix, expected):
    filmed(tmp_path / "a.mp4", [0], matrix=matrix)
    frame = read_video(tmp_path / "a.mp4")[0]
    assert frame.shape == ((32, 64, 3) if matrix[0] else (64, 32, 3))
    assert frame[4 :: frame.shape[0] // 2, 4 :: frame.shape[1] // 2, 0].tolist() == expected


def test_frames_have_the_aspect_that_the_file_says(tmp_path):
    for name, aspect, shape in (("wide", Fraction(2), (32, 128, 3)), ("tall", Fraction(1, 2), (64, 64, 3))):
        filmed(tmp_path / f"{name}.mp4", [0], aspect)
        assert read_video(tmp_path / f"{name}.mp4")[0].shape == shape


def test_frames_without_actions_come_at_even_times(tmp_path, capsys):
    filmed(tmp_path / "films" / "train" / "walk.mp4", [0, 1, 2, 6, 7])
    fps = frames_a_second(tmp_path / "films" / "train" / "walk.mp4")
    episode = converted(tmp_path / "films", tmp_path)
    shades = (episode.frames[:, 8, 8, 0] + 10) // 20
    ticks = np.arange(len(shades)) / fps * 10
    assert [int(np.abs(np.array([0, 1, 2, 6, 7]) - tick).argmin()) for tick in ticks] == shades.tolist()
    assert "frames are repeated and left out to make them even" in capsys.readouterr().err


def test_frames_with_actions_stay_and_a_note_says_that_times_are_uneven(tmp_path, capsys):
    filmed(tmp_path / "films" / "train" / "walk.mp4", [0, 1, 2, 6, 7])
    (tmp_path / "films" / "train" / "walk.csv").write_text("0\n" * 5)
    assert len(converted(tmp_path / "films", tmp_path)) == 5
    assert "its actions are taken for steps of one length" in capsys.readouterr().err


def test_even_times_are_left_alone(source, tmp_path, capsys):
    assert len(converted(source, tmp_path)) == FRAMES
    assert "frames are not" not in capsys.readouterr().err


def test_a_video_that_stands_still_for_long_is_refused(tmp_path):
    filmed(tmp_path / "films" / "walk.mp4", [0, 1, 10**6])
    with pytest.raises(EpisodeError, match=r"frame 2 is shown 99999\.9 s after the one before it"):
        convert(Converting(tmp_path / "films", tmp_path / "out", "videos"))


def test_only_mp4_is_read(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.webm").write_bytes(b"")
    with pytest.raises(EpisodeError, match=r"only mp4 is read; `ffmpeg -i a.webm a.mp4`"):
        convert(Converting(tmp_path / "films", tmp_path / "out", "videos"))
