"""Train what samples a frame: the flow head and the collision motion head of a world model that stays as it is otherwise.

`lssvwm-gym train heads --weights DIR --data DIR ... --out DIR`. Dreams go on from real pasts along recorded actions, with the newest
head (`dreamed_samples`); what the model makes of each frame on the way, and the frame that really came, go into a buffer, from which the
heads learn: the flow head by flow matching, the motion head what happened. So they meet the pasts that they themselves make, and in known
places learn to come back from them (DAgger, arXiv 1011.0686). The odometry head learns beside them, from pairs of recorded frames. Where
the recordings tell no poses, only the flow head is trained.

Last the flow head alone learns from a network that tells its frames from real ones, so that one step of it is a sample, too
(`lssvwm_gym.training.adversarial`).
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import Weights, read_weights
from lssvwm_gym.data.episode import fingerprint
from lssvwm_gym.data.segments import Episodes, flipped
from lssvwm_gym.io.tensors import check_header, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.diffusion import add_noise
from lssvwm_gym.models.flow_head import FEW_STEPS, FlowHead, HeadContext
from lssvwm_gym.models.inference.decode import PrepackedWorldModel
from lssvwm_gym.models.map_layout import read_layout_model
from lssvwm_gym.models.map_memory import MapReader, WantedHead, misread, read_map_reader
from lssvwm_gym.models.motion_heads import CollisionMotionHead, is_blocked, moving_actions, read_map_motion_head
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import take_rows
from lssvwm_gym.models.world_model import WorldModel
from lssvwm_gym.training import optim
from lssvwm_gym.training.adversarial import Discriminator, adversarial_loss, discriminator_loss
from lssvwm_gym.training.dreamed_samples import Buffer, DreamOptions, Samples, dreamed_samples, really_came, with_noise
from lssvwm_gym.training.grown import with_heads
from lssvwm_gym.training.latents import latent_episodes
from lssvwm_gym.training.objectives import train_odometry
from lssvwm_gym.training.world_model import LOG_EVERY, check_data, log_losses

LEVEL = (1.2, 0.6, 0.2)  # noise levels are sigmoids of a normal of this deviation and mean, or pure noise in this share
ADVERSARIAL = 1e-4, 2e-4, 200, 0.995  # learning rates of head and discriminator, most steps of that alone, decay of the head's average
ODOMETRY_RATE = 1e-3  # the highest learning rate of the odometry head
MOST_EMPHASIS = 5.0  # means of all misses that count at most
VELOCITY = 0.15  # the weight of an error is that of a velocity, but for noise levels below this one


@dataclass(frozen=True)
class HeadTraining:
    """How to train the heads. The same command line goes on where a stopped run was, with a new buffer."""

    weights: Path  # folder of weights, whose world model and contexts stay as they are
    data: tuple[Path, ...]  # folders of episodes with poses; those of players that run into things teach what blocks a step
    out: Path  # folder for checkpoint.safetensors, logs, and world.safetensors, the world model with its heads
    val: tuple[Path, ...] = ()  # folders of episodes to choose by
    steps: int = 20_000
    contexts: int = 64  # frames a step
    levels: int = 4  # noise levels a frame
    emphasis: float = 0.0  # extra weight of tokens that the world model's mean misses most, such as small things that are rarely seen
    few_steps_from: float = 0.5  # of all steps: from here on the head also learns to take 4, 2 and 1 denoising steps
    learning_rate: float = 1.2e-3
    warmup: int = 300  # steps
    decay: float = 0.4  # share of the steps over which the learning rate falls to zero
    average: float = 0.999  # decay of the moving average of the weights, which dreams and is saved
    adversarial_steps: int = 1500  # after the others: of the flow head alone, so that one denoising step is a sample
    adversarial_weight: float = 0.1  # of what the discriminator says, beside the other losses of the flow head
    told_weight: float = 0.3  # of what the map's reader does not see of what the map tells, beside the other losses of the flow head
    lattice: float = 0.0  # side of the cells in which walls stand at right angles: adds a compass head, which keeps poses from drifting
    reader: Path | None = None  # reader.safetensors of `experiments.maze_reader`: adds a map that the flow head is told of
    layouts: Path | None = None  # layouts.safetensors of `experiments.maze_layout`: what that map does not show is imagined
    motions: Path | None = None  # motions.safetensors of `experiments.maze_motion`: how one moves among walls that the map knows
    flow_width: int = 160  # of a head that is drawn anew, where the weights have none
    dreams: DreamOptions = field(default_factory=DreamOptions)
    buffer: int = 200_000  # frames, of some 9 kB
    refresh: int = 150  # steps between two rounds of dreams
    motion_noise: float = 0.35  # latents carry up to this much for the motion head
    odometry_updates: int = 4  # a step, of the odometry head: what a motion looks like that a wall has changed, explorers don't show
    motion_dropout: float = 0.0  # share of their numbers that it doesn't see while it learns: with few recordings it knows them by heart
    augmentation: tuple[int, ...] = ()  # each action's mirror image, as in training a world
    precision: str = "auto"
    save_every: int = 500  # steps
    seed: int = 0
    threads: int = 0  # 0: leave it to torch

    def __post_init__(self) -> None:
        if not 0 <= self.motion_dropout < 1:
            raise ValueError(f"motion_dropout is a share from 0 to below 1, not {self.motion_dropout}")

    @property
    def checkpoint(self) -> Path:
        """What a stopped run goes on from."""
        return self.out / "checkpoint.safetensors"


def token_weights(samples: Samples, emphasis: float) -> Tensor:
    """Of each token's error, (K, N, 1): 1, and more by how far the mean misses what came, up to `MOST_EMPHASIS` times the emphasis."""
    missed = (samples.latent - samples.evidence.mean).square().mean(-1, keepdim=True)
    weight = 1 + emphasis * (missed / missed.mean().clamp(min=1e-6)).clamp(max=MOST_EMPHASIS)
    return weight * (samples.counts / samples.counts.mean().clamp(min=1e-6))[:, None]


