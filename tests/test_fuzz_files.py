"""Hostile files: each loads exactly or gives one clear error; nothing crashes, runs code or takes memory without bounds.

A few hundred by default, `LSSVWM_FUZZ=full` thousands. The work is done by fuzz_files.py in a process with a limit of memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from fuzz_files import MEMORY

from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.data.episode import EpisodeError, read_arrays, read_video
from lssvwm_gym.io.json_config import parsed
from lssvwm_gym.io.tensors import TensorFileError, into_eight_bits, load_tensors, out_of_eight_bits, save_tensors
from lssvwm_gym.io.video import write_video
from lssvwm_gym.worlds import WORLDS, WorldError, WorldSpec, read_world, write_world

FULL = os.environ.get("LSSVWM_FUZZ") == "full"
COUNT, SEED = (300, 1) if FULL else (25, 0)  # of each of the fourteen families of files
MAX_MIB = 1200  # that the process may grow by while it reads them: a gigabyte is the most that an episode may hold


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    script, folder = Path(__file__).with_name("fuzz_files.py"), tmp_path_factory.mktemp("hostile")
    command = [sys.executable, str(script), str(folder), str(COUNT), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10_000 if FULL else 3000, cwd=script.parent.parent)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    outcome = json.loads(done.stdout.splitlines()[-1])
    for name, family in outcome["families"].items():
        numbers = [f"{key} {family[key]:>5}" for key in ("tried", "loaded", "refused")]
        print(f"{name:<26} {' '.join(numbers)} wrong {len(family['wrong']):>3}")
    print(f"{sum(family['tried'] for family in outcome['families'].values())} files, memory grew by {outcome['grown_mib']} MiB")
    return outcome


@pytest.mark.slow
def test_every_hostile_file_loads_exactly_or_gives_one_clear_error(outcome):
    wrong = [f"{name}, number {one['number']}: {one['what']}" for name, family in outcome["families"].items() for one in family["wrong"]]
    assert not wrong, "\n\n".join(wrong[:5]) + f"\n\n{len(wrong)} in all"
    for name, family in outcome["families"].items():
        assert family["tried"] == COUNT
        assert family["refused"] > 0, f"{name}: nothing was refused"


@pytest.mark.slow
def test_no_code_runs_and_memory_has_bounds(outcome):
    assert not outcome["code_ran"]
    assert outcome["grown_mib"] < MAX_MIB


@pytest.mark.parametrize("where", range(0, 1200, 37))
def test_a_single_flipped_bit_is_noticed(tmp_path, where):
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"a": torch.arange(200.0), "b": torch.zeros(0, 3)}, {"says": "something"})
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= 1 << where % 8
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match=r"some\.safetensors"):
        load_tensors(path)


def test_equal_tensors_are_equal_files(tmp_path):
    for number in range(6):
        save_tensors(tmp_path / str(number), {"b": torch.ones(3), "a": torch.zeros(2).half()}, {"x": 1, "name": "\u00e9"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert load_tensors(tmp_path / "0")[1] == {"x": 1, "name": "\u00e9"}


def test_files_without_a_checksum_still_load(tmp_path):
    path = tmp_path / "old.safetensors"
    save_tensors(path, {"a": torch.arange(4)}, {"x": 1})
    path.write_bytes(hostile.without_checksum(path.read_bytes()))
    tensors, header = load_tensors(path)
    assert (tensors["a"].tolist(), header) == ([0, 1, 2, 3], {"x": 1})


@pytest.mark.parametrize("name", ["model", "contexts or starts"])
@pytest.mark.parametrize("weights", [world.weights for world in WORLDS.values()], ids=lambda folder: folder.name)
def test_a_flipped_bit_of_shipped_weights_is_noticed(weights, name, tmp_path):
    (name,) = (path.name for path in weights.glob("*.safetensors") if path.stem in name)
    for path in weights.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    content = bytearray((weights / name).read_bytes())
    for where in (len(content) // 3, -1):  # in the numbers, which a parser has no reason to doubt
        content[where] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TensorFileError, match=rf"{name}: .*its contents have changed"):
            load_weights(tmp_path)
        content[where] ^= 1
    (tmp_path / name).write_bytes(content)
    assert load_weights(tmp_path).info


@pytest.mark.parametrize("sha256", [3, {"../../etc/passwd": "0"}, {"model.safetensors": None}, {"model.safetensors": "0" * 64}])
def test_hashes_of_other_files_are_refused(tiny_weights, tmp_path, sha256):
    shutil.copytree(tiny_weights, tmp_path / "weights")
    config = json.loads((tmp_path / "weights/config.json").read_text())
    (tmp_path / "weights/config.json").write_text(json.dumps({**config, "sha256": sha256}))
    with pytest.raises(TensorFileError, match=r"its sha256 is not that|its contents have changed"):
        load_weights(tmp_path / "weights")


def limited(code: str, *arguments: str) -> str:
    """What a process with a limit of memory prints."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
