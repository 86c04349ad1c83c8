"""Reads hostile files under a limit of memory: `python tests/fuzz_files.py FOLDER COUNT SEED [FAMILY ...]` prints what came of it.

Run by test_fuzz_files.py, in a process of its own: a parser that crashes, hangs or takes memory without bounds shows as such. Warnings
are errors here. What is wrong: another exception than the documented one, a message that doesn't name the file or goes on for pages, a
file with a checksum that loads as something else, and one without that loads but then can't be dreamed on.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pickle
import resource
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import hostile
import numpy as np
import torch
from hostile import Rng
from safetensors.torch import load_file
from test_training import RUN, signalling_episode
from tiny_minecraft import write_tiny_minecraft
from tiny_world import write_tiny_weights

from experiments.quantize import Quantizing, quantize
from lssvwm_gym.checkpoints.checkpoint import read_weights
from lssvwm_gym.data.episode import Episode, EpisodeError, read_episode, write_episode
from lssvwm_gym.envs import DreamEnv, DreamVectorEnv
from lssvwm_gym.io.tensors import TensorFileError, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.training import autoencoder as seeing
from lssvwm_gym.training.distributed import ShardedRNG
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.world_model import Trainer
from lssvwm_gym.worlds import WORLDS, WorldError, WorldSpec, read_world, write_world

MEMORY = 3 * 2**30  # bytes of address space beyond what the process has once everything is imported
LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Family:
    """One kind of file."""

    path: Path  # where the hostile file goes; it has the good one's content at first
    spoil: Callable[[bytes, Rng], bytes]
    load: Callable[[], Any]
    error: type[Exception]
    same: Callable[[Any, Any], bool] | None  # whether what was loaded is what was written; None: that can't be told


def bytes_spoilt(content: bytes, rng: Rng, shares: tuple[float, float, float]) -> bytes | None:
    """Rotted as it is, rotted without a checksum, or claiming what isn't so, up to these shares of the files; None for the rest."""
    way = rng.random()
    if way < shares[0]:
        return hostile.rotten(content, rng)
    if way < shares[1]:
        return hostile.rotten(hostile.without_checksum(content), rng)
    if way < shares[2]:
        return hostile.claiming(content if rng.random() < 0.5 else hostile.without_checksum(content), rng)
    return None


def tensors_spoilt(content: bytes, rng: Rng) -> bytes:
    """A third rotted as it is, a third rotted or edited without a checksum, a third written anew with other tensors."""
    if (spoilt := bytes_spoilt(content, rng, (0.3, 0.45, 0.7))) is not None:
        return spoilt
    path = Path(sys.argv[1]) / "anew.safetensors"
    path.write_bytes(content)
    tensors, header = load_tensors(path)
    other = hostile.edited(header, rng) if header and rng.random() < 0.5 else header
    save_tensors(path, tensors if other is not header else hostile.other_tensors(tensors, rng), other)
    return path.read_bytes()