def flow_loss(flow_head: FlowHead, samples: Samples, levels: int, generator: torch.Generator, emphasis: float = 0.0) -> Tensor:
    """Flow matching: several noise levels of every frame, errors of the clean latent weighed as those of the velocity."""
    tokens, vector, base = flow_head.context(samples.evidence)
    base = None if base is None else base.repeat_interleave(levels, 0)
    context = HeadContext(tokens.repeat_interleave(levels, 0), vector.repeat_interleave(levels, 0), base)
    clean = samples.latent.repeat_interleave(levels, 0)
    deviation, mean, pure = LEVEL
    drawn = torch.randn(len(clean), generator=generator, device=clean.device)
    level = torch.sigmoid(deviation * drawn + mean).clamp(1e-3, 1 - 1e-4)
    level = level.where(torch.rand(level.shape, generator=generator, device=clean.device) > pure, 1.0)
    noisy = add_noise(clean, torch.randn(clean.shape, generator=generator, device=clean.device), level)
    weight = token_weights(samples, emphasis).repeat_interleave(levels, 0)
    return _weighed(flow_head(noisy, level, context).float() - clean, level, weight)


def told_loss(flow_head: FlowHead, reader: MapReader, samples: Samples, steps: int, generator: torch.Generator) -> Tensor:
    """Whether the first of so many denoising steps shows what the map tells, as its reader sees it."""
    noise = torch.randn(samples.latent.shape, generator=generator)
    context = flow_head.for_steps(flow_head.context(samples.evidence), steps)
    return misread(reader(flow_head(noise, torch.ones(len(noise)), context).float(), samples.rest), samples.told).mean()


def few_steps_loss(flow_head: FlowHead, average: FlowHead, samples: Samples, generator: torch.Generator, emphasis: float = 0.0) -> Tensor:
    """One long stride of the head should lead where two of half its length, by the average head, lead."""
    steps = torch.tensor(FEW_STEPS)[torch.randint(len(FEW_STEPS), (len(samples.latent),), generator=generator)]
    weight, parts = token_weights(samples, emphasis), []
    for number in FEW_STEPS:
        some = steps == number
        if not some.any():
            continue
        evidence, clean = take_rows((samples.evidence, samples.latent), some)
        level = 1 - torch.randint(number, (len(clean),), generator=generator) / number  # where such a stride begins
        noisy = add_noise(clean, torch.randn(clean.shape, generator=generator), level)
        with torch.no_grad():
            context, x = average.for_steps(average.context(evidence), 2 * number), noisy
            for half in (0.0, 0.5):
                now = level - half / number
                estimate = average(x, now, context).float()
                x = torch.lerp(estimate, x, ((now - 0.5 / number) / now)[:, None, None])
            share = ((level - 1 / number) / level)[:, None, None]  # x = estimate + share * (noisy - estimate)
            target = (x - share * noisy) / (1 - share)
        estimate = flow_head(noisy, level, flow_head.for_steps(flow_head.context(evidence), number)).float()
        parts.append(_weighed(estimate - target, level, weight[some]) * len(clean))
    return torch.stack(parts).sum() / len(steps)


