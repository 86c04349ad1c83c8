"""Killed at any moment, or with a full disk: nothing half-written is read as whole, and the work goes on as if nothing had been.

Six kills of each kind of work by default, `LSSVWM_FUZZ=full` fifty. The work and the killing are in kill_host.py.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_host import EPISODES, TRAINING_STEPS
from test_collect import CLOCK, collect, collecting
from test_episode import an_episode
from test_training import RUN
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights, save_weights
from lssvwm_gym.data.episode import read_episode, write_episode
from lssvwm_gym.io.atomic import renamed_when_whole, replaced_together
from lssvwm_gym.io.tensors import load_tensors, save_tensors
from lssvwm_gym.training.world_model import Trainer

KILLS = 50 if os.environ.get("LSSVWM_FUZZ") == "full" else 6
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tried where a process can fork")


def killed(folder: Path, work: str, kills: int = KILLS) -> dict:
    """Do some work with kills; how it ended."""
    script = Path(__file__).with_name("kill_host.py")
    command = [sys.executable, str(script), str(folder), work, str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, cwd=script.parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, end = map(json.loads, done.stdout.splitlines())
    print(work, end)
    assert end["survived"] >= kills
    return end


@pytest.mark.slow
def test_training_killed_goes_on_with_the_same_curve(tmp_path):
    end = killed(tmp_path, "training")
    assert (end["reached"], end["left"]) == (TRAINING_STEPS, [])
    straight = Trainer(RUN, EPISODES)
    losses = {step: straight.train_step()["denoise"].item() for step in range(1, TRAINING_STEPS + 1)}
    seen = [line.split() for line in (tmp_path / "losses.txt").read_text().splitlines()]
    assert {int(step) for step, _ in seen} == set(losses)
    assert end["midway"] > 0, "nothing was killed after a checkpoint"
    assert [(step, loss) for step, loss in seen if losses[int(step)] != float(loss)] == []
    saved, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    for name, tensor in straight.average.state_dict().items():
        assert torch.equal(saved[f"average.{name}"], tensor), name


@pytest.mark.slow
def test_a_collection_killed_goes_on_with_whole_episodes_only(tmp_path):
    end = killed(tmp_path / "killed", "collecting")
    assert (end["reached"], end["left"]) == (30, [])
    collect(collecting(tmp_path / "straight", episodes=2), CLOCK)
    for name in ("000000", "000001"):
        mine, theirs = (read_episode(tmp_path / folder / name) for folder in ("killed", "straight"))
        assert np.array_equal(mine.action, theirs.action)
        assert np.array_equal(mine.frames, theirs.frames)


@pytest.mark.slow
def test_a_state_saved_over_and_over_is_always_one_of_them(tmp_path):
    end = killed(tmp_path, "states")
    assert (end["reached"], end["left"]) == (60, [])


@pytest.mark.slow
def test_weights_shipped_over_others_are_never_a_mixture(tmp_path):
    end = killed(tmp_path, "shipping")
    assert (end["reached"], end["left"]) == (1, [])


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    names = [f".a.txt.{dead}.part", f".a.txt.{os.getppid()}.part", f".b.txt.{dead}.part", f".a.txt.x{dead}.part"]
    for name in names:
        (tmp_path / name).write_text("half")
    with renamed_when_whole(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "a.txt"])


def write_half(folder: Path) -> None:
    with replaced_together(folder, last="000001.npz") as unfinished:
        (unfinished / "000001.mp4").write_bytes(b"another video")
        raise RuntimeError("stopped")


def test_an_episode_written_over_another_is_never_half_of_each(tmp_path):
    write_episode(tmp_path / "000001", an_episode(0), fps=4, crf=0)
    with pytest.raises(RuntimeError, match="stopped"):
        write_half(tmp_path)
    assert np.array_equal(read_episode(tmp_path / "000001").frames, an_episode(0).frames)
    write_episode(tmp_path / "000001", an_episode(1), fps=4, crf=0)
    assert np.array_equal(read_episode(tmp_path / "000001").frames, an_episode(1).frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.mp4", "000001.npz"]


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """A disk on which nothing fits any more once it is called: every sync of a new file fails, as on a file system that is full."""

    def fill() -> None:
        def no_space(file: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", no_space)

    return fill


def test_a_full_disk_leaves_the_last_good_files(tmp_path, full_disk):
    trainer, saved = Trainer(RUN, EPISODES), tmp_path / "checkpoint.safetensors"
    trainer.train_step()
    trainer.save(saved)
    first = write_tiny_weights(tmp_path / "weights")
    write_episode(tmp_path / "walks/000001", an_episode(0), fps=4, crf=0)
    trainer.train_step()
    full_disk()
    for write in (
        lambda: trainer.save(saved),
        lambda: write_tiny_weights(tmp_path / "weights", seed=9),
        lambda: write_episode(tmp_path / "walks/000001", an_episode(1), fps=4),
    ):
        with pytest.raises(OSError, match="No space left on device"):
            write()
    again = Trainer(RUN, EPISODES)
    again.load(saved)
    assert again.step == 1
    assert load_weights(first).info == {"made_by": "tests"}
    assert np.array_equal(read_episode(tmp_path / "walks/000001").frames, an_episode(0).frames)
    assert not list(tmp_path.rglob(".*"))


FILLING = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.io.tensors import load_tensors, save_tensors
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
noise = np.random.default_rng(0).integers(256, size=(40, 64, 64, 3), dtype=np.uint8)
for write in (
    lambda: save_tensors(folder / "some.safetensors", {"a": torch.zeros(100_000)}, {}),
    lambda: write_episode(folder / "000001", Episode(noise, np.zeros(40, np.uint8), np.zeros(40, np.float32)), 4, 0),
):
    try:
        write()
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_a_file_that_may_grow_no_further_is_an_os_error_and_leaves_the_old_one(tmp_path):
    """As on a full disk, but truly refused by the system in the middle of a write, in Python and in FFmpeg."""
    if not hasattr(resource, "RLIMIT_FSIZE"):
        pytest.skip("no limit of file sizes here")
    save_tensors(tmp_path / "some.safetensors", {"a": torch.ones(3)}, {})
    write_episode(tmp_path / "000001", an_episode(0), fps=4)
    done = subprocess.run([sys.executable, "-c", FILLING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if "Error" in line]) == 2, done.stdout
    assert load_tensors(tmp_path / "some.safetensors")[0]["a"].tolist() == [1, 1, 1]
    assert len(read_episode(tmp_path / "000001")) == len(an_episode(0))
    assert not list(tmp_path.glob(".*"))


def test_weights_replace_weights(tmp_path):
    folder = write_tiny_weights(tmp_path / "weights", seed=1)
    (folder / "README.md").write_text("the card")
    other = load_weights(write_tiny_weights(tmp_path / "other", seed=2))
    save_weights(folder, other)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "contexts.safetensors", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()
