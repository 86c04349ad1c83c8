"""What all tests share: one thread a process, no screen, the same seeds, and a reason where a simulator is missing."""

from __future__ import annotations

import os

# Before torch, pygame or MuJoCo are imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than free cores make small models many times slower
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import functools
import importlib.util
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tiny random weights; see tiny_world.py. The model is loaded once for all tests, and none may leave it changed."""
    from tiny_world import write_tiny_weights

    from lssvwm_gym.checkpoints.checkpoint import load_weights, read_weights

    folder = write_tiny_weights(tmp_path_factory.mktemp("weights"))
    yield folder
    mine, written = load_weights(folder).world_model.state_dict(), read_weights(folder).world_model.state_dict()
    changed = [name for name in written if not (mine[name] == written[name]).all()]
    assert not changed, f"a test has changed {changed} in the model that all tests of this process share"


@pytest.fixture
def stopped_dream(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`lssvwm_gym.own_world.dream`, stopped by Ctrl-C when the world model is to be trained."""
    from lssvwm_gym.own_world import dream

    def stop(settings: Any) -> None:
        raise KeyboardInterrupt

    def stopped(run: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["lssvwm_gym.own_world.stages"], "train_world", stop)
            with pytest.raises(KeyboardInterrupt):
                dream(run)

    return stopped


@pytest.fixture(scope="session")
def luanti() -> None:
    """What can't be tested without the block world: skipped, with the reason."""
    from lssvwm_gym.real_envs import SimulatorUnavailable
    from lssvwm_gym.real_envs.luanti.programs import find_programs

    try:
        find_programs()
    except SimulatorUnavailable as error:
        pytest.skip(str(error))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("simulator") and (missing := _what_the_simulator_lacks()):
        pytest.skip(missing)


@functools.cache
def _what_the_simulator_lacks() -> str:
    """Empty where MuJoCo can draw. Tried in a process of its own, because a failing renderer may take the process with it."""
    for name in ("mujoco", "dm_control", "memory_maze"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install 'lssvwm_gym[memory-maze]'"
    draw = [sys.executable, "-c", "import mujoco; mujoco.GLContext(16, 16).make_current()"]
    tried = subprocess.run(draw, capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return ""
    said = tried.stderr.strip().splitlines()[-1:] or [f"exit status {tried.returncode}"]
    return f"MuJoCo cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']} ({said[0]}): on Debian, install libegl1 and libgl1-mesa-dri"
