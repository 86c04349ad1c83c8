"""Train the autoencoder on a folder of episodes: `lssvwm-gym train autoencoder --data DIR --out DIR`."""

import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.functional.image import peak_signal_noise_ratio
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import load_autoencoder
from lssvwm_gym.data.episode import episode_paths, fingerprint, read_video
from lssvwm_gym.io.tensors import TensorFileError, check_header, load_tensors, save_tensors
from lssvwm_gym.models.autoencoder import Autoencoder, AutoencoderConfig
from lssvwm_gym.training import optim
from lssvwm_gym.training.distributed import ShardedRNG, assemble

MOST_EMPHASIS = 40.0  # means of all misses that count at most


@dataclass(frozen=True)
class AutoencoderTraining:
    """How to train an autoencoder. The same command line goes on where a stopped run was."""

    data: Path  # folder with episodes to learn from
    out: Path  # folder for checkpoint.safetensors, autoencoder.safetensors and TensorBoard logs
    val: Path | None = None  # folder with episodes to choose by
    encoder: Path | None = None  # autoencoder.safetensors or a folder of weights, whose encoder stays: only a decoder is learned
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    emphasis: float = 0.0  # extra weight of pixels that it misses most, such as small things that are rarely seen
    steps: int = 9000
    batch: int = 32  # images, of all processes together
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    decay: float = 0.4  # share of the steps over which the learning rate falls to zero
    average: float = 0.999  # decay of the moving average of the weights, which is what a finished run saves
    save_every: int = 500  # steps
    precision: str = "float32"  # as in training the world model; convolutions in bfloat16 do not repeat bit for bit
    device: str = "auto"  # auto: cuda where there is one, else cpu
    seed: int = 0
    threads: int = 0  # 0: leave it to torch


