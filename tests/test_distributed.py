"""Two processes that train one model: the same run as one process's, a checkpoint that fits both, and one of them that writes."""

import contextlib
import functools
import io
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from test_training import RUN, signalling_episode

from lssvwm_gym.cli import main
from lssvwm_gym.data.episode import Episode, write_episode
from lssvwm_gym.io.tensors import load_tensors, save_tensors
from lssvwm_gym.training.distributed import ALONE, ProcessGroup, ShardedRNG, assemble
from lssvwm_gym.training.objectives import LOSSES
from lssvwm_gym.training.world_model import Trainer

# few updates of the odometry head: its loss has a kink at TINY, and after 50 a change by 1e-7 of the first weights has grown to 1e-2
RUN = replace(RUN, steps=14, precision="float32", teacher_forcing=0.35, self_rollout=0.35, odometry_updates=2, device="cpu", seed=1)
STOP = 10  # steps before the checkpoint, in the second stage and within walks of both processes
AUTOENCODER = "train autoencoder --model.image-size 16 --model.patch 4 --model.widths 8 8 --model.latent-channels 4 --batch 4 --steps 3"
WORLD = (
    "train world --model.latent-channels 4 --model.grid 2 --model.width 16 --model.blocks 2 2 --model.heads 2 "
    "--model.head-width 16 --model.d-state 4 --model.memory-features 16 --model.window 2 --precision float32 --steps 2 --warmup 1"
)


def trained(group, checkpoint, start=None):
    """Train, from a checkpoint if there is one to start with; save after step STOP. Losses, ways taken, and weights at the end."""
    trainer, taken, losses = Trainer(RUN, [signalling_episode(seed=seed) for seed in range(4)], group=group), [], []

    def noted(name, function, *given):
        taken.append(list(LOSSES).index(name))
        return function(*given)

    if start is not None:
        trainer.load(start)
    with mock.patch.dict(LOSSES, {name: functools.partial(noted, name, function) for name, function in LOSSES.items()}):
        while trainer.step < RUN.steps:
            losses.append(trainer.train_step())
            if trainer.step == STOP:
                trainer.save(checkpoint)
    columns = {name: torch.stack([loss[name] for loss in losses]) for name in losses[0]}
    return {**columns, "ways": torch.tensor(taken), **{f"average.{k}": v for k, v in trainer.average.state_dict().items()}}


def commands(data, leader, out, frames_a_step=160):
    """Command lines that train both models on `data`; `leader` is the `out` of the process that writes."""
    yield f"{AUTOENCODER} --data {data} --val {data} --out {out}/autoencoder --device cpu"
    sizes = f"--frames-a-step {frames_a_step} --device cpu"
    yield f"{WORLD} {sizes} --data {data} --autoencoder {leader}/autoencoder/autoencoder.safetensors --out {out}/world"