def _weighed(error: Tensor, level: Tensor, weight: Tensor) -> Tensor:
    return ((error.square() * weight).mean((1, 2)) / level.clamp(min=VELOCITY).square()).mean()


def motion_loss(
    motion_head: CollisionMotionHead, samples: Samples, ahead: list[int], noise: float, generator: torch.Generator, dropout: float = 0.0
) -> Tensor:
    """Whether each step was blocked, and the motion of the case that came."""
    samples = really_came(samples)
    latent = with_noise(samples.evidence.last, noise, generator)
    if dropout:
        kept = torch.rand(latent.shape, generator=generator, device=latent.device) >= dropout
        latent = latent * kept / (1 - dropout)
    logit, motions = motion_head.cases(latent, samples.last_motion, samples.evidence.action)
    scale = motion_head.motion_scale
    truth = is_blocked(samples.motion, samples.evidence.action, ahead, scale[0])
    expected = torch.where(truth[:, None], motions[:, 1], motions[:, 0])
    regression = F.smooth_l1_loss(expected / scale, samples.motion / scale, beta=0.1)
    return F.binary_cross_entropy_with_logits(logit, truth.float()) + regression


class Heads(nn.Module):
    def __init__(self, flow_head: FlowHead, motion_head: CollisionMotionHead | None, wanted_head: WantedHead | None) -> None:
        super().__init__()
        self.flow_head, self.motion_head, self.wanted_head = flow_head, motion_head, wanted_head

    @classmethod
    def of(cls, model: WorldModel) -> Heads:
        """Those of a model that has a flow head."""
        if model.flow_head is None:
            raise ValueError("the world model lacks a flow head")
        return cls(model.flow_head, model.motion_head if isinstance(model.motion_head, CollisionMotionHead) else None, model.wanted_head)


