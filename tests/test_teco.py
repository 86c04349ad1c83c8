"""TECO's Minecraft and DMLab trajectories, and what every conversion does: alignment, frame skip, resizing, resuming, broken files."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lssvwm_gym.cli import main
from lssvwm_gym.data.convert import Converting, convert
from lssvwm_gym.data.convert.recording import Framing, Recording, framed, write_recording
from lssvwm_gym.data.episode import EpisodeError, episode_paths, read_episode
from lssvwm_gym.io.worker_pool import WorkerPoolError

LENGTH = 13
SHADE = 60  # grey a frame shows for each id of the action that led to it


def some_actions(seed: int, length: int = LENGTH) -> np.ndarray:
    """As the collector writes them: a placeholder, then forward, left or right."""
    return np.concatenate([[0], np.random.default_rng(seed).integers(1, 4, length - 1)]).astype(np.int32)


def pictures(action: np.ndarray, height: int = 128, width: int = 128) -> np.ndarray:
    """Frames that show which action led to them, and their own number by a bar."""
    frames = np.zeros((len(action), height, width, 3), np.uint8) + (SHADE * action).astype(np.uint8)[:, None, None, None]
    for number, frame in enumerate(frames):
        frame[: height // 4, : number * width // len(action)] = 255
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: int = 20, **options: str) -> None:
    """An ordinary H.264 video, with its colours subsampled as public videos have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_trajectory(path: Path, action: np.ndarray) -> None:
    write_mp4(path.with_suffix(".mp4"), pictures(action))
    np.savez_compressed(path.with_suffix(".npz"), actions=action)


@pytest.fixture
def marsh(tmp_path: Path) -> Path:
    folder = tmp_path / "minecraft"
    for seed, name in enumerate(("train/0/a", "train/1/a", "test/0/b.c")):
        write_trajectory(folder / f"{name}.mp4", some_actions(seed))
    return folder


def converting(source: Path, **settings: Any) -> Converting:
    return Converting(source, source.parent / "out", layout="teco-minecraft", **{"crf": 0, **settings})


def shown(frames: np.ndarray) -> np.ndarray:
    """The action that a frame shows."""
    return np.rint(frames[:, -8:, :, 0].mean((1, 2)) / SHADE).astype(int)


def test_a_frame_stays_with_the_action_that_led_to_it(marsh, tmp_path):
    assert convert(converting(marsh)) == 3
    assert [path.name for path in episode_paths(tmp_path / "out/train")] == ["0-a.npz", "1-a.npz"]
    for seed, name in enumerate(("train/0-a", "train/1-a", "test/0-b_c")):
        episode = read_episode(tmp_path / f"out/{name}.npz")
        assert episode.frames.shape == (LENGTH, 64, 64, 3)
        np.testing.assert_array_equal(episode.action, some_actions(seed))
        np.testing.assert_array_equal(shown(episode.frames), episode.action)
        assert episode.action.dtype == np.uint8
        assert not episode.reward.any()


@pytest.mark.parametrize("skip", [2, 3, 5])
def test_skipped_actions_are_digits_of_one(marsh, tmp_path, skip):
    convert(converting(marsh, frame_skip=skip))
    episode, there = read_episode(tmp_path / "out/train/0-a.npz"), some_actions(0)
    assert len(episode) == 1 + (LENGTH - 1) // skip
    np.testing.assert_array_equal(shown(episode.frames), there[::skip])  # a frame shows the last of its actions
    for number, action in enumerate(episode.action[1:].tolist()):
        digits = [(action - 1) // 3**place % 3 + 1 for place in reversed(range(skip))]
        assert digits == there[1 + number * skip :][:skip].tolist()
    assert episode.action[0] == 0
    assert episode.action.max() <= 3**skip


def test_outgoing_actions_move_to_the_frame_they_lead_to(marsh, tmp_path):
    action = some_actions(0)
    for entries in (np.append(action[1:], 1), action[1:]):  # one for every frame, or none for the last
        np.savez_compressed(marsh / "train/0/a.npz", actions=entries)
        convert(converting(marsh / "train/0", outgoing=True))
        episode = read_episode(tmp_path / "minecraft/train/out/a.npz")
        np.testing.assert_array_equal(episode.action, action)
        np.testing.assert_array_equal(shown(episode.frames), action)
        (tmp_path / "minecraft/train/out/a.npz").unlink()


def no_such_key(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), action=some_actions(0))


def shifted(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=some_actions(0)[1:])


def one_too_many(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=some_actions(0, LENGTH + 1))


def unknown_action(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=np.where(np.arange(LENGTH) == 7, 4, some_actions(0)))


def placeholder_inside(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=np.where(np.arange(LENGTH) == 7, 0, some_actions(0)))