def same_tensors(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


def dreamed(folder: Path) -> Callable[[], Any]:
    """Opens weights anew each time, takes steps, and returns what tells one model from another."""
    numbers = itertools.count()

    def load() -> Any:
        view = folder.with_name(f"weights{next(numbers)}")  # what was loaded from a folder is kept
        view.symlink_to(folder)
        env = DreamEnv("memory-maze", weights=view, profile="fast", device="cpu")
        for options in ({}, {"context_frames": 3}):
            env.reset(seed=1, options=options)
            assert env.observation_space.contains(env.step(1)[0])
        return [env.dream.fingerprint, env.dream.weights.short_contexts.latent.tolist(), env.dream.weights.short_contexts.action.tolist()]

    return load


def weights_families(folder: Path) -> dict[str, Family]:
    load = dreamed(write_tiny_weights(folder))
    spoilers = {"config.json": config_spoilt, "model.safetensors": tensors_spoilt, "contexts.safetensors": tensors_spoilt}
    return {
        f"weights: {name}": Family(folder / name, spoil, load, ValueError, lambda a, b: a == b)  # where sizes don't fit the world: plain
        for name, spoil in spoilers.items()
    }


def config_spoilt(content: bytes, rng: Rng) -> bytes:
    return hostile.rotten(content, rng) if rng.random() < 0.3 else hostile.json_text(json.loads(content), rng)


def eight_bits_family(folder: Path) -> Family:
    with contextlib.redirect_stdout(io.StringIO()):
        quantize(Quantizing(folder / "small", weights=write_tiny_weights(folder / "full")))
    path, dream = folder / "small" / "model.safetensors", dreamed(folder / "small")

    def load() -> Any:
        loaded = dream()
        weights, raw = read_weights(folder / "small"), load_file(path)
        for name, model in (("autoencoder", weights.autoencoder), ("world_model", weights.world_model)):
            for part, tensor in model.state_dict().items():
                stored = raw[f"{name}.{part}"]
                if stored.dtype == torch.int8:
                    scale = raw[f"{name}.{part}_scale"].numpy()
                    assert (np.isfinite(scale) & (scale > 0)).all()
                    stored = torch.from_numpy(stored.numpy().astype(np.float32) * scale.reshape(-1, *[1] * (stored.ndim - 1)))
                assert torch.equal(tensor, stored.to(tensor.dtype)), part
        return loaded

    def spoil(content: bytes, rng: Rng) -> bytes:
        if (spoilt := bytes_spoilt(content, rng, (0.2, 0.3, 0.45))) is not None:
            return spoilt
        path.write_bytes(content)
        save_tensors(path, hostile.other_eight_bits(load_file(path), rng), {})
        return path.read_bytes()

    return Family(path, spoil, load, ValueError, lambda a, b: a == b)


def record_families(folder: Path) -> dict[str, Family]:
    """Records of a world with discrete actions, of one whose actions are numbers, and of one that counts things and pays for them."""
    pond = WorldSpec("LSSVWM-Pond-v0", "pond", 64, ("stay", "swim"), {"w": 1}, 5, (0.0, 2.5), 4, folder, length_scale=0.5)
    raft = replace(pond, id="LSSVWM-Raft-v0", name="raft", actions=("along", "across"), keys={}, low=(-1.0, 0.0), high=(1.0, 2.0))
    write_tiny_weights(folder / "pond", actions=2)
    write_tiny_weights(folder / "raft", actions=0, action_size=2)
    write_tiny_minecraft(folder / "minecraft")
    return {f"world.json: {world.name}": record_family(folder / world.name, world) for world in (pond, raft, WORLDS["minecraft"])}


def record_family(folder: Path, world: WorldSpec) -> Family:
    path = write_world(folder, world)

    def read() -> WorldSpec:
        try:
            return read_world(folder)
        except WorldError:
            raise
        except Exception as error:
            raise AssertionError(f"no WorldError: {error!r:.500}") from error

    def load() -> Any:
        world, told = read(), json.loads(path.read_bytes(), parse_int=float)
        del told["format"]
        assert told == json.loads(json.dumps({name: getattr(world, name) for name in told}), parse_int=float)
        assert (world.weights, world.real_id) == (folder, None)
        env = gymnasium.make("LSSVWM-Dream-v0", weights=folder, profile="fast", device="cpu")
        env.reset(seed=1)
        env.action_space.seed(1)
        observation, reward, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        envs = gymnasium.make_vec("LSSVWM-Dream-v0", 2, weights=folder, profile="fast", device="cpu", output="torch")
        envs.reset(seed=1)
        envs.action_space.seed(1)
        rewards = envs.step(torch.from_numpy(envs.action_space.sample()))[1]
        assert np.isfinite(reward)
        assert rewards.isfinite().all()
        return world

    def spoil(content: bytes, rng: Rng) -> bytes:
        return config_spoilt(content, rng) if rng.random() < 0.45 else hostile.record_text(content, rng)

    return Family(path, spoil, load, ValueError, lambda a, b: a == b)  # of another kind of weights: plain


def state_family(folder: Path) -> Family:
    weights, path = write_tiny_weights(folder / "weights"), folder / "moment.safetensors"
    envs = DreamVectorEnv("memory-maze", 2, weights=weights, profile="fast", device="cpu")
    envs.reset(seed=3)
    envs.step(np.array([1, 2]))
    envs.save_state(path)

    def load() -> Any:
        seen = envs.load_state(path)
        after = envs.step(np.array([1, 2]))
        assert envs.observation_space.contains(after[0])
        assert all(np.isfinite(value).all() for value in after[4].values())
        envs.branch(2).step(np.zeros(4, int))
        return {"before": torch.from_numpy(seen), "after": torch.from_numpy(after[0])}

    return Family(path, tensors_spoilt, load, ValueError, same_tensors)  # a state of another number of rows is a plain ValueError


def world_checkpoint_family(folder: Path) -> Family:
    path, episodes = folder / "checkpoint.safetensors", [signalling_episode(seed=seed) for seed in range(2)]
    trainer = Trainer(RUN, episodes)
    trainer.train_step()
    trainer.save(path)

    def load() -> Any:
        trainer = Trainer(RUN, episodes)
        trainer.load(path)
        return {"loss": trainer.train_step()["denoise"].detach()}

    return Family(path, lambda content, rng: hostile.rotten(content, rng), load, TensorFileError, same_tensors)


def seeing_family(folder: Path) -> Family:
    path, config = folder / "checkpoint.safetensors", AutoencoderConfig(image_size=32, widths=(8,), latent_channels=4)
    run = seeing.AutoencoderTraining(folder, folder, model=config)

    def fresh() -> tuple[Autoencoder, Autoencoder, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model, average = Autoencoder(config), Autoencoder(config)
        return model, average, torch.optim.AdamW(model.parameters())

    def step(model: Autoencoder, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        loss = seeing.reconstruction_loss(model, frames, ShardedRNG(torch.Generator().manual_seed(0)))[0]
        loss.backward()
        optimizer.step()
        return loss.detach()

    model, average, optimizer = fresh()
    step(model, optimizer)
    seeing._save(path, run, 5, model, average, optimizer)

    def load() -> Any:
        model, average, optimizer = fresh()
        at = seeing._resume(path, run, model, average, optimizer)
        return {"loss": step(model, optimizer), "step": torch.tensor(min(at, 2**62))}

    return Family(path, tensors_spoilt, load, TensorFileError, same_tensors)


def latents_family(folder: Path) -> Family:
    episode_files(folder / "walks")
    autoencoder = Autoencoder(AutoencoderConfig(image_size=32, widths=(8,), latent_channels=4)).requires_grad_(False)
    latent_episodes(folder / "walks", autoencoder, folder / "latents")
    (path,) = (folder / "latents").rglob("*.safetensors")

    def load() -> Any:
        (episode,) = latent_episodes(folder / "walks", autoencoder, folder / "latents")
        assert isinstance(episode, Segment)
        assert len({len(column) for column in episode.parts().values()}) == 1
        return episode.parts()

    return Family(path, lambda content, rng: hostile.rotten(content, rng), load, TensorFileError, same_tensors)


def episode_files(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(9, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    extras = {
        "agent_pos": rng.random((9, 2), np.float32),
        "agent_dir": rng.random((9, 2), np.float32),
        "inventory": np.ones((9, 3), np.int32),
    }
    write_episode(folder / "000001", Episode(pixels, rng.integers(6, size=9).astype(np.uint8), rng.random(9, np.float32), extras), fps=4)
    return folder / "000001.npz"


def episode_families(folder: Path) -> dict[str, Family]:
    path = episode_files(folder)
    bombs = [hostile.npz_bomb()]
    bombs.append(hostile.lying_about_size(bombs[0]))

    def load() -> Any:
        episode = read_episode(path)
        arrays = {"frames": episode.frames, "action": episode.action, "reward": episode.reward, **episode.extras}
        if episode.pose is not None:
            arrays["pose"] = episode.pose
        return {**arrays, "inventory": episode.inventory}

    def spoil_npz(content: bytes, rng: Rng) -> bytes:
        way = rng.random()
        if way < 0.03:
            return bombs[rng.integers(2)]
        if way < 0.5:
            return hostile.rotten(content, rng)
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {name: file.read(name) for name in file.namelist()}
        name = list(members)[rng.integers(len(members))]
        if way < 0.75:
            members[name] = hostile.HEADERS[rng.integers(len(hostile.HEADERS))]()
        elif way < 0.85:
            members[name] = hostile.rotten(members[name], rng)
        elif way < 0.95:
            kinds = ("<f8", "<i8", "<c8", "<U3", "<M8[s]", ">f4", "|b1", "<f2", [("a", "<f4")])
            array = np.zeros((rng.choice([0, 1, 8, 9]), *rng.choice([1, 2, 3], rng.integers(3))), np.dtype(kinds[rng.integers(len(kinds))]))
            members[name] = npy_bytes(array)
        else:
            return hostile.zipped(members, twice=name)
        return hostile.zipped(members)

    def equal(a: Any, b: Any) -> bool:
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)

    video = path.with_suffix(".mp4")
    return {
        "episode: npz": Family(path, spoil_npz, load, EpisodeError, None),
        "episode: mp4": Family(video, video_spoilt, load, EpisodeError, None),
        "episode: npz, rotten": Family(path, hostile.rotten, load, EpisodeError, equal),
    }


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def video_spoilt(content: bytes, rng: Rng) -> bytes:
    """Rotted anywhere, or in its head; or one that claims huge frames; or a list of other files in place of a video."""
    way, box = rng.random(), content.index(b"avc1")
    if way < 0.4:
        return hostile.rotten(content, rng)
    if way < 0.8:
        at = content.index(b"moov")
        return content[:at] + hostile.rotten(content[at:], rng)
    if way < 0.95:  # width and height in the sample entry and, further on, what the decoder is told
        data = bytearray(content)
        data[box + 28 : box + 32] = rng.integers(2**15, 2**16, 2).astype(">u2").tobytes()
        told = content.index(b"avcC")
        for place in rng.integers(told + 8, told + 40, rng.integers(4)):
            data[place] = rng.integers(256)
        return bytes(data)
    lists = (
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff",
    )
    return lists[rng.integers(len(lists))]


def families(folder: Path) -> dict[str, Family]:
    return {
        **weights_families(folder / "weights"),
        "weights: 8 bits": eight_bits_family(folder / "eight_bits"),
        **record_families(folder / "records"),
        "saved state": state_family(folder / "state"),
        "checkpoint: world": world_checkpoint_family(folder / "world"),
        "checkpoint: autoencoder": seeing_family(folder / "autoencoder"),
        "latents": latents_family(folder / "latents"),
        **episode_families(folder / "episode"),
    }


def tried(name: str, family: Family, count: int, seed: int, mark: Path) -> dict[str, Any]:
    good, expected = family.path.read_bytes(), family.load()
    outcome: dict[str, Any] = {"tried": 0, "loaded": 0, "refused": 0, "wrong": []}
    pickled = [pickle.dumps(hostile.Bomb(mark), 2), pickle.dumps({"header": hostile.Bomb(mark)})]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = pickled[number] if number < len(pickled) else family.spoil(good, rng)
        family.path.write_bytes(content)
        wrong = ""
        try:
            loaded = family.load()
            outcome["loaded"] += 1
            known = content == good or b"sha256" in content or "rotten" in name
            if family.same is not None and known and not_rewritten(content, good) and not family.same(loaded, expected):
                wrong = "it loads as something else"
        except family.error as error:
            outcome["refused"] += 1
            if family.path.stem not in str(error) and str(family.path.parent) not in str(error) and "rows" not in str(error):
                wrong = f"the message names no file: {error}"
            elif len(str(error)) > LONGEST_MESSAGE:
                wrong = f"the message has {len(str(error))} characters"
        except BaseException:
            wrong = traceback.format_exc()[-1200:]
        if wrong:
            outcome["wrong"].append({"number": number, "what": wrong})
        outcome["tried"] += 1
    family.path.write_bytes(good)
    return outcome


def not_rewritten(content: bytes, good: bytes) -> bool:
    """Whether a file that loads should be as good as the good one: it still has that one's checksum."""
    at = good.find(b'"sha256"')
    return at < 0 or good[at : at + 75] in content


def main() -> None:
    folder, count, seed, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    known = families(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    warnings.simplefilter("error")
    outcomes: dict[str, Any] = {}
    for name in wanted or known:
        began = time.monotonic()
        outcomes[name] = tried(name, known[name], count, seed, folder / "pickle-ran")
        outcomes[name]["seconds"] = round(time.monotonic() - began, 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"families": outcomes, "grown_mib": round(grown, 1), "code_ran": (folder / "pickle-ran").exists()}))


if __name__ == "__main__":
    main()
