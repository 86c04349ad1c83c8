"""Collecting from any environment: what is a picture, what is an action, where poses come from, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from lssvwm_gym.data import collect_gym as module
from lssvwm_gym.data.collect_gym import GymCollecting, GymRecorder, action_names, collect_gym, make, read_collection
from lssvwm_gym.data.episode import EpisodeError, read_episode
from lssvwm_gym.real_envs.experts.maze_players import Sticky


class Corridor(gym.Env[Any, Any]):
    """Walk along a corridor; the floor's colour says how far. Ends at its end, with even seeds after three steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, look: str = "dict", space: str = "discrete", render_mode: str | None = None) -> None:
        picture = Box(0, 255, (20, 30, 3), np.uint8)
        spaces = {"picture": picture, "dict": Dict({"view": picture, "far": Box(0, 9, (1,))}), "vector": Box(0, 9, (1,))}
        spaces |= {"grid": Dict({"image": Box(0, 255, (7, 7, 3), np.uint8)}), "dark": Box(0, 255, (25, 25, 3), np.uint8)}
        self.look, self.render_mode, self.observation_space = look, render_mode, spaces[look]
        self.action_space = {
            "discrete": Discrete(3, start=5),
            "box": Box(np.array([[-1, -np.inf]], np.float32), np.array([[1, np.inf]], np.float32)),
            "many": MultiDiscrete([2, 2]),
        }[space]
        self.seen: list[Any] = []
        self.way = type("Way", (), {"place": np.zeros(3), "turned": 1})()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.way.place, self.far, self.odd = np.zeros(3), 0, bool((seed or 0) % 2)
        return self._look(), {"heading": 90.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action) or int(action) in (5, 6, 7)
        self.seen.append(action)
        self.far += 1
        self.way.place = np.array([self.far, 0, 2.0 * self.far])
        return self._look(), 1.0, not self.odd and self.far == 3, False, {"heading": 90.0}

    def render(self) -> Any:
        return np.full((20, 30, 3), 10 * self.far + 5, np.uint8)

    def _look(self) -> Any:
        view, far = np.full((20, 30, 3), 10 * self.far, np.uint8), np.array([self.far], np.float32)
        codes = {"grid": {"image": view[:7, :7] // 10}, "dark": np.full((25, 25, 3), self.far, np.uint8)}
        return {"picture": view, "dict": {"view": view, "far": far}, "vector": far, **codes}[self.look]


@pytest.fixture(autouse=True)
def corridor():
    gym.register("Corridor-v3", Corridor)
    yield
    gym.registry.pop("Corridor-v3")


def run(tmp_path, **settings) -> GymCollecting:
    return GymCollecting("Corridor-v3", tmp_path / "data", **{"episodes": 2, "steps": 6, "least": 3, "size": 16, **settings})


def recorded(collecting: GymCollecting, seed: int = 1):
    recorder = GymRecorder(collecting)
    recorder(seed)
    recorder.close()
    return read_episode(collecting.plain.path(seed))


def test_pictures_of_observations_or_rendered_ones_become_square(tmp_path):
    for look, first in (("picture", 0), ("dict", 0), ("vector", 5)):
        episode = recorded(run(tmp_path / look, kwargs=json.dumps({"look": look})))
        assert episode.frames.shape == (7, 16, 16, 3)
        assert episode.frames[:, 8, 8, 0].astype(int) == pytest.approx(first + 10 * np.arange(7), abs=3)
    assert recorded(run(tmp_path / "asked", pixels="render")).frames[0, 0, 0, 0] == pytest.approx(5, abs=3)


def test_codes_that_look_like_a_picture_are_not_filmed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "gather", lambda plain, work, frames: work.args[0].pixels)  # other processes don't know this environment
    for look in ("grid", "dark"):
        collecting = run(tmp_path / look, kwargs=json.dumps({"look": look}))
        assert collect_gym(collecting) == "render"
        said = capsys.readouterr().err
        assert "are no pictures" in said
        assert "--pixels observation records them all the same" in said
        assert read_collection(collecting.out).pixels == "render"
    asked = run(tmp_path / "asked", kwargs='{"look": "grid"}', pixels="observation")
    assert recorded(asked).frames.max() < 20


def test_discrete_actions_count_from_zero_and_stand_at_the_frame_that_they_led_to(tmp_path):
    collecting = run(tmp_path)
    recorder = GymRecorder(collecting)
    recorder(1)
    episode, told = read_episode(collecting.plain.path(1)), recorder._env.unwrapped.seen
    assert episode.action.dtype == np.uint8
    assert episode.action[1:].tolist() == [action - 5 for action in told]
    assert episode.reward.tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_boxes_of_actions_are_flat(tmp_path):
    collecting = run(tmp_path, kwargs='{"space": "box"}')
    assert recorded(collecting).action.shape == (7, 2)
    env = make(collecting)
    env.reset(seed=0)
    described = env.described()
    assert (described.low, described.high, described.actions) == ((-1.0, None), (1.0, None), ())
    with pytest.raises(ValueError, match=r"MultiDiscrete.*Discrete actions or a Box of floats"):
        make(run(tmp_path, kwargs='{"space": "many"}'))


def test_poses_come_from_attributes_and_info(tmp_path):
    pose = recorded(run(tmp_path, position="way.place", plane=(1, -3), angle="heading", unit="degrees")).pose
    assert pose is not None
    assert pose[2] == pytest.approx([2, -4, 0, 1], abs=1e-6)
    with pytest.raises(ValueError, match=r"neither info nor the environment has way\.nothing; info has heading"):
        recorded(run(tmp_path, position="way.nothing", angle="heading"))
    assert recorded(run(tmp_path / "untold")).pose is None


def test_an_episode_that_ends_too_early_is_played_anew(tmp_path, monkeypatch):
    assert len(recorded(run(tmp_path, least=5), seed=2)) == 7  # seed 2 alone ends after 4 frames
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(EpisodeError, match=r"the longest has 4 frames, not 5\. Choose a smaller --least"):
        recorded(run(tmp_path / "once", least=5), seed=2)


def test_the_same_seed_gives_the_same_episode(tmp_path):
    first, again = (recorded(run(tmp_path / name)) for name in "ab")
    assert (first.action == again.action).all()


def test_sticky_actions_follow_their_odds():
    policy = Sticky(Discrete(3), (1, 0, 3), 0.5, np.random.default_rng(0))
    actions = np.array([policy(None, {}) for _ in range(2000)])
    assert np.bincount(actions, minlength=3) / 2000 == pytest.approx([0.25, 0, 0.75], abs=0.06)
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(0.5 + 0.5 * 0.625, abs=0.05)


def test_collecting_goes_on_and_refuses_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gather", lambda plain, work, frames: frames)  # other processes don't know this environment
    assert collect_gym(run(tmp_path)) == 7
    assert collect_gym(run(tmp_path, episodes=9)) == 7
    collection = read_collection(tmp_path / "data")
    assert collection is not None
    assert (collection.fps, collection.actions, collection.pixels) == (7, ("0", "1", "2"), "observation")
    with pytest.raises(EpisodeError, match="made with steps 6, not 5; collect into another folder"):
        collect_gym(run(tmp_path, steps=5))


@pytest.mark.parametrize("change", [{"fps": "7"}, {"fps": 0}, {"actions": "abc"}, {"low": ["1"]}, {"more": 1}, {"poses": 1}, None])
def test_what_says_nothing_of_a_collection_is_refused(tmp_path, change):
    env = make(run(tmp_path))
    env.reset(seed=0)
    good = dataclasses.asdict(env.described())
    (tmp_path / "collecting.json").write_text(json.dumps(good))
    assert read_collection(tmp_path) == env.described()
    (tmp_path / "collecting.json").write_text(json.dumps([] if change is None else good | change))
    with pytest.raises(EpisodeError, match="doesn't say how"):
        read_collection(tmp_path)


def test_actions_have_the_names_that_the_environment_gives_them():
    env = Corridor()
    assert action_names(env, 3) == ["0", "1", "2"]
    env.get_action_meanings = lambda: ["LEFT", "RIGHT", "FIRE"]  # type: ignore[attr-defined]
    assert action_names(env, 3) == ["left", "right", "fire"]
    assert action_names(env, 4) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"least": 9}, "an episode of 6 steps has 7 frames: least can't be 9"),
        ({"sticky": 1.0}, "sticky is a chance"),
        ({"odds": (0.0, 0.0)}, "odds are not negative"),
        ({"position": "way.place"}, "give both or none"),
        ({"plane": (0, 1)}, "plane counts from 1"),
        ({"kwargs": "[1, 2]"}, "kwargs must be a JSON object"),
        ({"size": 2}, "size must be at least 8"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"crf": 99}, "crf must be 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, **settings)


def test_what_cannot_be_made_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"Nowhere-v0 can't be made.*[^.]\. --import MODULE"):
        collect_gym(GymCollecting("Nowhere-v0", tmp_path))
    with pytest.raises(ValueError, match="2 odds for 3 actions"):
        collect_gym(run(tmp_path, odds=(1.0, 1.0)))
    with pytest.raises(ValueError, match="0 are uint8 pictures; try --pixels render"):
        collect_gym(run(tmp_path, kwargs='{"look": "vector"}', pixels="observation"))
