"""The real Memory Maze: Gymnasium's contract, time alignment, seeding, and what it says where it can't run.

Tests without the `simulator` mark need neither MuJoCo nor a renderer.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from lssvwm_gym.data.collect import SOURCES, Collecting, collect
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.real_envs import SimulatorUnavailable, memory_maze
from lssvwm_gym.real_envs.experts import maze_explorer
from lssvwm_gym.real_envs.experts.maze_explorer import FORWARD, FORWARD_LEFT, FORWARD_RIGHT, LEFT, RIGHT, MazeExplorer, steer, steps_to
from lssvwm_gym.real_envs.experts.maze_players import MIX, PLAYERS
from lssvwm_gym.real_envs.experts.maze_seeker import MazeSeeker, in_view
from lssvwm_gym.real_envs.memory_maze import EPISODE_STEPS, INFO_KEYS, MemoryMazeEnv

ENTRY_POINT = "lssvwm_gym.real_envs.memory_maze:MemoryMazeEnv"
simulator = pytest.mark.simulator


@pytest.fixture(scope="module")
def env() -> Iterator[MemoryMazeEnv]:
    env = MemoryMazeEnv(render_mode="rgb_array", max_episode_steps=200)
    yield env
    env.close()


def assert_same(first: Any, second: Any) -> None:
    np.testing.assert_equal(first, second)


@simulator
@pytest.mark.slow
def test_gymnasium_finds_nothing_to_complain_about():
    spec = gym.envs.registration.EnvSpec("MemoryMaze9x9-Real-v0", entry_point=ENTRY_POINT, kwargs={"size": 9})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = spec.make().unwrapped
        check_env(env)
    env.close()


@simulator
def test_the_same_seed_is_the_same_episode(env):
    actions = [FORWARD, LEFT, FORWARD_LEFT, RIGHT, FORWARD_RIGHT]
    first, again, other = ([env.reset(seed=seed), *(env.step(action) for action in actions)] for seed in (3, 3, 4))
    assert_same(first, again)
    assert not np.array_equal(first[0][1]["maze_layout"], other[0][1]["maze_layout"])


@simulator
def test_resets_without_a_seed_draw_new_mazes_that_repeat(env):
    def two_mazes() -> list[np.ndarray]:
        return [env.reset(seed=seed)[1]["maze_layout"] for seed in (8, None)]

    first, again = two_mazes(), two_mazes()
    assert_same(first, again)
    assert not np.array_equal(first[1], first[0])


@simulator
def test_a_seed_is_the_maze_that_was_recorded_under_it(env):
    """The published episodes name their seed: these are the walls and balls of one of them, seed 880000."""
    _, info = env.reset(seed=880_000)
    assert_same(info["maze_layout"][0], np.array([0, 0, 0, 0, 0, 0, 1, 1, 1], np.uint8))
    assert_same(info["agent_pos"], np.array([5.5, 6.5], np.float32))
    assert_same(info["target_pos"], np.array([0.5, 7.5], np.float32))


@simulator
@pytest.mark.slow
@pytest.mark.parametrize("size", EPISODE_STEPS)
def test_every_size_has_its_shapes(size):
    env = MemoryMazeEnv(size)
    frame, info = env.reset(seed=0)
    balls = {9: 3, 11: 4, 13: 5, 15: 6}[size]
    shapes = dict(zip(INFO_KEYS, [(2,), (2,), (3,), (2,), (balls, 2), (size, size)], strict=True))
    for seen in (info, env.step(0)[-1]):
        assert {key: array.shape for key, array in seen.items()} == shapes
        assert {key: array.dtype.name for key, array in seen.items()} == {
            key: "uint8" if key == "maze_layout" else "float32" for key in INFO_KEYS
        }
    assert env.observation_space.contains(frame)
    assert env.max_episode_steps == EPISODE_STEPS[size]
    x, y = info["agent_pos"].astype(int)
    assert info["maze_layout"][y, x] == 1
    env.close()


@simulator
def test_an_action_is_felt_at_once_and_the_border_tells_the_target(env):
    _, before = env.reset(seed=1)
    frame, _, _, _, after = env.step(LEFT)
    turned = before["agent_dir"][0] * after["agent_dir"][1] - before["agent_dir"][1] * after["agent_dir"][0]
    assert np.degrees(np.arcsin(turned)) == pytest.approx(14, abs=1.5)  # left is counter-clockwise
    for _ in range(4):
        env.step(0)
    here = env.step(0)[-1]
    there = env.step(FORWARD)[-1]
    step = there["agent_pos"] - here["agent_pos"]
    assert np.linalg.norm(step) > 0.05
    np.testing.assert_allclose(step / np.linalg.norm(step), here["agent_dir"], atol=0.05)
    border = np.concatenate(
        [frame[:2].reshape(-1, 3), frame[-2:].reshape(-1, 3), frame[:, :2].reshape(-1, 3), frame[:, -2:].reshape(-1, 3)]
    )
    assert (np.abs(border - 255 * 0.7 * after["target_color"]) <= 1).all()


@simulator
def test_the_reward_comes_with_the_frame_that_wants_another_ball(env):
    """Seed 0 earns one within the 200 steps; there, and only there, the wanted colour may change."""
    frame, info = env.reset(seed=0)
    policy = MazeExplorer(np.random.default_rng(0))
    rewards = 0.0
    for step in range(1, 201):
        wanted = info["target_color"]
        frame, reward, terminated, truncated, info = env.step(policy(frame, info))
        assert reward in (0.0, 1.0)
        assert (terminated, truncated) == (False, step == 200)
        if reward == 0:
            assert_same(info["target_color"], wanted)
        rewards += reward
    assert rewards > 0
    with pytest.raises(ResetNeeded):
        env.step(0)


@simulator
def test_it_is_memory_maze_to_the_last_bit(env):
    """Up to and beyond the first touch of a ball, against the simulation as memory-maze makes it."""
    frame, info = env.reset(seed=880_000)
    simulation = memory_maze.load_tasks().memory_maze_9x9(seed=880_000, global_observables=True)
    simulation.reset()
    policy, left = MazeExplorer(np.random.default_rng(5)), 200
    while left:
        action = policy(frame, info)
        frame, reward, _, _, info = env.step(action)
        theirs = simulation.step(action)
        assert_same(frame, theirs.observation["image"])
        assert_same(info["target_pos"], theirs.observation["target_pos"].astype(np.float32))
        assert reward == theirs.reward
        left = min(left - 1, 5) if reward else left - 1
    simulation.close()
    assert env._steps_left > 0, "no ball was touched"


@simulator
def test_frames_are_copies_and_render_shows_the_latest(env):
    first, _ = env.reset(seed=2)
    assert_same(env.render(), first)
    kept = first.copy()
    second = env.step(LEFT)[0]
    assert_same(first, kept)
    assert not np.array_equal(first, second)
    assert_same(env.render(), second)


@simulator
@pytest.mark.slow
def test_pictures_may_be_larger():
    env = MemoryMazeEnv(image_size=96)
    assert env.reset(seed=0)[0].shape == (96, 96, 3)
    assert env.render() is None
    env.close()


@simulator
def test_what_is_asked_in_the_wrong_order_or_number_is_refused(env):
    env.close()
    for ask in (env.render, partial(env.step, 0)):
        with pytest.raises(ResetNeeded):
            ask()
    with pytest.raises(ValueError, match="0 to 5, got 6"):
        env.step(6)


@simulator
@pytest.mark.slow
def test_the_maze_is_collected_as_documented(tmp_path):
    collected = collect(Collecting("memory-maze", tmp_path, episodes=1, workers=1, first_seed=5, steps=12))
    assert (collected.done, collected.failed) == ([5], {})
    episode = read_episode(tmp_path / "000005")
    shapes = {key: array.shape for key, array in episode.extras.items()}
    once, frames = {"targets_pos": (3, 2), "maze_layout": (9, 9)}, 13
    every = {"agent_pos": (frames, 2), "agent_dir": (frames, 2), "target_color": (frames, 3), "target_pos": (frames, 2)}
    assert shapes == once | every | {"terminated": (frames,)}
    assert (episode.action.dtype, episode.reward.dtype, episode.frames.shape) == (np.uint8, np.float32, (frames, 64, 64, 3))


@simulator
@pytest.mark.slow
def test_mixed_players_are_the_same_for_one_worker_or_two(tmp_path):
    for workers in (1, 2):
        run = Collecting("memory-maze", tmp_path / str(workers), episodes=3, workers=workers, first_seed=15, steps=20, player="mixed")
        assert not collect(run).failed
    players = set()
    for seed in range(15, 18):
        first, second = (read_episode(tmp_path / folder / f"{seed:06d}") for folder in "12")
        assert_same((first.action, first.reward, first.extras), (second.action, second.reward, second.extras))
        assert np.abs(first.frames - second.frames.astype(float)).mean() < 2  # a process compresses its first video otherwise
        assert {*INFO_KEYS, "policy", "terminated"} == first.extras.keys()
        players.add(str(first.extras["policy"]))
    assert players == MIX.keys()


@simulator
def test_a_player_that_does_not_look_runs_into_walls(env):
    """A step ahead is 0.25 cells; the scripted explorer is blocked in 0.3 % of them."""
    ahead, blocked = 0, 0
    for seed in (1, 2):
        policy = PLAYERS["wander"](np.random.default_rng(seed))
        frame, before = env.reset(seed=seed)
        for _ in range(200):
            action = policy(frame, before)
            frame, _, _, _, info = env.step(action)
            ahead += action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT)
            blocked += (
                action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT) and (info["agent_pos"] - before["agent_pos"]) @ before["agent_dir"] < 0.05
            )
            before = info
    assert 0.2 < blocked / 400 < 0.6
    assert ahead > 200


@simulator
def test_a_renderer_chosen_too_late_is_explained():
    code = f"""