def one_hot(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=np.eye(4)[some_actions(0)])


def pickled(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), actions=np.array([{}] * LENGTH, dtype=object))


def no_npz(path: Path) -> None:
    path.with_suffix(".npz").unlink()


def no_mp4(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def cut_in_the_middle(path: Path) -> None:
    """As a download that stopped leaves it, where the table of the frames comes before them."""
    write_mp4(path, pictures(some_actions(0)), movflags="faststart")
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorter(path: Path) -> None:
    write_mp4(path, pictures(some_actions(0))[:-1])


BREAKAGES = {
    no_such_key: "no array named actions; it has action",
    shifted: r"actions\[0\] must be the placeholder 0, got \d; .* --outgoing",
    one_too_many: "14 actions for 13 frames",
    unknown_action: "actions are 1 to 3, got 4 at entry 7",
    placeholder_inside: "actions are 1 to 3, got 0 at entry 7",
    one_hot: r"actions must be integers \(T,\), got float64 \(13, 4\)",
    pickled: "not a readable npz of plain arrays",
    no_npz: "a.npz: no such file",
    no_mp4: "a.mp4: no such file",
    truncated: "not a readable video",
    cut_in_the_middle: r"13 actions for \d+ frames|not a readable video",
    empty: "not a readable video",
    shorter: "13 actions for 12 frames",
}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_broken_trajectory_is_named_and_the_others_are_converted(marsh, tmp_path, breakage):
    breakage(marsh / "train/0/a.mp4")
    with pytest.raises(EpisodeError, match=BREAKAGES[breakage]) as caught:
        convert(converting(marsh))
    assert "1 of 3 recordings can't be converted" in str(caught.value)
    assert "train/0/a." in str(caught.value)
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert [name for name in left if "0-a" in name] == []  # no half of an episode, nothing unfinished
    assert len(left) == 5  # two episodes and the settings


def test_broken_ones_can_be_left_out_with_a_warning(marsh, tmp_path, capsys):
    empty(marsh / "train/0/a.mp4")
    assert convert(converting(marsh, skip_broken=True)) == 2
    assert "left out: " in capsys.readouterr().err
    write_trajectory(marsh / "train/0/a.mp4", some_actions(0))
    assert convert(converting(marsh, skip_broken=True)) == 1  # repaired, and only that is missing


def test_converting_goes_on_where_it_was(marsh, tmp_path):
    assert convert(converting(marsh, episodes=1)) == 1
    (done,) = (tmp_path / "out").rglob("*.npz")
    before = done.stat().st_mtime_ns
    assert convert(converting(marsh)) == 2
    assert done.stat().st_mtime_ns == before
    assert convert(converting(marsh)) == 0


def test_a_half_converted_one_is_converted_again(marsh, tmp_path):
    convert(converting(marsh))
    (tmp_path / "out/train/0-a.npz").unlink()
    assert convert(converting(marsh)) == 1


def test_one_folder_holds_one_kind_of_episode(marsh, tmp_path):
    convert(converting(marsh))
    with pytest.raises(EpisodeError, match="made with frame_skip 1, not 2; convert into another folder"):
        convert(converting(marsh, frame_skip=2))
    settings = tmp_path / "out/converting.json"
    assert json.loads(settings.read_text())["layout"] == "teco-minecraft"
    settings.write_text("[")
    with pytest.raises(EpisodeError, match=r"converting\.json: doesn't say how the episodes there were made"):
        convert(converting(marsh))


def test_several_processes_make_the_same(marsh, tmp_path):
    no_mp4(marsh / "test/0/b.c.mp4")
    assert convert(converting(marsh, workers=2, skip_broken=True)) == 2
    np.testing.assert_array_equal(shown(read_episode(tmp_path / "out/train/1-a.npz").frames), some_actions(1))


def test_what_is_wrong_with_the_disk_ends_all_processes(marsh, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train").write_text("a file where a folder belongs")
    with pytest.raises(WorkerPoolError, match=r"\.mp4: FileExistsError: .*train'$"):
        convert(converting(marsh, workers=2, skip_broken=True))


def test_names_that_would_collide_are_refused(marsh):
    write_trajectory(marsh / "train/0-a.mp4", some_actions(0))
    with pytest.raises(EpisodeError, match="would become the same episode as"):
        convert(converting(marsh))


def test_the_output_lies_outside_of_the_source(marsh, tmp_path):
    with pytest.raises(EpisodeError, match="lies in the source"):
        convert(Converting(marsh, marsh / "out", layout="teco-minecraft"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EpisodeError, match=r"holds no \.mp4 or \.npz"):
        convert(converting(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"frame_skip": 6}, "frame_skip is at most 5 with teco-minecraft: 6 make 729 actions"),
        ({"frame_skip": 0}, "frame_skip must be at least 1"),
        ({"crf": 52}, "crf must be"),
        ({"index": Path("index.json")}, "index can't be set with the layout teco-minecraft"),
        ({"layout": "minari", "cut": True, "frame_skip": 2}, "cut, frame_skip can't be set with the layout minari"),
    ],
)
def test_settings_that_mean_nothing_are_refused(marsh, settings, says):
    with pytest.raises(ValueError, match=says):
        Converting(**{"source": marsh, "out": marsh / "out", "layout": "teco-minecraft", **settings})


def test_the_command_converts_and_says_what_is_broken_in_one_message(marsh, tmp_path):
    arguments = ["convert", "--source", str(marsh), "--out", str(tmp_path / "out"), "--layout", "teco-minecraft", "--frame-skip", "2"]
    main([*arguments, "--size", "32", "--crop"])
    assert read_episode(tmp_path / "out/test/0-b_c.npz").frames.shape == (7, 32, 32, 3)
    (tmp_path / "out/train/0-a.mp4").unlink()
    empty(marsh / "train/0/a.mp4")
    with pytest.raises(SystemExit, match=r"lssvwm-gym convert: 1 of 3 recordings can't be converted"):
        main([*arguments, "--size", "32", "--crop"])


def write_dmlab(path: Path, action: np.ndarray, **changed: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"video": pictures(action, 64, 64), "actions": action, **changed}
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("skip", [1, 2])
def test_dmlab(tmp_path, skip):
    action = np.random.default_rng(0).integers(0, 3, 9)
    write_dmlab(tmp_path / "dmlab/train/7/0.npz", action)
    convert(Converting(tmp_path / "dmlab", tmp_path / "out", layout="teco-dmlab", crf=0, frame_skip=skip))
    episode = read_episode(tmp_path / "out/train/7-0.npz")
    np.testing.assert_array_equal(episode.frames, pictures(action, 64, 64)[::skip])
    np.testing.assert_array_equal(episode.action[1:], action[1:] if skip == 1 else 3 * action[1:-1:2] + action[2::2])
    assert episode.action[0] == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"video": None}, "no array named video; it has actions"),
        ({"actions": None}, "no array named actions; it has video"),
        ({"video": np.zeros((9, 64, 64, 3), np.float32)}, r"video must be uint8 .* got float32"),
        ({"actions": np.zeros(8, int)}, "8 actions for 9 frames"),
        ({"actions": np.full(9, 3)}, "actions are 0 to 2, got 3 at entry 1"),
        ({"video": np.array([{}] * 9, dtype=object)}, "not a readable npz of plain arrays"),
    ],
)
def test_broken_dmlab_is_refused(tmp_path, changed, says):
    write_dmlab(tmp_path / "dmlab/0.npz", np.zeros(9, int), **changed)
    with pytest.raises(EpisodeError, match=says):
        convert(Converting(tmp_path / "dmlab", tmp_path / "out", layout="teco-dmlab"))
    assert not list((tmp_path / "out").glob("0.*"))


