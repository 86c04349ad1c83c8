"""What a user writes who checks types: judged by mypy, and run, in test_public_types.py.

Lines that are wrong on purpose name their error, and mypy says so where it doesn't find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import assert_type

import lssvwm_gym
from lssvwm_gym.data.episode import Episode, read_episode, write_episode
from lssvwm_gym.envs import Dream, DreamEnv, DreamVectorEnv, EnvState, open_dream
from lssvwm_gym.envs.sb3 import DreamVecEnv, make_sb3_vec_env
from lssvwm_gym.models.state import DreamState


def use(weights: Path, folder: Path) -> None:
    """A walk through all that a user of dreams needs."""
    use_a_world()
    use_an_env(DreamEnv("memory-maze", "rgb_array", weights=weights, profile="fast"), folder / "moment.safetensors")
    use_a_batch(DreamVectorEnv("memory-maze", 2, weights=str(weights), profile="fast", max_episode_steps=3))
    use_a_dream(open_dream("memory-maze", weights=weights, profile="fast"))
    assert_type(make_sb3_vec_env("memory-maze", 2, weights=weights, profile="fast"), DreamVecEnv)
    use_an_episode(folder / "000001")


def use_a_world() -> None:
    world = lssvwm_gym.WORLDS["memory-maze"]
    assert_type(world, lssvwm_gym.WorldSpec)
    assert_type(world.actions, tuple[str, ...])
    assert_type(world.keys, dict[str, int])
    assert_type(world.weights, Path)
    assert_type(lssvwm_gym.__version__, str)
    if world.fps == 0:
        world.fps = 5  # type: ignore[misc]
        lssvwm_gym.WORLDS[0]  # type: ignore[index]
        lssvwm_gym.register(3)  # type: ignore[arg-type]


def use_an_env(env: DreamEnv, path: Path) -> None:
    _, info = env.reset(seed=3, options={"start": "cold"})
    assert_type(info, dict[str, Any])
    _, reward, terminated, truncated, _ = env.step(1)
    assert_type(reward, float)
    assert_type(terminated, bool)
    assert_type(truncated, bool)
    state = env.clone_state()
    assert_type(state, EnvState)
    assert_type(len(state), int)
    assert_type(env.branch(2, same_noise=True), DreamVectorEnv)
    assert_type(env.render(), np.ndarray | None)
    assert_type(env.get_keys_to_action(), dict[tuple[int, ...], int])
    env.restore_state(state)
    env.save_state(path)
    env.load_state(str(path))
    if reward < 0:
        env.step("left")  # type: ignore[arg-type]
        env.branch("2")  # type: ignore[arg-type]
        env.restore_state(path)  # type: ignore[arg-type]
        env.reset(3)  # type: ignore[call-arg]
        DreamEnv()  # type: ignore[call-arg]
        DreamEnv("memory-maze", profil="fast")  # type: ignore[call-arg]


def use_a_batch(envs: DreamVectorEnv) -> None:
    envs.reset(seed=[1, None])
    _, reward, _, _, info = envs.step(np.array([1, 2]))  # arrays of NumPy or, where asked for, of torch
    assert_type(info, dict[str, Any])
    assert_type(envs.clone_state().rows([0, 0]), EnvState)
    assert_type(envs.num_envs, int)
    if reward[0] < 0:
        envs.reset(seed="3")  # type: ignore[arg-type]
        envs.restore_state(info)  # type: ignore[arg-type]


def use_a_dream(dream: Dream) -> None:
    state = dream.reset(torch.tensor([7, 8]))
    assert_type(state, DreamState)
    frame = dream.frame(state)
    assert_type(frame, torch.Tensor)
    step = dream.step(state, torch.tensor([1, 1]))
    after, reward = step.state, step.reward
    assert_type(after.pose, torch.Tensor)
    assert_type(reward, torch.Tensor)
    assert_type(dream.info(after, step), dict[str, torch.Tensor])
    assert_type(dream.fingerprint, str)
    if len(frame) == 0:
        dream.step(state, 1)  # type: ignore[arg-type]


def use_an_episode(path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    write_episode(path, Episode(frames, np.zeros(3, np.uint8), np.zeros(3, np.float32)), fps=4)
    episode = read_episode(path)
    assert_type(episode, Episode)
    assert_type(episode.frames, np.ndarray)
    assert_type(len(episode), int)