import os, warnings
warnings.simplefilter("ignore")
for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
    os.environ.pop(name, None)
import dm_control.mujoco
from {memory_maze.__name__} import load_tasks
load_tasks()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "set MUJOCO_GL=egl before dm_control is first imported" in done.stderr


@simulator
def test_the_old_gym_is_not_needed():
    code = f"""
import sys
sys.modules["gym"] = None  # as if it were not installed
from {memory_maze.__name__} import load_tasks
load_tasks()
assert "memory_maze" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_loads_no_simulator():
    code = f"import sys, {memory_maze.__name__}; sys.exit(bool({{'mujoco', 'dm_control', 'memory_maze', 'labmaze'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 10}, "size must be one of 9, 11, 13, 15, got 10"),
        ({"render_mode": "human"}, "render_mode must be None or 'rgb_array', got 'human'"),
        ({"image_size": 32}, "image_size must be at least 64 pixels, got 32"),
        ({"max_episode_steps": 1001}, "max_episode_steps must be 1 to 1000 for size 9, got 1001"),
        ({"max_episode_steps": 0}, "max_episode_steps must be 1 to 1000"),
    ],
)
def test_wrong_arguments_are_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        MemoryMazeEnv(**wrong)


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("memory_maze", "dm_control")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("nothing_loaded")
def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SimulatorUnavailable, match=r"pip install lssvwm_gym\[memory-maze\]"):
        MemoryMazeEnv()


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize(
    "error", [ImportError("Cannot initialize a headless EGL display."), AttributeError("'NoneType' object"), OSError()]
)
@pytest.mark.parametrize(
    ("backend", "packages"), [("egl", "libegl1 libgl1-mesa-dri"), ("osmesa", "libosmesa6"), ("nonsense", "libegl1 libgl1-mesa-dri")]
)
def test_a_missing_library_names_its_debian_packages(monkeypatch, error, backend, packages):
    def no_renderer(name: str) -> None:
        raise error

    here = importlib.util.spec_from_loader("memory_maze", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here)
    monkeypatch.setattr(importlib, "import_module", no_renderer)
    monkeypatch.setenv("MUJOCO_GL", backend)
    with pytest.raises(SimulatorUnavailable, match=f"apt-get install {packages}"):
        MemoryMazeEnv()
    assert "memory_maze" not in sys.modules


@pytest.mark.parametrize(
    ("degrees", "action"), [(0, FORWARD), (8, FORWARD), (30, FORWARD_LEFT), (-30, FORWARD_RIGHT), (90, LEFT), (-170, RIGHT)]
)
def test_steering_turns_towards_the_goal(degrees, action):
    heading, angle = np.array([0.6, 0.8]), np.radians(degrees)
    way = np.array([heading[0] * np.cos(angle) - heading[1] * np.sin(angle), heading[0] * np.sin(angle) + heading[1] * np.cos(angle)])
    assert steer(np.array([2.0, 3.0]), heading, np.array([2.0, 3.0]) + way) == action


def test_shortest_paths_go_around_walls():
    layout = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    np.testing.assert_array_equal(steps_to(layout, (0, 0)), [[0, np.inf, 6], [1, np.inf, 5], [2, 3, 4]])


class Walker:
    """The maze's kinematics without its physics: a point that turns and steps at once, and is stopped by walls."""

    def __init__(self) -> None:
        self.layout = np.ones((9, 9), np.uint8)
        self.layout[1::2, 2:7] = 0
        self.position, self.heading, self.balls = np.array([0.5, 0.5]), 0.0, [np.array([8.5, 8.5]), np.array([0.5, 4.5])]

    def info(self) -> dict[str, np.ndarray]:
        heading = np.array([np.cos(self.heading), np.sin(self.heading)])
        return {
            "agent_pos": self.position,
            "agent_dir": heading,
            "target_pos": self.balls[0],
            "targets_pos": np.stack(self.balls),
            "maze_layout": self.layout,
        }

    def step(self, action: int) -> float:
        self.heading += np.radians(maze_explorer.TURN) * ((action in (LEFT, FORWARD_LEFT)) - (action in (RIGHT, FORWARD_RIGHT)))
        if action in (FORWARD, FORWARD_LEFT, FORWARD_RIGHT):
            there = self.position + 0.25 * np.array([np.cos(self.heading), np.sin(self.heading)])
            if (there > 0).all() and (there < 9).all() and self.layout[int(there[1]), int(there[0])]:
                self.position = there
        touched = bool(np.linalg.norm(self.position - self.balls[0]) < 0.4)
        if touched:
            self.balls.reverse()
        return float(touched)


