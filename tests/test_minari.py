"""Datasets of Minari, written by Minari itself: alignment, spaces, and what can't be an episode."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from lssvwm_gym.data.convert import Converting, convert
from lssvwm_gym.data.episode import Episode, EpisodeError, read_episode

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
pytestmark = [  # the datasets here come from no environment
    pytest.mark.filterwarnings("ignore:`eval_env` is set to None"),
    pytest.mark.filterwarnings("ignore:env_spec is None"),
]

STEPS = 7
PICTURE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
SHADE = 20


def pictures(action: np.ndarray) -> np.ndarray:
    """The first frame is black, every other one shows the action that led to it."""
    shades = np.concatenate([[0], (action + 1) * SHADE]).astype(np.uint8)
    return np.zeros((len(shades), 64, 64, 3), np.uint8) + shades[:, None, None, None]


def discrete_actions(seed: int, start: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(start, start + 5, STEPS)


def write_dataset(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    observations: Any = None,
    actions: Any = None,
    observation_space: spaces.Space = PICTURE,
    action_space: spaces.Space | None = None,
    episodes: int = 2,
    jpeg: bool = False,
) -> Path:
    """A dataset of equal episodes but for the actions, unless those are given."""
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    buffers = []
    for seed in range(episodes):
        taken = discrete_actions(seed) if actions is None else actions
        seen = pictures(taken) if observations is None else observations
        ends = np.arange(len(taken)) == len(taken) - 1
        buffers.append(
            EpisodeBuffer(
                observations=seen if isinstance(seen, dict) else list(seen),
                actions=taken if isinstance(taken, dict) else list(taken),
                rewards=list(np.arange(1.0, len(taken) + 1)),
                terminations=list(ends),
                truncations=list(ends & False),
            )
        )
    minari.create_dataset_from_buffers(
        "maze/test-v0",
        buffers,
        observation_space=observation_space,
        action_space=action_space or spaces.Discrete(5),
        jpeg_encoding=jpeg,
        algorithm_name="none",
        author="us",
        author_email="us@example.com",
        code_permalink="none",
        description="a test",
        requirements=[],
    )
    return folder / "maze/test-v0"


def converted(source: Path, number: int = 0, **settings: Any) -> Episode:
    convert(Converting(source, source.parent / "out", layout="minari", **{"crf": 0, **settings}))
    return read_episode(source.parent / f"out/{number:06d}.npz")


def test_action_and_reward_stand_at_the_frame_that_they_led_to(tmp_path, monkeypatch):
    source = write_dataset(tmp_path, monkeypatch)
    for number in range(2):
        episode = converted(source, number)
        np.testing.assert_array_equal(episode.frames, pictures(discrete_actions(number)))
        np.testing.assert_array_equal(episode.frames[1:, 0, 0, 0], (episode.action[1:] + 1) * SHADE)
        assert (len(episode), episode.action[0], episode.action.dtype) == (STEPS + 1, 0, np.uint8)
        np.testing.assert_array_equal(episode.reward, np.arange(STEPS + 1))
        np.testing.assert_array_equal(np.flatnonzero(episode.extras["terminated"]), [STEPS])
        assert not episode.extras["truncated"].any()
        assert len(episode.extras["truncated"]) == STEPS + 1


def test_the_folder_of_the_data_itself_will_do(tmp_path, monkeypatch):
    assert len(converted(write_dataset(tmp_path, monkeypatch) / "data")) == STEPS + 1


def test_pictures_stored_as_jpeg_come_out(tmp_path, monkeypatch):
    episode = converted(write_dataset(tmp_path, monkeypatch, jpeg=True))
    np.testing.assert_allclose(episode.frames[1:, 32, 32, 0], (episode.action[1:] + 1) * SHADE, atol=3)


def test_actions_are_counted_from_0(tmp_path, monkeypatch):
    actions = discrete_actions(0, start=-2)
    space = spaces.Discrete(5, start=-2)
    episode = converted(write_dataset(tmp_path, monkeypatch, actions=actions, action_space=space, observations=pictures(actions + 2)))
    np.testing.assert_array_equal(episode.action[1:], actions + 2)


def test_continuous_actions(tmp_path, monkeypatch):
    actions = np.random.default_rng(0).random((STEPS, 2)).astype(np.float32)
    space = spaces.Box(0, 1, (2,), np.float32)
    episode = converted(write_dataset(tmp_path, monkeypatch, pictures(np.arange(STEPS)), actions, action_space=space))
    np.testing.assert_array_equal(episode.action, np.concatenate([np.zeros((1, 2)), actions]))
    assert episode.action.dtype == np.float32


TWO_PICTURES = spaces.Dict(
    {
        "view": PICTURE,
        "map": PICTURE,
        "direction": spaces.Discrete(4),
        "action": spaces.Box(0, 1, (2,), np.float32),
        "mission": spaces.Text(9),
    }
)


def two_pictures() -> dict[str, Any]:
    rows = STEPS + 1
    return {
        "view": list(pictures(np.arange(STEPS))),
        "map": list(255 - pictures(np.arange(STEPS))),
        "direction": list(np.arange(rows) % 4),
        "action": list(np.linspace(0, 1, 2 * rows, dtype=np.float32).reshape(rows, 2)),
        "mission": ["go"] * rows,
    }


@pytest.mark.parametrize("images", ["view", "map"])
def test_the_picture_is_chosen_by_name_and_the_rest_comes_along(tmp_path, monkeypatch, images):
    source = write_dataset(tmp_path, monkeypatch, two_pictures(), np.arange(STEPS) % 5, TWO_PICTURES)
    episode = converted(source, images=images)
    np.testing.assert_array_equal(episode.frames, np.stack(two_pictures()[images]))
    np.testing.assert_array_equal(episode.action[1:], np.arange(STEPS) % 5)
    assert episode.extras.keys() == {"direction", "observed_action", "terminated", "truncated"}
    np.testing.assert_array_equal(episode.extras["direction"], np.arange(STEPS + 1) % 4)


@pytest.mark.parametrize(
    ("images", "says"), [("", "which entry is the picture. Choose with --images one of: "), ("depth", "no pictures are named 'depth'")]
)
def test_a_picture_that_is_not_clear_is_asked_for(tmp_path, monkeypatch, images, says):
    source = write_dataset(tmp_path, monkeypatch, two_pictures(), np.arange(STEPS) % 5, TWO_PICTURES)
    with pytest.raises(EpisodeError, match=says) as caught:
        converted(source, images=images)
    assert "map, view" in str(caught.value) or "view, map" in str(caught.value)


def test_the_only_picture_need_not_be_named(tmp_path, monkeypatch):
    space = spaces.Dict({"view": PICTURE, "speed": spaces.Box(0, 1, (1,), np.float32)})
    seen = {"view": list(pictures(np.arange(STEPS))), "speed": list(np.zeros((STEPS + 1, 1), np.float32))}
    assert len(converted(write_dataset(tmp_path, monkeypatch, seen, np.arange(STEPS) % 5, space))) == STEPS + 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            {"observation_space": spaces.Box(0, 1, (3,), np.float32), "observations": np.zeros((STEPS + 1, 3), np.float32)},
            "needed are uint8",
        ),
        ({"action_space": spaces.MultiDiscrete([2, 2]), "actions": np.zeros((STEPS, 2), int)}, "actions are MultiDiscrete"),
    ],
)
def test_other_spaces_are_refused(tmp_path, monkeypatch, kind, says):
    kind = {"observations": pictures(np.arange(STEPS)), **kind}
    with pytest.raises(EpisodeError, match=says):
        converted(write_dataset(tmp_path, monkeypatch, **kind))


def change_data(source: Path, change: Any) -> None:
    with h5py.File(source / "data/main_data.hdf5", "a") as file:
        change(file["episode_0"])


def shorten(name: str) -> Any:
    def change(group: Any) -> None:
        rows = group[name][:-1]
        del group[name]
        group[name] = rows

    return change


def drop(name: str) -> Any:
    def change(group: Any) -> None:
        del group[name]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shorten("observations"), "7 pictures, but 8 of action, 8 of reward"),
        (shorten("actions"), "8 pictures, but 7 of action"),
        (shorten("rewards"), "8 pictures, but 7 of reward"),
        (drop("rewards"), "can't be read"),
        (drop("observations"), "can't be read"),
    ],
)
def test_a_broken_episode_is_named_and_the_others_are_converted(tmp_path, monkeypatch, change, says):
    source = write_dataset(tmp_path, monkeypatch)
    change_data(source, change)
    with pytest.raises(EpisodeError, match=says) as caught:
        converted(source)
    assert "data, episode 0: " in str(caught.value)
    assert len(read_episode(source.parent / "out/000001.npz")) == STEPS + 1
    assert not list((source.parent / "out").glob("000000.*"))


@pytest.mark.parametrize(("shape", "shade"), [((7, 7, 3), 200), ((25, 25, 3), 10)])
def test_codes_that_look_like_a_picture_are_refused_unless_named(tmp_path, monkeypatch, shape, shade):
    codes, space = np.full((STEPS + 1, *shape), shade, np.uint8), spaces.Box(0, 255, shape, np.uint8)
    with pytest.raises(EpisodeError, match=r"but no pictures: .*RGBImgPartialObsWrapper"):
        converted(write_dataset(tmp_path / "plain", monkeypatch, codes, observation_space=space))
    source = write_dataset(tmp_path / "named", monkeypatch, {"image": codes}, observation_space=spaces.Dict({"image": space}))
    assert converted(source, images="image").frames.max() == pytest.approx(shade, abs=2)


def test_a_cut_file_is_refused(tmp_path, monkeypatch):
    source = write_dataset(tmp_path, monkeypatch)
    file = source / "data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(EpisodeError, match=r"can't be read|not a dataset"):
        converted(source)


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(EpisodeError, match="holds no Minari dataset"):
        converted(tmp_path / "nothing")


def test_no_environment_is_run_to_learn_its_spaces(tmp_path, monkeypatch):
    """Without spaces in its description Minari would make the environment that the file names."""
    source = write_dataset(tmp_path, monkeypatch)
    metadata = json.loads((source / "data/metadata.json").read_text())
    del metadata["action_space"]
    metadata["env_spec"] = gym.spec("CartPole-v1").to_json()
    (source / "data/metadata.json").write_text(json.dumps(metadata))
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: pytest.fail("an environment was made"))
    with pytest.raises(EpisodeError, match="doesn't describe its action_space"):
        converted(source)


def test_without_minari_it_says_what_to_install(tmp_path, monkeypatch):
    source = write_dataset(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'lssvwm_gym\[minari\]'"):
        converted(source)
