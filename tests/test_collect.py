"""Collecting with a world of ten lines in place of a simulator: it resumes, and only ever leaves whole episodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lssvwm_gym.data.collect import SOURCES, Collecting, Source, collect, record
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.io.worker_pool import WorkerPoolError

STEPS = 6


class Clock(gym.Env[np.ndarray, int]):
    """Shows how many steps it has made; the reward is the action that was taken."""

    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    action_space: gym.Space = gym.spaces.Discrete(6)
    seconds_a_step = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time, self.seed = 0, seed
        return self._see()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds_a_step)
        self.time += 1
        frame, info = self._see()
        return frame, float(np.max(action)), False, False, info

    def _see(self) -> tuple[np.ndarray, dict[str, Any]]:
        return np.full((32, 32, 3), 10 * self.time, np.uint8), {"time": np.int32(self.time), "seed": np.int64(self.seed or 0)}


class SlowClock(Clock):
    seconds_a_step = 0.05


class BrokenClock(Clock):
    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.seed == 1:
            raise RuntimeError("a spring broke")
        if self.seed == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class StoppingClock(Clock):
    """Says after three steps that the episode is over."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frame, reward, _, _, info = super().step(action)
        return frame, reward, self.time == 3, False, info


def make_clock(collecting: Collecting) -> gym.Env:
    return Clock()


def make_slow_clock(collecting: Collecting) -> gym.Env:
    return SlowClock()


def make_broken_clock(collecting: Collecting) -> gym.Env:
    return BrokenClock()


def refuse(collecting: Collecting) -> gym.Env:
    raise ImportError("install the clock first")


def make_policy(rng: np.random.Generator) -> Any:
    return lambda frame, info: int(rng.integers(1, 6))


CLOCK = Source(make_clock, make_policy, fps=5, every_frame=("time",), once=("seed",))
SLOW_CLOCK = Source(make_slow_clock, make_policy, fps=5)
BROKEN_CLOCK = Source(make_broken_clock, make_policy, fps=5)
NO_CLOCK = Source(refuse, make_policy, fps=5)


def collecting(out: Path, **changed: Any) -> Collecting:
    return Collecting(**{"world": "clock", "out": out, "episodes": 3, "workers": 1, "steps": STEPS} | changed)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_every_entry_belongs_to_its_frame(tmp_path):
    """action[t] led to frame t, reward[t] came with it, and entry 0 is the world after reset."""
    collected = collect(collecting(tmp_path, episodes=2, first_seed=40, workers=2), CLOCK)
    assert (collected.done, collected.skipped, collected.failed, collected.stopped) == ([40, 41], [], {}, False)
    episode = read_episode(tmp_path / "000041")
    assert episode.frames.shape == (STEPS + 1, 32, 32, 3)
    np.testing.assert_allclose(episode.frames[:, 0, 0, 0], 10 * np.arange(STEPS + 1), atol=3)
    np.testing.assert_array_equal(episode.extras["time"], np.arange(STEPS + 1))
    np.testing.assert_array_equal(episode.reward, episode.action)
    assert (episode.action.dtype, episode.reward.dtype) == (np.uint8, np.float32)
    assert episode.action[0] == 0
    assert (episode.action[1:] > 0).all()
    assert episode.extras["seed"] == 41


def test_an_episode_depends_on_its_seed_alone(tmp_path):
    collect(collecting(tmp_path / "together", episodes=3), CLOCK)
    collect(collecting(tmp_path / "alone", episodes=1, first_seed=2), CLOCK)
    together, alone = (read_episode(tmp_path / folder / "000002") for folder in ("together", "alone"))
    np.testing.assert_array_equal(together.action, alone.action)


def test_what_is_there_is_skipped_and_what_is_half_is_done_again(tmp_path):
    collect(collecting(tmp_path), CLOCK)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    (tmp_path / "000001.npz").unlink()
    (tmp_path / ".000001.npz.77.part").write_bytes(b"half")
    (tmp_path / ".000099.npz.77.part").write_bytes(b"another collection's")
    collected = collect(collecting(tmp_path, episodes=4), CLOCK)
    assert (collected.skipped, collected.done) == ([0, 2], [1, 3])
    assert names(tmp_path) == [".000099.npz.77.part"] + [f"{seed:06d}.{ending}" for seed in range(4) for ending in ("mp4", "npz")]
    for name in ("000000.npz", "000000.mp4", "000002.npz"):
        assert (tmp_path / name).stat().st_mtime_ns == before[name]