def walk(seed: int, steps: int = 1000) -> tuple[list[int], float, int]:
    walker, policy, actions, rewards, cells = Walker(), MazeExplorer(np.random.default_rng(seed)), [], 0.0, set()
    for _ in range(steps):
        actions.append(policy(np.zeros(0), walker.info()))
        rewards += walker.step(actions[-1])
        cells.add(tuple(walker.position.astype(int)))
    return actions, rewards, len(cells)


@pytest.mark.parametrize("seed", range(5))
def test_the_explorer_sees_most_of_the_maze_and_earns(seed):
    actions, rewards, cells = walk(seed)
    assert rewards >= 2
    assert cells > 35  # of 61
    assert set(actions) >= {FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT}


def test_the_seeker_finds_balls_and_goes_back_to_those_it_saw():
    """It looks for the first and the second; from then on both are known, and it walks from one to the other."""
    walker, seeker = Walker(), MazeSeeker(np.random.default_rng(0))
    touched = [step for step in range(600) if walker.step(seeker(None, walker.info()))]
    between = np.diff(touched)
    assert len(touched) > 8
    assert between[1:].max() < 70  # 12 cells and some turns


def test_the_seeker_knows_nothing_that_was_not_in_view():
    """Where balls are changes nothing before one of them is seen."""
    walkers = Walker(), Walker()
    walkers[0].balls, walkers[1].balls = ([np.array([8.5, y]), np.array([x, 8.5])] for x, y in ((4.5, 8.5), (8.5, 4.5)))
    seekers = [MazeSeeker(np.random.default_rng(0)) for _ in walkers]
    for step in range(200):  # noqa: B007 - how far it came is asked afterwards
        infos = [walker.info() for walker in walkers]
        if any(in_view(info, info["targets_pos"]).any() for info in infos):
            break
        first, second = (seeker(None, info) for seeker, info in zip(seekers, infos, strict=True))
        assert first == second
        for walker in walkers:
            walker.step(first)
    assert 10 < step < 199