def train_autoencoder(run: AutoencoderTraining) -> Path:
    """Train, alone or with the other processes of an `accelerate launch`, and return the path of the finished autoencoder."""
    if run.threads:
        torch.set_num_threads(run.threads)
    group = assemble(run.device)
    group.refuse_uneven(run.batch, f"--batch {run.batch}")
    torch.manual_seed(run.seed)
    device = group.device
    model = Autoencoder(run.model) if run.encoder is None else with_encoder_of(load_autoencoder(run.encoder), run.model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # not fused: it would pair loaded moments wrongly with channels-last weights
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.99), weight_decay=1e-4)
    saved = run.out / "checkpoint.safetensors"
    start = _resume(saved, run, model, average, optimizer) if saved.exists() else 0
    frames = torch.from_numpy(read_frames(run.data)).to(device)
    val = torch.from_numpy(read_frames(run.val)[::40]).to(device) if run.val else frames[::4000]
    group.agree(start, f"the step that {saved} goes on from")
    writer = SummaryWriter(str(run.out / "logs"), purge_step=start) if group.is_main_process else None
    progress = tqdm(range(start, run.steps), initial=start, total=run.steps, unit="step", smoothing=0.05, disable=not group.is_main_process)
    for step in progress:
        optim.set_learning_rate(optimizer, optim.learning_rate(step, run.steps, run.learning_rate, run.warmup, run.decay))
        rng = np.random.default_rng([run.seed, step])
        batch = frames[torch.from_numpy(rng.integers(len(frames), size=run.batch)[group.share(run.batch)]).to(device)]
        sharded = ShardedRNG(torch.Generator(device).manual_seed(int(rng.integers(2**62))), group.process_index, group.num_processes)
        with optim.mixed_precision(run.precision, device.type):
            shares = [mean / group.num_processes for mean in reconstruction_loss(model, batch, sharded, run.emphasis)]
        optimizer.zero_grad()
        shares[0].backward()
        group.add_gradients(learned)
        loss, error = group.summed(torch.stack(shares).detach()).unbind()
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optim.update_average(average, model, step, run.average)
        if writer is not None and step % 50 == 0:
            writer.add_scalar("train/loss", loss.item(), step)
            writer.add_scalar("train/gradient_norm", norm.item(), step)
            progress.set_postfix(loss=f"{loss.item():.4f}", psnr=f"{-10 * np.log10(error.item() / 4):.2f}", refresh=False)
        if writer is not None and ((step + 1) % run.save_every == 0 or step + 1 == run.steps):
            psnr = reconstruction_psnr(average, val)
            writer.add_scalar("val/psnr", psnr, step + 1)
            tqdm.write(f"step {step + 1}: validation {psnr:.2f} dB")
            _save(saved, run, step + 1, model, average, optimizer)
    finished = run.out / "autoencoder.safetensors"
    if writer is not None:
        writer.close()
        if run.encoder is None:
            set_latent_scale(average, frames[:: max(1, len(frames) // 5000)])
        save_tensors(finished, average.state_dict(), {"config": asdict(run.model), "steps": run.steps, "data": fingerprint(run.data)})
    group.wait()
    return finished


def with_encoder_of(other: Autoencoder, config: AutoencoderConfig) -> Autoencoder:
    """A new decoder for another autoencoder's latents. Raises `ValueError` if they differ in more than `decoder_widths` and noise."""
    if replace(other.config, decoder_widths=config.decoder_widths, latent_noise=config.latent_noise) != config:
        raise ValueError(f"--encoder is of {other.config}, so --model must be that but for decoder_widths and latent_noise, not {config}")
    model = Autoencoder(config)
    model.load_state_dict(other.encoding(), strict=False)
    model.encoder.requires_grad_(False)
    return model


def reconstruction_loss(model: Autoencoder, frames: Tensor, rng: ShardedRNG, emphasis: float = 0.0) -> tuple[Tensor, Tensor]:
    """Means over images, pixels in -1..1: of the root mean square error, by `emphasis` more of what is missed most; of the mean square."""
    latent = model.bounded_latent(frames)
    image = model.decoder(latent + model.config.latent_noise * rng.normal(*latent.shape))
    target = rearrange(frames, "b y x c -> b c y x").float().div(127.5).sub(1)
    square = (image.float() - target).square()
    missed = square.detach().mean(1, keepdim=True)
    weight = 1 + emphasis * (missed / missed.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)).clamp(max=MOST_EMPHASIS)
    return ((weight * square).mean((1, 2, 3)) + 1e-6).sqrt().mean(), square.detach().mean((1, 2, 3)).mean()


def read_frames(folder: Path) -> np.ndarray:
    """All frames of all episodes of a folder in one array, uint8 (frames, height, width, 3)."""
    return np.concatenate([read_video(path.with_suffix(".mp4")) for path in tqdm(episode_paths(folder), desc="reading", leave=False)])


@torch.no_grad()
def reconstruction_psnr(model: Autoencoder, frames: Tensor) -> float:
    """Mean PSNR in dB over frames, without their border."""
    return mean_psnr(torch.cat([model.decode(model.encode(batch)) for batch in frames.split(100)]), frames)


def mean_psnr(frames: Tensor, truth: Tensor) -> float:
    """Mean over uint8 frames (..., height, width, 3) of their PSNR in dB, without Memory Maze's 2-pixel border."""
    frames, truth = (part[..., 2:-2, 2:-2, :].flatten(0, -4).float() for part in (frames, truth))
    return peak_signal_noise_ratio(frames, truth, data_range=255.0, reduction="none", dim=(1, 2, 3)).clamp(max=60).mean().item()


@torch.no_grad()
def set_latent_scale(model: Autoencoder, frames: Tensor) -> None:
    """Measure the latents' mean and deviation a channel, so that `encode` gives normalised ones."""
    latent = torch.cat([model.bounded_latent(batch) for batch in frames.split(100)])
    model.latent_mean.copy_(latent.mean((0, 2, 3)))
    model.latent_std.copy_(latent.std((0, 2, 3)))


def _save(
    path: Path, run: AutoencoderTraining, step: int, model: Autoencoder, average: Autoencoder, optimizer: torch.optim.Optimizer
) -> None:
    header = {"step": step, "config": asdict(run.model), "seed": run.seed, "decoder_only": run.encoder is not None}
    save_tensors(path, optim.training_tensors(model, average, {"optimizer": optimizer}), header)


def _resume(path: Path, run: AutoencoderTraining, model: Autoencoder, average: Autoencoder, optimizer: torch.optim.Optimizer) -> int:
    tensors, header = load_tensors(path)
    header = {"decoder_only": False, **header}
    check_header(path, header, config=asdict(run.model), seed=run.seed, decoder_only=run.encoder is not None)
    step = header.get("step")
    if type(step) is not int or step < 0:
        raise TensorFileError(f"{path}: was saved at no step, but {str(step)[:100]}")
    optim.load_training_tensors(model, average, {"optimizer": optimizer}, tensors, path)
    return step
