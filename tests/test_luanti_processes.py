"""The block world's processes: each ends with whoever started it, however that came about, and leaves no file behind.

`LUANTI_ROUNDS=20` plays more rounds of killing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from experiments.luanti_expert import FORWARD, LEFT, NOOP, RIGHT
from lssvwm_gym.data.collect import Collecting, collect
from lssvwm_gym.data.episode import read_episode
from lssvwm_gym.real_envs import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.real_envs.luanti import LuantiEnv
from lssvwm_gym.real_envs.luanti.client import KeptFolder

ROUNDS = int(os.environ.get("LUANTI_ROUNDS", "2"))
SECONDS_TO_VANISH = 15.0


def processes(env: LuantiEnv) -> list[int]:
    """Process ids of an env's client and X server."""
    return [process.pid for process in env._client.processes]


def is_alive(pid: int) -> bool:
    """Whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int], folder: Path) -> None:
    end = time.monotonic() + SECONDS_TO_VANISH
    while any(map(is_alive, pids)) or folder.exists():
        assert time.monotonic() < end, f"left over: {[pid for pid in pids if is_alive(pid)]}, {folder} exists: {folder.exists()}"
        time.sleep(0.05)


def test_a_killed_client_is_replaced(luanti, caplog):
    env = LuantiEnv(max_episode_steps=10)
    for round in range(ROUNDS):
        env.reset(seed=round)
        old, folder = processes(env), env._client.folder
        os.kill(old[1], signal.SIGKILL)
        with pytest.raises(SimulatorDied, match="minetest ended with exit code -9"):
            env.step(FORWARD)
        wait_until_gone(old, folder)
        with pytest.raises(ResetNeeded):
            env.step(FORWARD)
    env.reset(seed=0)
    os.kill(processes(env)[1], signal.SIGKILL)
    env.reset(seed=1)
    assert "started again" in caplog.text
    assert env.step(FORWARD)[0]["image"].any()
    last, folder = processes(env), env._client.folder
    env.close()
    env.close()
    wait_until_gone(last, folder)


def test_a_missing_renderer_is_named(luanti, monkeypatch):
    monkeypatch.setenv("LIBGL_DRIVERS_PATH", "/nowhere")
    with pytest.raises(SimulatorUnavailable, match="apt-get install libgl1-mesa-dri"):
        LuantiEnv().reset()


def test_a_lost_env_ends_its_processes(luanti):
    env = LuantiEnv()
    env.reset(seed=0)
    pids, folder = processes(env), env._client.folder
    del env
    wait_until_gone(pids, folder)


OWNER = """
import os, signal, sys, time
from lssvwm_gym.real_envs.luanti import LuantiEnv
env = LuantiEnv()
env.reset(seed=0)
print(*(process.pid for process in env._client.processes), env._client.folder, flush=True)
{end}
"""


@pytest.mark.usefixtures("luanti")
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)", "sys.exit()", "os._exit(1)"]
)
def test_no_process_outlives_its_owner(end):
    for _ in range(ROUNDS if "SIGKILL" in end else 1):
        done = subprocess.run([sys.executable, "-c", OWNER.format(end=end)], capture_output=True, text=True, check=False)
        *pids, folder = done.stdout.split()
        assert len(pids) == 2, done.stderr
        wait_until_gone([int(pid) for pid in pids], Path(folder))
        assert "Traceback" not in done.stderr


KILLED_BEFORE = """
import os, signal
from pathlib import Path
from lssvwm_gym.real_envs.luanti import LuantiEnv, client