class HeadTrainer:
    """A training of the heads in memory."""

    def __init__(self, run: HeadTraining, weights: Weights, episodes: list[Segment], data: dict[str, Any] | None = None) -> None:
        torch.manual_seed(run.seed)
        self.run, self.data, self.step, self.frames, self.seconds = run, data or {}, 0, 0, 0.0
        self.episodes = Episodes.of(episodes)
        reader = None if run.reader is None else read_map_reader(run.reader)
        layouts = None if run.layouts is None else read_layout_model(run.layouts)
        motions = None if run.motions is None else read_map_motion_head(run.motions, weights.world_model.config)
        parts = run.flow_width, self.episodes.posed, run.lattice, reader, layouts, motions
        self.model = with_heads(weights.world_model, *parts).requires_grad_(False)
        self.ahead = moving_actions(episodes, self.model.config.motion_scale[0])[0]  # the actions that a wall can block
        self.average = Heads.of(self.model)  # the model's own, so it dreams with the average
        self.heads = copy.deepcopy(self.average).requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        compass = [] if self.model.compass_head is None else [self.model.compass_head]
        self.localizers = nn.ModuleList([self.model.odometry_head, *compass]).requires_grad_(True)
        self.odometry_optimizer = torch.optim.AdamW(self.localizers.parameters(), weight_decay=0.05)
        self.buffer = Buffer(run.buffer)
        self.discriminator = Discriminator(self.model.config)
        betas, (rate, rate_of_other, _, _) = (0.0, 0.95), ADVERSARIAL
        self.adversaries = {
            "flow": torch.optim.AdamW(self.heads.flow_head.parameters(), rate, betas, weight_decay=0.01),
            "discriminator": torch.optim.AdamW(self.discriminator.parameters(), rate_of_other, betas, weight_decay=0.01),
        }

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser, after a round of dreams where it is time for one; returns losses to log."""
        run, began = self.run, time.monotonic()
        rng = np.random.default_rng([run.seed, self.step])
        if not self.buffer.parts or self.step % run.refresh == 0:
            samples = dreamed_samples(run.dreams, PrepackedWorldModel.of(self.model, torch.float32), self.episodes, rng)
            self.buffer.add(samples)
            self.frames += len(samples.latent)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        losses = self._adversarial_step(rng, generator) if self.step >= run.steps else self._step(rng, generator)
        if run.odometry_updates and self.step < run.steps:
            rate = optim.learning_rate(self.step, run.steps, ODOMETRY_RATE, run.warmup, run.decay)
            optim.set_learning_rate(self.odometry_optimizer, rate)
            losses["odometry"] = train_odometry(self.model, self.odometry_optimizer, self.episodes, run.odometry_updates, rng)
        self.step += 1
        self.seconds += time.monotonic() - began
        return losses

    def _step(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        run = self.run
        optim.set_learning_rate(self.optimizer, optim.learning_rate(self.step, run.steps, run.learning_rate, run.warmup, run.decay))
        samples = self.buffer.draw(run.contexts, rng)
        with optim.mixed_precision(run.precision):
            losses = {"flow": flow_loss(self.heads.flow_head, samples, run.levels, generator, run.emphasis)}
            if self.step >= run.few_steps_from * run.steps:
                losses["few_steps"] = few_steps_loss(self.heads.flow_head, self.average.flow_head, samples, generator, run.emphasis)
            losses |= self._told(samples, generator)
        if self.episodes.posed and self.heads.motion_head is not None:
            some, noise, dropout = self.buffer.draw(256, rng), run.motion_noise, run.motion_dropout
            losses["motion"] = motion_loss(self.heads.motion_head, some, self.ahead, noise, generator, dropout)
        if self.heads.wanted_head is not None:
            some = really_came(self.buffer.draw(256, rng))
            losses["wanted"] = F.cross_entropy(self.heads.wanted_head(some.evidence.shown, some.wanted), some.evidence.wanted)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        losses["gradient_norm"] = nn.utils.clip_grad_norm_(self.heads.parameters(), 1.0)
        self.optimizer.step()
        optim.update_average(self.average, self.heads, self.step, run.average)
        return losses

    def _told(self, samples: Samples, generator: torch.Generator) -> dict[str, Tensor]:
        if self.model.map_reader is None:
            return {}
        steps = FEW_STEPS[self.step % len(FEW_STEPS)]
        return {"told": self.run.told_weight * told_loss(self.heads.flow_head, self.model.map_reader, samples, steps, generator)}

    def _adversarial_step(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """The discriminator learns, and but for the first steps the flow head learns from it."""
        run, step, (rate, _, alone, average) = self.run, self.step - self.run.steps, ADVERSARIAL
        evidence, real, *_ = samples = really_came(self.buffer.draw(3 * run.contexts // 2, rng))
        head = self.heads.flow_head
        with optim.mixed_precision(run.precision):
            sampled = head.sample(head.context(evidence), torch.randn(real.shape, generator=generator), 1)[0].float()
        losses = {"discriminator": discriminator_loss(self.discriminator, real, sampled.detach(), evidence, generator)}
        losses["discriminator"].backward()
        self.adversaries["discriminator"].step()
        self.adversaries["discriminator"].zero_grad()
        alone = min(alone, run.adversarial_steps // 5)
        if step < alone:
            return losses
        some, others = take_rows(samples, torch.arange(3 * run.contexts // 4)), self.buffer.draw(run.contexts, rng)
        with optim.mixed_precision(run.precision):
            losses["flow"] = flow_loss(head, some, run.levels, generator, run.emphasis)
            losses["few_steps"] = few_steps_loss(head, self.average.flow_head, some, generator, run.emphasis)
            losses |= self._told(others, generator)
        losses["adversarial"] = adversarial_loss(self.discriminator, real, sampled, evidence)
        rate = optim.learning_rate(step - alone, run.adversarial_steps - alone, rate, 100, run.decay)
        optim.set_learning_rate(self.adversaries["flow"], rate)
        (losses["flow"] + losses["few_steps"] + run.adversarial_weight * losses["adversarial"] + losses.get("told", 0.0)).backward()
        losses["gradient_norm"] = nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        self.adversaries["flow"].step()
        self.adversaries["flow"].zero_grad()
        optim.update_average(self.average.flow_head, head, step, average)
        return losses

    def header(self) -> dict[str, Any]:
        seen = {"step": self.step, "frames": self.frames, "seconds": round(self.seconds)}
        return {"config": asdict(self.model.config), **seen, "data": self.data}

    def save(self, path: Path) -> None:
        """Write all but the buffer."""
        tensors = optim.training_tensors(self.heads, self.average, {"optimizer": self.optimizer})
        tensors |= prefixed("localizers", self.localizers.state_dict())
        tensors |= prefixed("odometry_optimizer", optim.optimizer_tensors(self.odometry_optimizer))
        if self.step > self.run.steps:
            tensors |= prefixed("discriminator", self.discriminator.state_dict())
            for name, optimizer in self.adversaries.items():
                tensors |= prefixed(f"adversary_{name}", optim.optimizer_tensors(optimizer))
        save_tensors(path, tensors, self.header())

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote. Raises `TensorFileError` if it belongs to another model."""
        tensors, header = load_tensors(path)
        check_header(path, header, config=asdict(self.model.config))
        optim.load_training_tensors(self.heads, self.average, {"optimizer": self.optimizer}, tensors, path)
        if localizers := under("localizers", tensors):  # checkpoints of before have none
            load_strictly(self.localizers, localizers, path)
            optim.load_optimizer_tensors(self.odometry_optimizer, under("odometry_optimizer", tensors), path)
        if discriminator := under("discriminator", tensors):
            load_strictly(self.discriminator, discriminator, path)
            for name, optimizer in self.adversaries.items():
                optim.load_optimizer_tensors(optimizer, under(f"adversary_{name}", tensors), path)
        self.step, self.frames, self.seconds = int(header["step"]), int(header["frames"]), float(header["seconds"])