import sys
from lssvwm_gym.data import episode
try:
    {what}
except episode.EpisodeError as error:
    print(error)
status = open("/proc/self/status").read()  # ru_maxrss would count what the tests themselves held before they started this
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.parametrize("lie", [False, True])
def test_a_small_zip_of_gigabytes_is_refused_before_it_is_unpacked(tmp_path, lie):
    path, bomb = tmp_path / "000001.npz", hostile.npz_bomb()
    path.write_bytes(hostile.lying_about_size(bomb) if lie else bomb)
    assert path.stat().st_size < 20e6
    said, mebibytes = limited(READ.format(what="episode.read_arrays(sys.argv[1])"), str(path)).splitlines()[-2:]
    assert "000001.npz: not a readable npz" in said
    assert int(mebibytes) < 300


def test_a_small_video_of_gigabytes_is_given_up(tmp_path, monkeypatch):
    import lssvwm_gym.data.episode as module

    path = tmp_path / "000001.mp4"
    write_video(path, (np.zeros((64, 64, 3), np.uint8) for _ in range(50)), 5)
    monkeypatch.setattr(module, "LARGEST", 40 * 64 * 64 * 3)
    with pytest.raises(EpisodeError, match=r"000001\.mp4: more than 491520 bytes of frames"):
        read_video(path)
    np.savez(path.with_suffix(".npz"), a=np.zeros(10**5))
    with pytest.raises(EpisodeError, match="of arrays"):
        read_arrays(path)


def test_a_frame_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "000001.mp4"
    write_video(path, [np.zeros((4096, 4608, 3), np.uint8)], 5, crf=51)
    said, mebibytes = limited(READ.format(what="episode.read_video(sys.argv[1])"), str(path)).splitlines()[-2:]
    assert "000001.mp4: not a readable video" in said
    assert int(mebibytes) < 300


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nother.mp4\n", b"ffconcat version 1.0\nfile other.mp4\n"])
def test_a_video_names_no_other_file(tmp_path, content):
    write_video(tmp_path / "other.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, 5)
    (tmp_path / "000001.mp4").write_bytes(content)
    with pytest.raises(EpisodeError, match=r"000001\.mp4: not a readable video"):
        read_video(tmp_path / "000001.mp4")


@pytest.mark.parametrize(
    ("text", "says"), [('{"a": 1, "a": 2}', "'a' twice"), (hostile.DEEP, "too deep"), ("{", "Expecting"), ("9" * 5000, "4300")]
)
def test_json_that_is_none_is_a_value_error(text, says):
    with pytest.raises(ValueError, match=says):
        parsed(text)


POND = WorldSpec("LSSVWM-Pond-v0", "pond", 64, ("stay", "swim"), {"w": 1}, 5, (0.0, 2.5), 4, Path("nowhere"))
BOX = {"actions": ["a", "b"], "keys": {}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"length_scale": 10**400}, "length_scale is 1000"),
        ({"reward_values": [0, -(10**400)]}, "reward_values is -1000"),
        ({"reward_values": [0, 1e308]}, "out of all proportion"),
        ({"length_scale": -0.5}, "length_scale is -0.5, below 0"),
        ({"border": 32}, "a border of 32 leaves nothing of 64 pixels"),
        ({"fps": 10**4000}, "fps is 1000"),
        ({"x" * 500_000: 1}, "unknown"),
        ({"actions": ["a" * 100] * 4096}, "actions need names"),
        ({**BOX, "low": list(range(4096)), "high": [0, 1]}, "don't bound"),
        ({**BOX, "low": [0, 0], "high": [1, 1e39]}, "high is 1e.39, not finite or out"),
        ({**BOX, "low": [0, 1], "high": [1, 1.00000000001]}, "don't bound"),
        ({"inventory": ["log"], "milestones": [["log", 1]]}, "max_inventory is 0"),
        ({"inventory": ["log"], "max_inventory": 9, "milestones": [["gold", 1]]}, "milestones need counts, each its own, but .'gold'"),
        ({"inventory": ["log"], "max_inventory": 9, "milestones": [["log", 1], ["log", 2]]}, "one is there twice"),
    ],
    ids=range(14),
)
def test_a_record_out_of_all_proportion_is_one_short_error(tmp_path, change, says):
    path = write_world(tmp_path, POND)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WorldError, match=rf"world\.json: .*{says}") as error:
        read_world(tmp_path)
    assert len(str(error.value)) < 600