def test_what_is_in_view_is_ahead_near_and_not_behind_a_wall():
    layout = np.ones((9, 9), np.uint8)
    layout[4, 4] = 0
    info = {"agent_pos": np.array([2.5, 4.5]), "agent_dir": np.array([1.0, 0.0]), "maze_layout": layout}
    points = np.array([[3.5, 4.5], [5.5, 4.5], [1.5, 4.5], [4.5, 3.4], [2.5, 6.5], [8.6, 4.0], [7.5, 7.5]])
    assert in_view(info, points).tolist() == [True, False, False, True, False, False, True]


def test_a_label_is_what_the_seeker_would_do_along_anybodys_walk():
    """It follows the walk of another player, and at each step says what leads to what it knows of."""
    walker, seeker, explorer = Walker(), MazeSeeker(np.random.default_rng(0)), MazeExplorer(np.random.default_rng(3))
    for _ in range(300):
        seeker(None, walker.info())
        walker.step(explorer(None, walker.info()))
    ball = walker.balls[0]
    for _ in range(80):
        if walker.step(seeker(None, walker.info())):
            return
    raise AssertionError(f"the explorer has passed the ball at {ball} in 300 steps, and the seeker doesn't find it in 80")


def test_the_explorer_repeats_itself_under_its_seed():
    assert walk(0, 300) == walk(0, 300)
    assert walk(0, 300)[0] != walk(1, 300)[0]


