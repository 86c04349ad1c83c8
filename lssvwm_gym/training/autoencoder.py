"""Train the autoencoder on a folder of episodes: `lssvwm-gym train autoencoder --data DIR --out DIR`."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lssvwm_gym.data.episode import read_video
from lssvwm_gym.data.folder import episode_paths, fingerprint
from lssvwm_gym.data.tensors import load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.heap import keep_heap
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.models.weights import load_weights
from lssvwm_gym.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from lssvwm_gym.training.precision import chosen_device, mixed_precision
from lssvwm_gym.training.schedule import learning_rate, set_learning_rate, update_average


@dataclass(frozen=True)
class AutoencoderTraining:
    """How to train an autoencoder. The same command line goes on where a stopped run was."""

    data: Path  # folder with episodes to learn from
    out: Path  # folder for checkpoint.safetensors, autoencoder.safetensors and TensorBoard logs
    val: Path | None = None  # folder with episodes to choose by
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    steps: int = 9000
    batch: int = 32  # images
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    decay: float = 0.4  # share of the steps over which the learning rate falls to zero
    average: float = 0.999  # decay of the moving average that is shipped
    save_every: int = 500  # steps
    precision: str = "float32"  # as in training the world model; convolutions in bfloat16 do not repeat bit for bit
    device: str = "auto"  # auto: cuda where there is one, else cpu
    seed: int = 0
    threads: int = 0  # 0: leave it to torch


def train_autoencoder(run: AutoencoderTraining) -> Path:
    """Train, and return the path of the finished autoencoder."""
    keep_heap()
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    device = torch.device(chosen_device(run.device))
    model = Autoencoder(run.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4
    )  # not fused: it would pair loaded moments wrongly with channels-last weights
    saved = run.out / "checkpoint.safetensors"
    start = _resume(saved, run, model, average, optimizer) if saved.exists() else 0
    frames = torch.from_numpy(read_frames(run.data)).to(device)
    val = torch.from_numpy(read_frames(run.val)[::40]).to(device) if run.val else frames[::4000]
    writer = SummaryWriter(str(run.out / "logs"), purge_step=start)
    progress = tqdm(range(start, run.steps), initial=start, total=run.steps, unit="step", smoothing=0.05)
    for step in progress:
        set_learning_rate(optimizer, learning_rate(step, run.steps, run.learning_rate, run.warmup, run.decay))
        rng = np.random.default_rng([run.seed, step])
        batch = frames[torch.from_numpy(rng.integers(len(frames), size=run.batch)).to(device)]
        with mixed_precision(run.precision, device.type):
            loss, error = model.reconstruction_loss(batch, torch.Generator(device).manual_seed(int(rng.integers(2**62))))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, step, run.average)
        if step % 50 == 0:
            writer.add_scalar("train/loss", loss.item(), step)
            writer.add_scalar("train/gradient_norm", norm.item(), step)
            progress.set_postfix(loss=f"{loss.item():.4f}", psnr=f"{-10 * np.log10(error.item() / 4):.2f}", refresh=False)
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            psnr = reconstruction_psnr(average, val)
            writer.add_scalar("val/psnr", psnr, step + 1)
            tqdm.write(f"step {step + 1}: validation {psnr:.2f} dB")
            _save(saved, run, step + 1, model, average, optimizer)
    writer.close()
    set_latent_scale(average, frames[:: max(1, len(frames) // 5000)])
    finished = run.out / "autoencoder.safetensors"
    header = {"config": asdict(run.model), "steps": run.steps, "data": fingerprint(run.data)}
    save_tensors(finished, average.state_dict(), header)
    return finished


def load_autoencoder(path: Path) -> Autoencoder:
    """Load an autoencoder that `train_autoencoder` finished, or that of a folder of weights."""
    if path.is_dir():
        return load_weights(path).autoencoder
    tensors, header = load_tensors(path)
    config = header["config"]
    model = Autoencoder(AutoencoderConfig(**{**config, "widths": tuple(config["widths"])}))
    load_strictly(model, {name: tensor.float() for name, tensor in tensors.items()}, path)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def read_frames(folder: Path) -> np.ndarray:
    """All frames of all episodes of a folder in one array, uint8 (frames, height, width, 3)."""
    return np.concatenate([read_video(path.with_suffix(".mp4")) for path in tqdm(episode_paths(folder), desc="reading", leave=False)])


@torch.no_grad()
def reconstruction_psnr(model: Autoencoder, frames: Tensor) -> float:
    """Mean PSNR in dB over frames, without Memory Maze's 2-pixel border."""
    scores = []
    for batch in frames.split(100):
        error = (model.decode(model.encode(batch)).float() - batch.float())[:, 2:-2, 2:-2] / 255
        scores.append(-10 * error.square().mean((1, 2, 3)).clamp(min=1e-8).log10())
    return torch.cat(scores).mean().item()


@torch.no_grad()
def set_latent_scale(model: Autoencoder, frames: Tensor) -> None:
    """Measure the latents' mean and deviation a channel, so that `encode` gives normalised ones."""
    latent = torch.cat([model.bounded_latent(batch) for batch in frames.split(100)])
    model.latent_mean.copy_(latent.mean((0, 2, 3)))
    model.latent_std.copy_(latent.std((0, 2, 3)))


def _save(
    path: Path, run: AutoencoderTraining, step: int, model: Autoencoder, average: Autoencoder, optimizer: torch.optim.Optimizer
) -> None:
    tensors: dict[str, Tensor] = {
        **prefixed("model", model.state_dict()),
        **prefixed("average", average.state_dict()),
        **prefixed("optimizer", optimizer_tensors(optimizer)),
    }
    save_tensors(path, tensors, {"step": step, "config": asdict(run.model), "seed": run.seed})


def _resume(path: Path, run: AutoencoderTraining, model: Autoencoder, average: Autoencoder, optimizer: torch.optim.Optimizer) -> int:
    tensors, header = load_tensors(path)
    load_strictly(model, under("model", tensors), path)
    load_strictly(average, under("average", tensors), path)
    load_optimizer_tensors(optimizer, under("optimizer", tensors))
    return int(header["step"])
