"""What ships: small, whole, dreaming, and what the README says of it is what was measured."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.worlds import WORLDS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("weights", [world.weights for world in WORLDS.values()], ids=lambda folder: folder.name)
def test_weights_are_whole_and_small(weights):
    files = {path.name: path.stat().st_size for path in weights.iterdir()}
    assert files.keys() >= {"config.json", "model.safetensors", "README.md"}
    assert files.keys() & {"contexts.safetensors", "starts.safetensors"}
    assert sum(files.values()) < 20e6


@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_a_dream_begins_like_its_opening_and_reacts_to_actions(world):
    env = gymnasium.make(world.id, observation="image")
    start, _ = env.reset(seed=1)
    assert start.std() > 5
    ends, steps = [], 16 if world.name == "take-cover" else 4  # a step aside shows less than a turn
    for action in (number for number, name in enumerate(world.actions) if name in ("left", "right", "turn_left", "turn_right")):
        env.reset(seed=1)
        for _ in range(steps):
            frame, *_ = env.step(action)
        ends.append(frame)
    assert np.abs(ends[0].astype(int) - ends[1]).mean() > 5  # turning left shows something else than turning right


def test_dreams_continue_a_real_episode_better_than_its_last_frame():
    """Eight dreams from several places, for a dream is a sample where the context has not shown the place: their mean is compared."""
    envs = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 8, profile="fast")
    path = ROOT / "examples" / "memory_maze_real.npz"
    episode = read_episode(path)
    inner = (slice(2, -2), slice(2, -2))
    dreamed, repeated = [], []
    for begin in range(80, 181, 20):
        last, _ = envs.reset(seed=0, options={"episode": str(path), "context_frames": begin})
        for t in range(begin, begin + 10):
            frames, *_ = envs.step(np.full(8, episode.action[t]))
            truth = episode.frames[t][inner].astype(float)
            dreamed.append(np.square(frames.mean(0)[inner] - truth).mean())
            repeated.append(np.square(last[0][inner] - truth).mean())
    assert np.mean(dreamed) < 0.6 * np.mean(repeated)


def test_walls_stop_a_player_in_a_maze_that_is_made_up():
    """A player that only ever goes ahead soon stands still, as in a real maze: no straight way is longer than eight cells."""
    envs = gymnasium.make_vec("LSSVWM-MemoryMaze-v0", 8, profile="balanced")
    envs.reset(seed=1)
    for _ in range(60):
        poses = envs.step(np.ones(8, int))[4]["estimated_pose"]
    before = poses[:, :2]
    after = envs.step(np.ones(8, int))[4]["estimated_pose"][:, :2]
    assert (np.linalg.norm(after - before, axis=1) < 0.05).mean() >= 0.75


def test_looking_up_ends_where_it_ends_in_the_game():
    env = gymnasium.make("LSSVWM-Minecraft-v0", profile="fast", observation="features").unwrapped
    up = env.dream.world.actions.index("look_up")
    for context_id in range(4):  # their first frames are tilted by different angles
        _, info = env.reset(options={"context_id": context_id})
        tilts = [abs(float(info["estimated_pose"][5])), *(abs(float(env.step(up)[4]["estimated_pose"][5])) for _ in range(10))]
        assert tilts[-1] == pytest.approx(np.deg2rad(60), abs=0.02)
        assert max(tilts) < np.deg2rad(60.5)


@pytest.mark.slow
def test_two_thousand_random_steps_stay_finite():
    env = gymnasium.make("LSSVWM-MemoryMaze-v0", profile="fast", max_episode_steps=2001)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2000):
        frame, reward, _, _, info = env.step(env.action_space.sample())
        assert np.isfinite(info["estimated_pose"]).all()
        assert np.isfinite(reward)
    assert 20 < frame.mean() < 200


def test_the_numbers_in_the_readme_are_those_measured():
    checked = subprocess.run(
        [sys.executable, "docs/_scripts/update_numbers.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_games_of_take_cover_end_when_the_health_is_gone():
    envs = gymnasium.make_vec("LSSVWM-TakeCover-v0", 8, profile="fast", device="cpu")
    envs.reset(seed=1)
    rng, ends = np.random.default_rng(0), []
    for _ in range(160):
        observation, reward, terminated, _, info = envs.step(rng.integers(3, size=8))
        assert ((observation["inventory"] > 0) | terminated[:, None]).all()  # with a new one a row goes on
        assert (reward[~terminated] == 4).all()
        ends += [info["final_obs"][row]["inventory"].item() for row in np.flatnonzero(terminated)]
    assert len(ends) >= 3
    assert set(ends) == {0.0}
