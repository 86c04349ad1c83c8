"""The same seed is the same dream: in another process, after saving and loading there, and, but for a rounding, with more threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lssvwm_gym.envs import DreamVectorEnv

STEPS = 12
DREAM = f"""
import sys
import numpy as np
from lssvwm_gym.envs import DreamVectorEnv
weights, threads, rows, load, out = sys.argv[1:]
import torch
torch.set_num_threads(int(threads))
envs = DreamVectorEnv("memory-maze", int(rows), weights=weights, profile="balanced", device="cpu")
if load:
    seen = [envs.load_state(load)]
else:
    seen = [envs.reset(seed=5)[0]]
for step in range({STEPS}):
    seen.append(envs.step(np.full(int(rows), step % 6))[0])
np.save(out, np.stack(seen))
"""


def dreamed_elsewhere(weights: Path, out: Path, rows: int = 3, threads: int = 1, load: str = "") -> np.ndarray:
    command = [sys.executable, "-c", DREAM, str(weights), str(threads), str(rows), load, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    assert done.returncode == 0, done.stderr
    return np.load(out)


def dreamed_here(envs: DreamVectorEnv, first: np.ndarray) -> np.ndarray:
    return np.stack([first, *(envs.step(np.full(envs.num_envs, step % 6))[0] for step in range(STEPS))])


@pytest.fixture
def envs(tiny_weights):
    return DreamVectorEnv("memory-maze", 3, weights=tiny_weights, profile="balanced", device="cpu")


def test_in_another_process_to_the_bit(envs, tiny_weights, tmp_path):
    assert np.array_equal(dreamed_here(envs, envs.reset(seed=5)[0]), dreamed_elsewhere(tiny_weights, tmp_path / "seen.npy"))


def test_saved_here_and_loaded_in_another_process_to_the_bit(envs, tiny_weights, tmp_path):
    envs.reset(seed=8)
    first = envs.step(np.array([1, 2, 3]))[0]
    envs.save_state(tmp_path / "moment.safetensors")
    here = dreamed_here(envs, first)
    assert np.array_equal(here, dreamed_elsewhere(tiny_weights, tmp_path / "seen.npy", load=str(tmp_path / "moment.safetensors")))


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (8, 1), (3, 2)])
def test_with_other_rows_or_threads_but_for_a_rounding(envs, tiny_weights, tmp_path, rows, threads):
    here = dreamed_here(envs, envs.reset(seed=5)[0])[:, :1].astype(int)
    assert np.abs(here - dreamed_elsewhere(tiny_weights, tmp_path / "seen.npy", rows, threads)[:, :1]).max() <= 1