def test_nesting_around_what_can_be_read_is_one_error(tmp_path):
    path = write_world(tmp_path, POND)
    record = path.read_text()
    for depth in range(900, 1000):
        path.write_text(record.replace('"milestones": []', f'"milestones": [[{"[" * depth}{"]" * depth}, 1]]'))
        with pytest.raises(WorldError, match=r"world\.json: (nested too deep|maximum recursion|milestones is)"):
            read_world(tmp_path)


def test_a_record_is_neither_waited_for_nor_read_without_end(tmp_path):
    os.mkfifo(tmp_path / "world.json")
    with pytest.raises(WorldError, match=r"has no world\.json"):
        read_world(tmp_path)
    (tmp_path / "world.json").unlink()
    (tmp_path / "world.json").symlink_to("/dev/zero")
    with pytest.raises(WorldError, match=r"has no world\.json"):
        read_world(tmp_path)
    (tmp_path / "world.json").unlink()
    write_world(tmp_path, POND).write_text(" " * 1_000_001)
    with pytest.raises(WorldError, match="more than 1000000 bytes"):
        read_world(tmp_path)


def test_a_config_is_neither_waited_for_nor_read_without_end(tiny_weights, tmp_path):
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "weights"))
    config = folder / "config.json"
    config.unlink()
    os.mkfifo(config)
    with pytest.raises(TensorFileError, match=r"config\.json: no such file"):
        load_weights(folder)
    config.unlink()
    config.symlink_to("/dev/zero")
    with pytest.raises(TensorFileError, match=r"config\.json: no such file"):
        load_weights(folder)
    config.unlink()
    config.write_text(" " * 1_000_001)
    with pytest.raises(TensorFileError, match="more than 1000000 bytes"):
        load_weights(folder)


def test_a_record_that_is_not_whole_leaves_the_last_one(tmp_path, monkeypatch):
    write_world(tmp_path, POND)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_world(tmp_path, dataclasses.replace(POND, fps=9))
    assert read_world(tmp_path).fps == POND.fps
    assert [path.name for path in tmp_path.iterdir()] == ["world.json"]


def test_a_key_named_twice_among_many_is_found_at_once():
    text = "{" + "".join(f'"{number}": 0, ' for number in range(70_000)) + '"69999": 0}'
    began = time.process_time()
    with pytest.raises(ValueError, match="the key '69999' twice"):
        parsed(text)
    assert time.process_time() - began < 3
    with pytest.raises(ValueError, match="twice") as error:
        parsed(f'{{"{"x" * 9000}": 0, "{"x" * 9000}": 0}}')
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_none_is_refused(tmp_path, scale):
    stored = into_eight_bits({"a": torch.randn(3, 4)}, ["a"])
    stored["a_scale"][1] = scale
    save_tensors(tmp_path / "some.safetensors", stored, {})
    with pytest.raises(TensorFileError, match=r"some\.safetensors.*a_scale has scales that are not finite and above 0"):
        load_tensors(tmp_path / "some.safetensors")


def test_numbers_too_small_for_a_scale_can_be_read_again():
    stored = into_eight_bits({"a": torch.tensor([[1e-45, 0.0], [1.0, -1.0]])}, ["a"])
    assert out_of_eight_bits(stored)["a"].tolist() == [[0.0, 0.0], [1.0, -1.0]]


@pytest.mark.parametrize("name", ["model.safetensors", "contexts.safetensors", "config.json"])
def test_a_name_without_end_is_cut(tiny_weights, tmp_path, name):
    path = Path(shutil.copytree(tiny_weights, tmp_path / "weights")) / name
    if name == "config.json":
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"world_model": config["world_model"] | {"x" * 90_000: 1}}))
    else:
        tensors, _ = load_tensors(path)
        some = next(iter(tensors))
        save_tensors(path, tensors | {some.split(".")[0] + "." + "x" * 90_000: tensors[some]}, {})
    with pytest.raises(TensorFileError, match="xxx") as error:
        load_weights(tmp_path / "weights")
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", ["model.safetensors", "contexts.safetensors"])
def test_a_shape_without_end_is_cut(tiny_weights, tmp_path, name):
    path = Path(shutil.copytree(tiny_weights, tmp_path / "weights")) / name
    tensors, _ = load_tensors(path)
    some = next(iter(tensors))
    save_tensors(path, tensors | {some: tensors[some].view(-1, *[1] * 5000)}, {})
    with pytest.raises(TensorFileError, match=rf"{name}.*1, 1, 1") as error:
        load_weights(tmp_path / "weights")
    assert len(str(error.value)) < 2000
