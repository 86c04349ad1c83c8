"""Hostile files: each loads exactly or gives one clear error; nothing crashes, runs code or takes memory without bounds.

A few hundred by default, `LSSVWM_FUZZ=full` thousands. The work is done by fuzz_files.py in a process with a limit of memory.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from fuzz_files import MEMORY

from lssvwm_gym.data.episode import EpisodeError, read_arrays, read_video, write_video
from lssvwm_gym.data.plain_json import parsed
from lssvwm_gym.data.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.weights import load_weights
from lssvwm_gym.worlds import WORLDS

FULL = os.environ.get("LSSVWM_FUZZ") == "full"
COUNT, SEED = (300, 1) if FULL else (25, 0)  # of each of the ten families of files
MOST_MIB = 1200  # that the process may grow by while it reads them: a gigabyte is the most that an episode may hold


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    script, folder = Path(__file__).with_name("fuzz_files.py"), tmp_path_factory.mktemp("hostile")
    command = [sys.executable, str(script), str(folder), str(COUNT), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, cwd=script.parent.parent)
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
    assert outcome["grown_mib"] < MOST_MIB


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


@pytest.mark.parametrize("name", ["model.safetensors", "starts.safetensors"])
@pytest.mark.parametrize("world", WORLDS.values(), ids=lambda world: world.name)
def test_a_flipped_bit_of_shipped_weights_is_noticed(world, name, tmp_path):
    for path in world.weights.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    content = bytearray((world.weights / name).read_bytes())
    for where in (len(content) // 3, -1):  # in the numbers, which a parser has no reason to doubt
        content[where] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TensorFileError, match=rf"{name}: its contents have changed"):
            load_weights(tmp_path)
        content[where] ^= 1
    (tmp_path / name).write_bytes(content)
    assert load_weights(tmp_path).info


@pytest.mark.parametrize("sha256", [3, {"../../etc/passwd": "0"}, {"model.safetensors": None}, {"starts.safetensors": "0" * 64}])
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