@torch.no_grad()
def head_errors(heads: Heads, samples: Samples, ahead: list[int]) -> dict[str, float]:
    """Mean square error of the estimate at some noise levels; recall and precision of blocked steps."""
    generator, errors = torch.Generator().manual_seed(1), {}
    context, clean = heads.flow_head.context(samples.evidence), samples.latent
    for level in (1.0, 0.8, 0.5, 0.25):
        levels = torch.full((len(clean),), level)
        noisy = add_noise(clean, torch.randn(clean.shape, generator=generator), levels)
        errors[f"error_{level}"] = (heads.flow_head(noisy, levels, context) - clean).square().mean().item()
    if heads.motion_head is None:
        return errors
    samples = really_came(samples)
    said = heads.motion_head.cases(samples.evidence.last, samples.last_motion, samples.evidence.action)[0] > 0
    truth = is_blocked(samples.motion, samples.evidence.action, ahead, heads.motion_head.motion_scale[0])
    hits = (said & truth).sum()
    return errors | {"blocked_recall": float(hits / truth.sum().clamp(min=1)), "blocked_precision": float(hits / said.sum().clamp(min=1))}


def train_heads(run: HeadTraining) -> Path:
    """Train, and return the path of the world model with its heads."""
    if run.threads:
        torch.set_num_threads(run.threads)
    weights = read_weights(run.weights)
    episodes = _episodes(run, run.data, weights.autoencoder)
    check_data(weights.world_model.config, episodes)
    if run.augmentation:
        episodes += [flipped(one, weights.autoencoder, run.augmentation) for one in tqdm(episodes, desc="augmentation", leave=False)]
    trainer = HeadTrainer(run, weights, episodes, {f"{folder.parent.name}/{folder.name}": fingerprint(folder) for folder in run.data})
    if run.checkpoint.exists():
        trainer.load(run.checkpoint)
    val = _validation_samples(run, trainer, _episodes(run, run.val, weights.autoencoder))
    writer = SummaryWriter(str(run.out / "logs"), purge_step=trainer.step)
    steps = run.steps + run.adversarial_steps
    progress = tqdm(total=steps, initial=trainer.step, unit="step", smoothing=0.02)
    while trainer.step < steps:
        losses = trainer.train_step()
        progress.update()
        if trainer.step % LOG_EVERY == 0:
            log_losses(losses, trainer.step, writer, progress)
        if trainer.step % run.save_every == 0 or trainer.step in (run.steps, steps):
            trainer.save(run.checkpoint)
            _score(trainer, val, writer)
    writer.close()
    finished = run.out / "world.safetensors"
    save_tensors(finished, trainer.model.state_dict(), trainer.header())
    return finished


def _episodes(run: HeadTraining, folders: tuple[Path, ...], autoencoder: Autoencoder) -> list[Segment]:
    """Those of all folders; latents are kept apart by the names of a folder and of what it lies in."""
    kept = run.out / "latents"
    return [episode for folder in folders for episode in latent_episodes(folder, autoencoder, kept / folder.resolve().parent.name)]


def _validation_samples(run: HeadTraining, trainer: HeadTrainer, episodes: list[Segment]) -> dict[str, Samples]:
    """Some after recorded and some after dreamed pasts, by the heads of now, so that later scores compare."""
    if not episodes:
        return {}
    kinds = {"recorded": 1.0, "dreamed": 0.0}
    rng, held = np.random.default_rng([run.seed, 2**31]), Episodes.of(episodes)
    return {name: dreamed_samples(replace(run.dreams, recorded=share), trainer.model, held, rng) for name, share in kinds.items()}


def _score(trainer: HeadTrainer, val: dict[str, Samples], writer: SummaryWriter) -> None:
    for kind, samples in val.items():
        errors = head_errors(trainer.average, samples, trainer.ahead)
        for name, value in errors.items():
            writer.add_scalar(f"val_{kind}/{name}", value, trainer.step)
        said = "  ".join(f"{name} {value:.4f}" for name, value in errors.items())
        tqdm.write(f"step {trainer.step}, {kind} pasts: {said}")
