"""Episodes on disk: what is written comes back, and what is broken is refused with one clear error."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lssvwm_gym.data.episode import Episode, EpisodeError, episode_paths, fingerprint, read_episode, write_arrays, write_episode
from lssvwm_gym.io.video import write_video

LENGTH = 12


def an_episode(seed: int = 0, length: int = LENGTH) -> Episode:
    """Smooth moving pictures, which a video codec can be held to."""
    rng = np.random.default_rng(seed)
    x, y, t = np.meshgrid(np.arange(64), np.arange(48), np.arange(length), indexing="ij")
    waves = [127 + 100 * np.sin(x / 9 + t / 3 + phase) * np.cos(y / 7) for phase in rng.uniform(0, 6, 3)]
    frames = np.stack(waves, axis=-1).transpose(2, 1, 0, 3).astype(np.uint8)
    extras = {
        "agent_pos": rng.random((length, 2), np.float32),
        "agent_dir": rng.random((length, 2), np.float32),
        "maze_layout": np.eye(9, dtype=np.uint8),
    }
    return Episode(frames, rng.integers(0, 6, length).astype(np.uint8), rng.random(length, np.float32), extras)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_episode(tmp_path / "000007", an_episode(), fps=4)
    return tmp_path / "000007.npz"


def test_an_episode_comes_back_by_either_of_its_files(path):
    written = an_episode()
    for ending in (".npz", ".mp4"):
        read = read_episode(path.with_suffix(ending))
        np.testing.assert_array_equal(read.action, written.action)
        np.testing.assert_array_equal(read.reward, written.reward)
        assert read.extras.keys() == written.extras.keys()
        for name, array in written.extras.items():
            np.testing.assert_array_equal(read.extras[name], array)
            assert read.extras[name].dtype == array.dtype
        error = read.frames.astype(float) - written.frames
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 38
        assert read.frames.shape == written.frames.shape


def test_no_frame_is_shifted(path):
    """Each frame is nearest to its own original, not to a neighbour's."""
    read, written = read_episode(path).frames.astype(float), an_episode().frames
    distance = np.abs(read[:, None] - written[None]).mean(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(1), np.arange(LENGTH))


def test_crf_0_loses_nothing(tmp_path):
    write_episode(tmp_path / "0", an_episode(), fps=4, crf=0)
    np.testing.assert_array_equal(read_episode(tmp_path / "0").frames, an_episode().frames)


def test_pose_is_position_and_heading():
    episode = an_episode()
    assert episode.pose is not None
    np.testing.assert_array_equal(episode.pose[:, 2:], episode.extras["agent_dir"])
    assert Episode(episode.frames, episode.action, episode.reward).pose is None


def cut_the_npz(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_the_npz(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = os.urandom(40)
    path.write_bytes(content)


def empty_the_npz(path: Path) -> None:
    path.write_bytes(b"")


def pickle_an_array(path: Path) -> None:
    np.savez(path, action=np.zeros(LENGTH, np.uint8), reward=np.array([{"any": "object"}] * LENGTH, dtype=object))


def put_a_bare_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def leave_out_the_reward(path: Path) -> None:
    np.savez(path, action=np.zeros(LENGTH, np.uint8))


def write_a_short_action(path: Path) -> None:
    np.savez(path, action=np.zeros(LENGTH - 1, np.uint8), reward=np.zeros(LENGTH, np.float32))


def write_a_long_reward(path: Path) -> None:
    np.savez(path, action=np.zeros(LENGTH, np.uint8), reward=np.zeros(LENGTH + 1, np.float32))


def write_a_reward_that_is_nan(path: Path) -> None:
    np.savez(path, action=np.zeros(LENGTH, np.uint8), reward=np.full(LENGTH, np.nan, np.float32))


def lose_the_npz(path: Path) -> None:
    path.unlink()


def lose_the_video(path: Path) -> None:
    path.with_suffix(".mp4").unlink()


def cut_the_video(path: Path) -> None:
    video = path.with_suffix(".mp4")
    video.write_bytes(video.read_bytes()[:-2000])


def empty_the_video(path: Path) -> None:
    path.with_suffix(".mp4").write_bytes(b"")


def shorten_the_video(path: Path) -> None:
    write_video(path.with_suffix(".mp4"), an_episode().frames[:-1], fps=4)


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (cut_the_npz, "not a readable npz"),
        (damage_the_npz, "not a readable npz"),
        (empty_the_npz, "not a readable npz"),
        (pickle_an_array, "pickle"),
        (put_a_bare_array, "not a readable npz"),
        (leave_out_the_reward, "no array named reward"),
        (write_a_short_action, "action has 11 entries for 12 frames"),
        (write_a_long_reward, "reward has 13 entries for 12 frames"),
        (write_a_reward_that_is_nan, "reward has entries that are not finite"),
        (lose_the_npz, "npz: no such file"),
        (lose_the_video, "mp4: no such file"),
        (cut_the_video, "not a readable video"),
        (empty_the_video, "not a readable video"),
        (shorten_the_video, "has 12 entries for 11 frames"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_broken_is_refused(path, breakage, says):
    breakage(path)
    with pytest.raises(EpisodeError, match=says) as caught:
        read_episode(path)
    assert "000007" in str(caught.value)


def test_objects_are_not_written(tmp_path):
    with pytest.raises(EpisodeError, match="policy would need pickle"):
        write_arrays(tmp_path / "0", {"action": np.zeros(3), "policy": np.array([None])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8, 3), np.float32), np.zeros((0, 8, 8, 3), np.uint8)])
def test_frames_must_be_rgb_bytes(frames):
    with pytest.raises(EpisodeError, match="frame"):
        Episode(frames, np.zeros(len(frames), np.uint8), np.zeros(len(frames), np.float32))


def test_a_failed_write_leaves_nothing(tmp_path):
    episode = an_episode()
    broken = Episode(episode.frames, episode.action, episode.reward, {"policy": np.array([None])})
    with pytest.raises(EpisodeError):
        write_episode(tmp_path / "0", broken, fps=4)
    assert not list(tmp_path.glob("*.npz"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_lists_whole_episodes_in_order(path):
    folder = path.parent
    write_episode(folder / "000003", an_episode(1), fps=4)
    (folder / "000001.npz").write_bytes(b"its video is missing")
    (folder / ".000009.npz.1.part").write_bytes(b"unfinished")
    assert [found.name for found in episode_paths(folder)] == ["000003.npz", "000007.npz"]


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(EpisodeError, match="holds no episode"):
        episode_paths(tmp_path)
    with pytest.raises(EpisodeError, match="no such folder"):
        episode_paths(tmp_path / "nowhere")


def test_the_fingerprint_is_that_of_names_and_contents(path):
    folder = path.parent
    first = fingerprint(folder)
    assert first == fingerprint(folder)
    assert first["episodes"] == 1

    video = path.with_suffix(".mp4")
    content = video.read_bytes()
    video.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(folder) != first
    video.write_bytes(content)
    assert fingerprint(folder) == first

    for file in (path, video):
        file.rename(file.with_stem("000008"))
    assert fingerprint(folder) != first


def test_an_npz_holds_plain_arrays_only(path):
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            with file.open(name) as array:
                assert not np.lib.format.read_array(array, allow_pickle=False).dtype.hasobject
