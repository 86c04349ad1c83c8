"""Make a folder of weights from finished models: `lssvwm-gym package --autoencoder F --world-model F --data DIR --out DIR`.

Where the data or the settings name the world, its record (`world.json`) and a model card are written too. Then
`gymnasium.make("LSSVWM-Dream-v0", weights=DIR)` makes its environment.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from lssvwm_gym.checkpoints.build import built_world_model
from lssvwm_gym.checkpoints.checkpoint import Weights, load_autoencoder, read_weights, save_weights
from lssvwm_gym.checkpoints.model_card import Naming, card, described, write_card
from lssvwm_gym.data.episode import episode_paths, fingerprint, read_arrays, read_episode
from lssvwm_gym.data.segments import encoded
from lssvwm_gym.io.tensors import checksum, load_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.segment import ABSENT, Segment, joined
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.worlds import write_world
from lssvwm_gym.worlds.spec import RECORD, has_record, read_world


@dataclass(frozen=True)
class Packaging:
    """What goes into a folder of weights."""

    autoencoder: Path  # autoencoder.safetensors of a finished autoencoder, or a folder of weights
    world_model: Path  # world.safetensors of a finished world model, checkpoint.safetensors of one under way, or a folder of weights
    out: Path  # folder to write
    data: Path | None = None  # folder with real episodes to begin dreams with; none: those that `world_model`, a folder, begins with
    short_contexts: int = 64
    short_context_frames: int = 16
    long_contexts: int = 16
    long_context_frames: int = 500  # fewer where no recording is as long
    contexts: Literal["auto", "anywhere", "start"] = "auto"  # of a recording; auto: its start, as after a reset, where any ends by itself
    seed: int = 0
    naming: Annotated[Naming, tyro.conf.arg(name="")] = field(default_factory=Naming)


def package(run: Packaging) -> Weights:
    """Write the folder and return what is in it."""
    autoencoder = load_autoencoder(run.autoencoder)
    weights = _with_its_contexts(run, autoencoder) if run.data is None else _with_contexts_from(run, run.data, autoencoder)
    world = described(run.naming, run.data, weights) if run.data else read_world(run.world_model) if has_record(run.world_model) else None
    save_weights(run.out, weights)
    if world is None:
        (run.out / RECORD).unlink(missing_ok=True)  # of what was in the folder before
    else:
        write_world(run.out, world)
        write_card(run.out, card(world, weights, run.out))
    return weights


def _with_its_contexts(run: Packaging, autoencoder: Autoencoder) -> Weights:
    if not run.world_model.is_dir():
        raise ValueError(f"{run.world_model} has no contexts: name a folder with real episodes (--data)")
    old = read_weights(run.world_model)
    if _encoding(autoencoder) != _encoding(old.autoencoder):
        raise ValueError(f"{run.autoencoder} has another encoder than {run.world_model}, whose contexts are its latents: name --data")
    return replace(old, autoencoder=autoencoder)


def _encoding(autoencoder: Autoencoder) -> str:
    """A checksum of the encoder in the precision of packaged weights."""
    return checksum({name: tensor.half() for name, tensor in autoencoder.encoding().items()}, "")


def _with_contexts_from(run: Packaging, data: Path, autoencoder: Autoencoder) -> Weights:
    world_model, trained = load_world_model(run.world_model)
    paths, rng = episode_paths(data), np.random.default_rng(run.seed)
    paths = [paths[i] for i in rng.permutation(len(paths))]
    recorded = ((path, read_arrays(path)) for path in paths)  # no dream begins with the frame that ends an episode
    lengths = {path: len(arrays["action"]) - int(np.any(arrays.get("terminated", False))) for path, arrays in recorded}
    anywhere = run.contexts == "anywhere" or (run.contexts == "auto" and world_model.termination_head is None)
    short = _contexts(paths, lengths, run.short_contexts, run.short_context_frames, autoencoder, anywhere, rng)
    frames = min(run.long_context_frames, max(lengths.values()))
    long = _contexts(paths[::-1], lengths, run.long_contexts, frames, autoencoder, anywhere, rng)
    return Weights(autoencoder, world_model, short, long, {"training": trained, "starts_from": fingerprint(data)})


def load_world_model(path: Path) -> tuple[WorldModel, dict[str, Any]]:
    """The average weights of a training run, finished or not, or of a folder of weights; and what is known of the training."""
    if path.is_dir():
        weights = read_weights(path)
        return weights.world_model, weights.info.get("training", {})
    tensors, header = load_tensors(path)
    model = built_world_model(header.get("config"), under("average", tensors) or tensors, path, path)
    return model, {k: v for k, v in header.items() if k not in ("config", "segments", "walks")}


def _contexts(
    paths: list[Path], lengths: dict[Path, int], count: int, frames: int, autoencoder: Autoencoder, anywhere: bool, rng: np.random.Generator
) -> Segment:
    """`count` pieces of `frames` frames, at random places or from the start, one an episode as far as they go, of those long enough."""
    if not (paths := [path for path in paths if lengths[path] >= frames]):
        raise ValueError(f"no episode has the {frames} frames of a context: choose fewer with --short-context-frames")
    pieces = []
    for number in tqdm(range(count), desc=f"contexts of {frames} frames", leave=False):
        episode = read_episode(paths[number % len(paths)])
        start = int(rng.integers(lengths[paths[number % len(paths)]] - frames + 1)) if anywhere else 0
        piece = encoded(episode, autoencoder, slice(start, start + frames))
        peak = torch.from_numpy(np.maximum.accumulate(episode.inventory)[start : start + frames]).to(piece.inventory)
        pieces.append(replace(piece, inventory_peak=peak, reward=ABSENT, terminated=ABSENT))
    return joined(pieces)