def test_a_failing_episode_is_shown_and_the_others_go_on(tmp_path, capfd):
    """Seed 1 raises; seed 2 kills its own process. 0, 3 and 4 are collected all the same."""
    collected = collect(collecting(tmp_path, episodes=5), BROKEN_CLOCK)
    assert collected.done == [0, 3, 4]
    assert collected.failed.keys() == {1, 2}
    assert "a spring broke" in collected.failed[1]
    assert "exit code -9" in collected.failed[2]
    shown = capfd.readouterr().err
    assert "seed 1 failed" in shown
    assert "seed 2 failed" in shown
    assert {path.stem for path in episode_paths(tmp_path)} == {"000000", "000003", "000004"}


def test_a_world_that_cannot_start_is_one_error(tmp_path):
    with pytest.raises(WorkerPoolError, match="install the clock first"):
        collect(collecting(tmp_path, episodes=50), NO_CLOCK)


SLOW_COLLECTION = """
import signal
import sys
from pathlib import Path
from test_collect import SLOW_CLOCK, collect, collecting

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun with Ctrl-C ignored
    collected = collect(collecting(Path(sys.argv[1]), episodes=400, workers=2), SLOW_CLOCK)
    print("stopped", collected.stopped, len(collected.done))
"""


@pytest.fixture
def slow_collection(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A collection of 400 episodes that has just got its second, and its folder."""
    script, out, tests = tmp_path / "collecting.py", tmp_path / "out", Path(__file__).parent
    script.write_text(SLOW_COLLECTION)
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C does not reach the tests
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )
    with process:
        while len(list(out.glob("*.npz"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        yield process, out
        process.kill()


def wait_until_quiet(out: Path) -> list[str]:
    """Names in the folder once no worker writes to it any more."""
    before: list[str] = []
    while (now := names(out)) != before:
        before = now
        time.sleep(1.0)
    return now


def test_kill_9_leaves_whole_episodes_and_the_rest_follows(slow_collection):
    process, out = slow_collection
    process.kill()
    process.communicate()
    wait_until_quiet(out)
    whole = episode_paths(out)
    assert 2 <= len(whole) < 400
    for path in whole:
        assert len(read_episode(path)) == STEPS + 1
    collected = collect(collecting(out, episodes=len(whole) + 1), CLOCK)
    assert not collected.failed
    assert not list(out.glob(".*"))


def test_ctrl_c_ends_quietly(slow_collection):
    process, out = slow_collection
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes of the group
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    assert "stopped True" in said
    assert "Traceback" not in complained
    assert not list(out.glob(".*"))
    for path in episode_paths(out):
        assert len(read_episode(path)) == STEPS + 1


def test_an_episode_may_end_early():
    episode = record(StoppingClock(), make_policy(np.random.default_rng(0)), CLOCK, seed=0, steps=STEPS)
    assert len(episode) == 4


def test_actions_may_be_vectors():
    env = Clock()
    env.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    episode = record(env, lambda frame, info: np.array([0.5, -0.5], np.float32), CLOCK, seed=0, steps=3)
    assert (episode.action.shape, episode.action.dtype) == ((4, 2), np.float32)
    assert not episode.action[0].any()


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"workers": 0}, {"steps": -1}, {"first_seed": -1}, {"crf": 52}])
def test_wrong_settings_are_named(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        collecting(tmp_path, **wrong)


def test_an_unknown_world_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no world named 'clock'.*memory-maze"):
        collect(collecting(tmp_path))
    assert "memory-maze" in SOURCES


@pytest.mark.parametrize(
    ("world", "there_is"),
    [
        ("memory-maze", "explorer, seeker, wander, sticky, mixed"),
        ("luanti", "wander, dig, craft, return, recipes, mixed"),
        ("clock", "one without a name"),
    ],
)
def test_an_unknown_player_is_named_beside_those_there_are(tmp_path, world, there_is):
    with pytest.raises(ValueError, match=rf"no player named 'chess' in {world}; there is {there_is}, and module:attribute"):
        collect(collecting(tmp_path / "out", world=world, player="chess"), None if world in SOURCES else CLOCK)
    assert not (tmp_path / "out").exists()


def make_resting(rng: np.random.Generator) -> Any:
    return lambda frame, info: 0


def test_a_player_is_chosen_by_name(tmp_path):
    source = replace(CLOCK, players={"resting": make_resting})
    for player, acts in (("resting", False), (None, True)):
        collect(collecting(tmp_path / str(player), episodes=1, player=player), source)
        assert read_episode(tmp_path / str(player) / "000000").action.any() == acts
