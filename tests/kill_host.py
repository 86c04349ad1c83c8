"""Works in a process that is killed: `python tests/kill_host.py FOLDER WORK KILLS SEED` prints a JSON line for each kill.

Everything is imported once; then each try is a fork, which goes on in the same folder where the one before was killed. Every other kill
comes at a random moment, the others at a random touch of the file system (opening, renaming, removing), where half a file would show.
After each kill the folder is read as a stranger would read it. After the last one the work is done to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_collect import CLOCK, STEPS, collecting
from test_training import RUN, signalling_episode
from tiny_world import write_tiny_weights

from lssvwm_gym.checkpoints.checkpoint import load_weights, save_weights
from lssvwm_gym.data.collect import Recorder, remove_leftovers
from lssvwm_gym.data.episode import episode_paths, read_episode
from lssvwm_gym.envs import DreamEnv
from lssvwm_gym.io.tensors import load_tensors
from lssvwm_gym.training.world_model import Trainer

EPISODES = [signalling_episode(seed=seed) for seed in range(2)]
TRAINING_STEPS = 40


@dataclass(frozen=True)
class Work:
    """Something that writes files, and what has to be true of them at any time."""

    do: Callable[[Path], None]  # goes on with what is there; ends
    check: Callable[[Path], Any]  # raises where something half-written is read as whole; else says how far it got
    seconds: float  # about how long it takes


def train(folder: Path) -> None:
    """A checkpoint a step, and a line a step with what was lost."""
    trainer, saved = Trainer(RUN, EPISODES), folder / "checkpoint.safetensors"
    if saved.exists():
        trainer.load(saved)
    while trainer.step < TRAINING_STEPS:
        loss = trainer.train_step()["denoise"].item()
        with open(folder / "losses.txt", "a", encoding="utf-8") as file:
            file.write(f"{trainer.step} {loss!r}\n")
        trainer.save(saved)


def check_training(folder: Path) -> int:
    saved = folder / "checkpoint.safetensors"
    if not saved.exists():
        return 0
    trainer = Trainer(RUN, EPISODES)
    trainer.load(saved)
    return trainer.step


def collect(folder: Path) -> None:
    """As `gather` and a worker do, in this process: FFmpeg and NumPy write the same files."""
    settings = collecting(folder, episodes=30)
    remove_leftovers(settings)
    recorder = Recorder(settings, CLOCK)
    for seed in settings.seeds:
        if not all(settings.path(seed).with_suffix(ending).exists() for ending in (".npz", ".mp4")):
            recorder(seed)


def check_collection(folder: Path) -> int:
    if not list(folder.glob("*.npz")):
        return 0
    paths = episode_paths(folder)
    for path in paths:
        episode = read_episode(path)
        assert len(episode) == STEPS + 1
        assert int(episode.extras["seed"]) == int(path.stem)
    return len(paths)


def keep_states(folder: Path) -> None:
    """The same file over and over, each time with a later moment."""
    env, path = dreaming(folder), folder / "moment.safetensors"
    env.reset(seed=0)
    if path.exists():
        env.load_state(path)
    for step in range(env.clone_state().steps[0], 60):
        env.step(step % 6)
        env.save_state(path)


def check_states(folder: Path) -> int:
    path = folder / "moment.safetensors"
    if not path.exists():
        return 0
    env = dreaming(folder)
    shown = env.load_state(path)
    state = env.clone_state()
    straight = dreaming(folder)
    straight.reset(seed=0)
    for step in range(state.steps[0]):
        frame, *_ = straight.step(step % 6)
    assert state.steps[0] == 0 or np.array_equal(frame, shown), "the moment isn't that of a dream without a kill"
    return state.steps[0]


def dreaming(folder: Path) -> DreamEnv:
    return DreamEnv("memory-maze", weights=folder / "weights", profile="fast", device="cpu")


def ship(folder: Path) -> None:
    """Two models, one in the place of the other and back."""
    for number in range(20):
        save_weights(folder / "shipped", load_weights(folder / f"model{number % 2}"))


def check_shipped(folder: Path) -> int:
    if not (folder / "shipped" / "config.json").exists():
        return 0
    files = [load_tensors(folder / "shipped" / f"{name}.safetensors")[0] for name in ("model", "contexts")]
    mark = json.loads((folder / "shipped" / "config.json").read_text(encoding="utf-8"))["world_model"]["actions"]
    for number in range(2):
        theirs = [load_tensors(folder / f"model{number}" / f"{name}.safetensors")[0] for name in ("model", "contexts")]
        actions = json.loads((folder / f"model{number}" / "config.json").read_text(encoding="utf-8"))["world_model"]["actions"]
        if mark == actions and all(equal(a, b) for a, b in zip(files, theirs, strict=True)):
            return 1
    raise AssertionError("a mixture of two models")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


WORKS = {
    "training": Work(train, check_training, 3.0),
    "collecting": Work(collect, check_collection, 1.5),
    "states": Work(keep_states, check_states, 2.0),
    "shipping": Work(ship, check_shipped, 2.0),
}


def killed(work: Work, folder: Path, rng: np.random.Generator, by_file: bool) -> bool:
    """Do the work in a fork until it is killed; whether it was, and not done before."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            if by_file:
                die_at_touch(int(rng.integers(1, 200)), str(folder))
            work.do(folder)
            os._exit(0)
        os._exit(1)
    deadline = time.monotonic() + (120.0 if by_file else float(rng.uniform(0.0, work.seconds)))
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status in (0, signal.SIGKILL), f"the work failed with status {status}"
            return status != 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def die_at_touch(count: int, folder: str) -> None:
    """Be killed at that touch of something in the folder; modules that are imported don't count."""
    left = [count]

    def touch(event: str, arguments: Any) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(arguments[0]).startswith(folder):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(touch)


def main() -> None:
    folder, name, kills, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    work, rng = WORKS[name], np.random.default_rng(seed)
    write_tiny_weights(folder / "weights")
    write_tiny_weights(folder / "model0", seed=1)
    write_tiny_weights(folder / "model1", seed=2, actions=7)
    Trainer(RUN, EPISODES).train_step()  # imports what torch imports late, so that forks are killed at work and not before
    survived = tries = midway = 0
    while survived < kills and tries < 4 * kills + 20:
        was_killed = killed(work, folder, rng, by_file=tries % 2 == 1)
        reached = work.check(folder)
        survived, tries, midway = survived + was_killed, tries + 1, midway + (was_killed and reached > 0)
        print(json.dumps({"killed": was_killed, "reached": reached}), flush=True)
        if not was_killed:  # it was done: begin anew, so that there is something to kill; the losses of all beginnings must agree
            for path in (*folder.glob("*.safetensors"), *folder.glob("*.npz")):
                path.unlink()
    work.do(folder)
    left = sorted(path.name for path in (*folder.glob(".*"), *(folder / "shipped").glob(".*")))
    print(json.dumps({"survived": survived, "midway": midway, "reached": work.check(folder), "left": left}))


if __name__ == "__main__":
    main()