def test_the_explorer_is_what_collects_the_maze():
    assert isinstance(SOURCES["memory-maze"].make_policy(np.random.default_rng(0)), MazeExplorer)
    assert PLAYERS["explorer"] is MazeExplorer


@pytest.mark.parametrize("player", ["wander", "sticky"])
def test_a_player_that_does_not_look_acts_alike_whatever_it_sees(player):
    def actions(seed: int, seen: Callable[[int], tuple[Any, Any]]) -> list[int]:
        policy = PLAYERS[player](np.random.default_rng(seed))
        return [policy(*seen(step)) for step in range(500)]

    views = np.random.default_rng(1)
    blind = actions(0, lambda step: (None, None))
    assert blind == actions(0, lambda step: (views.integers(256, size=(64, 64, 3)), {"agent_pos": views.random(2), "maze_layout": None}))
    assert blind != actions(1, lambda step: (None, None))
    assert set(blind) <= set(range(6))
    kept = np.mean(np.equal(blind[1:], blind[:-1]))
    assert 0.6 < kept < 1


def test_wandering_is_running_and_turning():
    policy = PLAYERS["wander"](np.random.default_rng(0))
    actions = np.array([policy(None, {}) for _ in range(3000)])
    assert (actions == FORWARD).mean() > 0.3
    assert abs((actions == LEFT).mean() - (actions == RIGHT).mean()) < 0.15
    assert set(actions) == {FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT}


def test_mixed_is_three_players_by_episode():
    drawn = [PLAYERS["mixed"](np.random.default_rng([seed, 1])).name for seed in range(600)]
    assert {name: drawn.count(name) / 600 for name in MIX} == pytest.approx(MIX, abs=0.06)