def as_one_of_two(folder):
    """What each of the launched processes does; each has a folder of its own, so that it shows what it wrote."""
    torch.set_num_threads(1)
    group = assemble("cpu")
    number, mine = group.process_index, folder / str(group.process_index)
    mine.mkdir()
    save_tensors(folder / f"straight{number}", trained(group, mine / "checkpoint"), {})
    save_tensors(folder / f"resumed{number}", trained(group, mine / "unused", folder / "alone"), {})
    save_tensors(folder / f"again{number}", trained(group, mine / "unused", folder / "0" / "checkpoint"), {})
    for command in commands(folder / "data", folder / "0", mine):
        main(command.split())
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit):
        main(list(commands(folder / "data", folder / "0", mine, 240))[1].split())
    (folder / f"said{number}").write_text(said.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process trains, and then two that `accelerate launch` starts do the same."""
    folder, rng = tmp_path_factory.mktemp("two"), np.random.default_rng(0)
    for number in range(3):
        frames, walked = rng.integers(256, size=(100, 16, 16, 3), dtype=np.uint8), np.linspace(0, 9, 100)
        poses = {"agent_pos": np.stack([walked, walked], 1), "agent_dir": np.tile([1.0, 0.0], (100, 1))}
        episode = Episode(frames, rng.integers(6, size=100).astype(np.uint8), rng.integers(2, size=100).astype(np.float32), poses)
        write_episode(folder / "data" / f"{number:06d}", episode, fps=4)
    save_tensors(folder / "straight", trained(ALONE, folder / "alone"), {})
    for command in commands(folder / "data", folder, folder):
        main(command.split())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"
    words = ["-m", "accelerate.commands.launch", *launch.split(), "--main_process_port", str(port), __file__, str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def loaded(path, part=""):
    return {name: tensor for name, tensor in load_tensors(path)[0].items() if name.startswith(part)}


def assert_close(mine, theirs, **tolerance):
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("number", [0, 1])
def test_losses_and_weights_are_those_of_one_process(folder, number):
    alone, together = loaded(folder / "straight"), loaded(folder / f"straight{number}")
    assert set(alone["ways"].tolist()) == {0, 1, 2}
    assert torch.equal(alone["ways"], together["ways"])
    assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_all_processes_have_the_same_weights_to_the_bit(folder):
    assert_close(loaded(folder / "straight0"), loaded(folder / "straight1"), rtol=0, atol=0)
    assert_close(loaded(folder / "resumed0"), loaded(folder / "resumed1"), rtol=0, atol=0)


def test_a_checkpoint_of_two_processes_is_that_of_one_and_goes_on_alone(folder, tmp_path):
    assert_close(loaded(folder / "0" / "checkpoint", "state"), loaded(folder / "alone", "state"), rtol=1e-4, atol=1e-5)
    assert load_tensors(folder / "0" / "checkpoint")[1]["segments"] == load_tensors(folder / "alone")[1]["segments"]
    assert load_tensors(folder / "0" / "checkpoint")[1]["frames"] == load_tensors(folder / "alone")[1]["frames"]
    resumed, straight = trained(ALONE, tmp_path / "unused", folder / "0" / "checkpoint"), loaded(folder / "straight")
    for name in ("denoise", "reward", "pose", "odometry", "ways"):
        torch.testing.assert_close(resumed[name], straight[name][STOP:], rtol=1e-5, atol=1e-6)
    assert_close({k: v for k, v in resumed.items() if "average" in k}, loaded(folder / "straight", "average"), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_one_process_goes_on_in_two(folder):
    resumed, straight = loaded(folder / "resumed1"), loaded(folder / "straight")
    assert len(resumed["denoise"]) == RUN.steps - STOP
    for name in ("denoise", "reward", "pose", "odometry", "ways"):
        torch.testing.assert_close(resumed[name], straight[name][STOP:], rtol=1e-5, atol=1e-6)
    assert_close(loaded(folder / "resumed1", "average"), loaded(folder / "straight", "average"), rtol=1e-5, atol=1e-6)


def test_two_processes_go_on_from_their_own_checkpoint_to_the_bit(folder):
    again, straight = loaded(folder / "again0"), loaded(folder / "straight0")
    assert torch.equal(again["denoise"], straight["denoise"][STOP:])
    assert_close(loaded(folder / "again0", "average"), loaded(folder / "straight0", "average"), rtol=0, atol=0)


def test_the_command_line_trains_the_same_models_in_two_processes(folder):
    for name in ("autoencoder/autoencoder.safetensors", "world/world.safetensors"):
        assert_close(loaded(folder / "0" / name), loaded(folder / name), rtol=1e-4, atol=1e-5)


def test_only_one_process_writes(folder):
    def written(number):
        return {path.relative_to(folder / number).as_posix() for path in (folder / number).rglob("*") if path.is_file()}

    finished = {"checkpoint", "autoencoder/autoencoder.safetensors", "world/checkpoint.safetensors", "world/world.safetensors"}
    assert finished <= written("0")
    assert {path.split("/")[:2] == ["world", "latents"] for path in written("1")} == {True}


def test_rows_that_can_not_be_divided_give_one_clear_error(folder):
    message = "3 rows (--frames-a-step 240 in clips of 80 frames) can't be divided evenly among 2 processes: choose a multiple of 2"
    assert message in (folder / "said0").read_text()
    assert (folder / "said0").read_text().count("\n") == 1
    assert (folder / "said1").read_text() == ""


def test_several_processes_without_accelerate_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a GPU of its own"):
        assemble("cuda:1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match="2 processes were launched, and without accelerate each would train for itself: pip install"):
        assemble("cpu")


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    group = assemble("cpu")
    assert group == ALONE
    parameter = torch.nn.Parameter(torch.ones(2))
    group.add_gradients([parameter])
    group.wait()
    assert group.gathered(group.summed(parameter)) is parameter


def test_draws_of_shares_are_those_of_the_whole():
    def draw(*share):
        draws = ShardedRNG(torch.Generator().manual_seed(0), *share)
        rows = 6 // draws.num_processes
        return draws.uniform(rows, 3), draws.normal(2, rows, axis=1).T, torch.full((rows,), draws.whole(0, 1000))

    for whole, *shares in zip(draw(), *(draw(number, 3) for number in range(3)), strict=True):
        assert torch.equal(whole, torch.cat(shares))


def test_shares_cover_all_once():
    things = list(range(11))
    assert [thing for number in range(3) for thing in things[ProcessGroup(ALONE.device, number, 3).share(11)]] == things


if __name__ == "__main__":  # as accelerate launches it
    as_one_of_two(Path(sys.argv[1]))