def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{step} = dies
LuantiEnv().reset()
"""


@pytest.mark.usefixtures("luanti")
@pytest.mark.parametrize(
    "step", ["client.Path", "Path.symlink_to", "client._furnish", "client.Client._start_client", "client.Client._hear"]
)
def test_nothing_is_left_of_an_owner_killed_while_it_starts(step, tmp_path):
    code = KILLED_BEFORE.format(step=step)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_empty(tmp_path)


@pytest.mark.usefixtures("luanti")
def test_nothing_is_left_of_an_owner_killed_at_any_moment(tmp_path):
    code = "from lssvwm_gym.real_envs.luanti import LuantiEnv; env = LuantiEnv(); print(flush=True); env.reset()"
    for round in range(ROUNDS):
        owner = [sys.executable, "-c", code]
        with subprocess.Popen(
            owner, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(tmp_path)}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.2 + 1.3 * round / ROUNDS)
            process.kill()
        wait_until_empty(tmp_path)


def test_a_folder_stays_for_as_long_as_somebody_works_in_it(tmp_path):
    code = """
import subprocess
from lssvwm_gym.real_envs.luanti.client import KeptFolder
kept = KeptFolder()
subprocess.Popen(["sleep", "1"], pass_fds=[kept.descriptor], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(kept.path)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path
    assert folder.is_dir()
    (folder / "in it").mkdir()
    wait_until_empty(tmp_path)


def test_a_folder_that_cannot_be_made_names_what_can_be_done(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError, match=r"needs a temporary folder, .*missing.*TMPDIR can name another"):
        KeptFolder()


def wait_until_empty(folder: Path) -> None:
    """Wait until there is nothing in a folder, and no process that works in it."""
    end = time.monotonic() + SECONDS_TO_VANISH
    while any(folder.iterdir()) or working_in(folder):
        assert time.monotonic() < end, f"left over: {list(folder.iterdir())}, {working_in(folder)}"
        time.sleep(0.05)


def working_in(folder: Path) -> list[str]:
    """Names of processes whose working directory is, or was, inside of a folder."""
    names = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if os.readlink(process / "cwd").startswith(f"{folder}/"):
                names.append((process / "comm").read_text().strip())
    return names


def children(of: int) -> list[int]:
    """Process ids of all descendants of a process."""
    direct = [int(pid) for task in Path(f"/proc/{of}/task").glob("*/children") for pid in task.read_text().split()]
    return direct + [pid for child in direct for pid in children(child)]


COLLECTION = """
import sys
from pathlib import Path
from lssvwm_gym.data.collect import Collecting, collect

if __name__ == "__main__":
    collect(Collecting("luanti", Path(sys.argv[1]), episodes=40, workers=2, steps=8))
"""


def test_a_killed_collection_leaves_whole_episodes_and_no_process(luanti, tmp_path):
    code, out = tmp_path / "collecting.py", tmp_path / "out"
    code.write_text(COLLECTION)
    with subprocess.Popen([sys.executable, str(code), str(out)], stderr=subprocess.DEVNULL, cwd=Path(__file__).parent.parent) as process:
        while len(list(out.glob("*.npz"))) < 2 and process.poll() is None:
            time.sleep(0.05)
        pids = children(process.pid)
        process.kill()
    assert len(pids) >= 6, "two workers, each with a client and an X server"
    wait_until_gone(pids, tmp_path / "nothing")
    whole = sorted(path.stem for path in out.glob("*.npz"))
    for stem in whole:
        assert len(read_episode(out / stem)) == 9
    collected = collect(Collecting("luanti", out, episodes=int(whole[-1]) + 1, workers=1, steps=8))
    assert [f"{seed:06d}" for seed in collected.skipped] == whole
    assert not collected.failed
    assert not list(out.glob(".*"))


def test_two_envs_start_at_once_and_play_side_by_side(luanti):
    envs = [LuantiEnv(), LuantiEnv()]
    with ThreadPoolExecutor(2) as pool:
        starts = list(pool.map(lambda env: env.reset(seed=1)[1]["pos"], envs))
    np.testing.assert_allclose(*starts, atol=0.02)
    left, right = (env.step(action)[-1]["yaw"] for env, action in zip(envs, (LEFT, RIGHT), strict=True))
    assert np.degrees(left - right) % 360 == pytest.approx(30, abs=1)
    envs[0].close()
    assert envs[1].step(NOOP)[0]["image"].any()
    envs[1].close()