def test_a_pixel_becomes_the_mean_of_what_it_covers():
    frame = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    means = frame.reshape(4, 3, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(framed(frame, Framing(size=4)), means, atol=1)  # rounded once along each axis


def test_a_long_video_does_not_fill_the_memory(tmp_path):
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal most
        for number in range(200):
            frame = np.full((48, 64, 3), number, np.uint8)
            alive[:] = [*(one for one in alive if one() is not None), weakref.ref(frame)]
            most = max(most, len(alive))
            yield frame

    def arrays(count: int) -> dict[str, np.ndarray]:
        return {"action": np.zeros(len(range(count)[::3]), np.uint8), "reward": np.zeros(len(range(count)[::3]), np.float32)}

    write_recording(tmp_path / "long", Recording(stream(), 20, arrays), Framing(size=32, skip=3), fps=0, crf=20)
    episode = read_episode(tmp_path / "long.npz")
    np.testing.assert_allclose(episode.frames[:, 0, 0, 0], np.arange(200)[::3], atol=3)
    assert most < 10


def test_a_picture_is_squeezed_or_cropped_into_the_square():
    frame = np.zeros((36, 64, 3), np.uint8)
    frame[:, :14] = 255  # left of the middle square
    assert framed(frame, Framing(size=0)).shape == (36, 64, 3)
    assert framed(frame, Framing(size=0, crop=True)).shape == (36, 36, 3)
    assert framed(frame, Framing(size=8)).shape == (8, 8, 3)
    assert framed(frame, Framing(size=8))[:, 0].min() == 255
    assert framed(frame, Framing(size=8, crop=True)).max() == 0
