"""Train the world model on a folder of episodes: `lssvwm-gym train world --data DIR --autoencoder FILE --out DIR`."""

import copy
import math
import operator
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lssvwm_gym.checkpoints.checkpoint import load_autoencoder
from lssvwm_gym.data.episode import fingerprint
from lssvwm_gym.data.segments import Episodes, SegmentIndex, draw_segment, flipped, inputs_of, read_clip
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, check_header, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.config import preset
from lssvwm_gym.models.inference.backend import Backend, chosen_backend, chosen_device, use_backend
from lssvwm_gym.models.segment import Segment
from lssvwm_gym.models.state import WorldState, put_rows, take_rows, where_rows
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training import optim
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.distributed import ProcessGroup, ShardedRNG, assemble
from lssvwm_gym.training.from_data import fitted, known_config, settings_from_data
from lssvwm_gym.training.latents import autoencoder_hash, latent_episodes, latent_metric
from lssvwm_gym.training.objectives import LOSSES, train_odometry
from lssvwm_gym.training.validation import Validation

LOG_EVERY = 20  # steps


class Trainer:
    """A training run in memory: weights, their average, optimiser, and the segments under way with their states.

    Of a process group every process has a trainer, with all segments and the states of its own rows, and all call the same methods.
    """

    def __init__(
        self,
        run: WorldTraining,
        episodes: list[Segment],
        metric: Tensor | None = None,
        data: dict[str, Any] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        """`metric` says how latent errors show (`latent_metric`), `data` is the episodes' fingerprint, kept with the weights.

        Without a group this process trains alone. Raises `ValueError` for rows that a group can't divide evenly.
        """
        self.group = group = group or ProcessGroup(torch.device(chosen_device(run.device)))
        run.refuse_uneven_rows(group)
        torch.manual_seed(run.seed)
        self.run, self.step, self.device = run, 0, group.device
        self.episodes = Episodes.of(episodes, self.device)
        self.frames, self.seconds = 0, 0.0  # seen and spent so far, over all sessions of the run
        self.model = WorldModel(run.model).to(self.device)
        self.options = run.noising
        if self.model.termination_head is not None:
            others = len(self.episodes.whole.action) / max(self.episodes.ends, 0.5) - 1  # frames that end nothing, for each that does
            self.options = replace(run.noising, end_weight=run.noising.end_weight or math.sqrt(others))
            self.model.termination_head.begin_with(others)
        if self.model.residual is not None:
            self.model.residual.first.copy_(self.episodes.whole.latent.float().mean(0))
        use_backend(self.model, chosen_backend(Backend(run.backend), str(self.device)))
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = optim.make_optimizer(self.model, run.muon)
        self.data = data or {}
        plain = torch.eye(run.model.tokens * run.model.latent_channels, device=self.device)
        self.metric = plain if metric is None else torch.lerp(plain, metric.to(self.device), run.picture_weight)
        self.segments: list[SegmentIndex] = []
        self.state: WorldState = self.model.initial_state(0)

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser; returns losses to log, of all rows."""
        began, run, stage = time.monotonic(), self.run, self.run.stage(self.step)
        rng = np.random.default_rng([run.seed, self.step])
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        self._begin_segments(run.rows(stage), stage, rng)
        clip = read_clip(self.episodes, self.segments[self._shard], stage.frames, run.model.actions)
        for optimizer in self.optimizers:
            optim.set_learning_rate(optimizer, optim.learning_rate(self.step, run.steps, run.learning_rate, run.warmup, run.decay))
            optimizer.zero_grad()
        shares = [max(0.0, 1 - run.teacher_forcing - run.self_rollout), run.teacher_forcing, run.self_rollout]  # 1 - 0.9 - 0.1 < 0
        with optim.mixed_precision(run.precision, self.device.type):
            sharded = ShardedRNG(generator, self.group.process_index, self.group.num_processes)
            objective = LOSSES[rng.choice(list(LOSSES), p=shares)]
            means, counts, committed = objective(self.model, clip, self.state, self.options, self.metric, sharded)
        losses = self._shares(means, counts)
        weights = {"denoise": 1.0, "reward": run.reward_weight, "pose": run.pose_weight, "inventory": run.inventory_weight}
        weights["termination"] = run.termination_weight
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        self.group.add_gradients(self.model.parameters())
        losses = dict(zip(losses, self.group.summed(torch.stack(list(losses.values())).detach()).unbind(), strict=True))
        losses["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers[:-1]:
            optimizer.step()
        losses["odometry"] = train_odometry(self.model, self.optimizers[-1], self.episodes, run.odometry_updates, rng, self.group)
        optim.update_average(self.average, self.model, self.step, run.average)
        self._carry_state(clip, stage.frames, committed)
        self.step += 1
        self.frames += clip.reward.numel() * self.group.num_processes
        self.seconds += time.monotonic() - began
        return losses

    @property
    def _shard(self) -> slice:
        return self.group.share(len(self.segments))

    def _shares(self, means: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process's means add to those over the frames of all processes; masks leave each another number of frames."""
        here = torch.stack(list(counts.values()))
        share = here.clamp(min=1) / self.group.summed(here).clamp(min=1)
        return {name: means[name] * part for name, part in zip(counts, share.unbind(), strict=True)}

    def _begin_segments(self, rows: int, stage: Stage, rng: np.random.Generator) -> None:
        """Rows whose segment has ended begin a new one with an empty state; a new stage begins all anew."""
        if len(self.segments) != rows:
            self.segments = [SegmentIndex(0, 0, 0, 0)] * rows
            self.state = self.model.initial_state(rows // self.group.num_processes)
        ended = torch.tensor([segment.done for segment in self.segments[self._shard]], device=self.device)
        self.state = where_rows(ended, self.model.initial_state(len(ended)), self.state)
        drawing = self.episodes, stage.frames, stage.clips, self.run.back, rng
        self.segments = [draw_segment(*drawing) if segment.done else segment for segment in self.segments]

    @torch.no_grad()
    def _carry_state(self, clip: Segment, frames: int, committed: WorldState | None) -> None:
        """Every segment that goes on begins its next clip with the state after this one; commit the clean clip if that wasn't done."""
        self.segments = [replace(segment, at=segment.at + frames) for segment in self.segments]
        if committed is not None:
            self.state = tree_map(lambda old, new: new.detach().to(old.dtype), self.state, committed)
            return
        if not (rows := [row for row, segment in enumerate(self.segments[self._shard]) if not segment.done]):
            return
        going_on = torch.tensor(rows, device=self.device)
        part = clip.take(going_on)
        noise = torch.zeros(part.reward.shape, device=self.device)
        with optim.mixed_precision(self.run.precision, self.device.type):
            after = self.model(part.latent, inputs_of(part, noise, part.pose_known), take_rows(self.state, going_on)).state
        self.state = put_rows(self.state, going_on, after)

    def begin_with(self, path: Path) -> int:
        """Take over weights of another model where names and shapes agree; how many tensors did. Raises `TensorFileError` if none does."""
        tensors, _ = load_tensors(path)
        mine, theirs = self.model.state_dict(), under("average", tensors) or under("world_model", tensors) or tensors
        theirs = legacy.parameters(theirs)
        taken = {name: tensor.to(mine[name]) for name, tensor in theirs.items() if name in mine and mine[name].shape == tensor.shape}
        if not taken:
            raise TensorFileError(f"{path}: no tensor of it has the name and shape of one of this model's")
        self.model.load_state_dict(mine | taken)
        self.average.load_state_dict(self.model.state_dict())
        return len(taken)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on, the states of all rows included; of a group, the main process writes."""
        state: dict[str, Tensor] = {}
        for i, leaf in enumerate(tree_flatten(self.state)[0]):
            rows = self.group.gathered(leaf)
            state |= {str(i): rows.cpu()} if self.group.is_main_process else {}
        if not self.group.is_main_process:
            return
        tensors = optim.training_tensors(self.model, self.average, self._named_optimizers) | prefixed("state", state)
        save_tensors(path, tensors, self.header() | {"seed": self.run.seed, "segments": [asdict(segment) for segment in self.segments]})

    @property
    def _named_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {f"optimizer{number}": optimizer for number, optimizer in enumerate(self.optimizers)}

    def header(self) -> dict[str, Any]:
        seen = {"step": self.step, "frames": self.frames, "seconds": round(self.seconds)}
        return {"config": asdict(self.run.model), **seen, "data": self.data}

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote, in any number of processes. Raises `TensorFileError` if it belongs to another model or seed."""
        tensors, header = load_tensors(path)
        header = legacy.renamed(header, legacy.CHECKPOINT)
        header["config"] = known_config(header.get("config"))
        check_header(path, header, config=asdict(self.run.model), seed=self.run.seed)
        try:
            self._take(path, tensors, header)
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise TensorFileError(f"{path}: not a whole checkpoint of such a run ({type(error).__name__}: {error})") from None

    def _take(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        optim.load_training_tensors(self.model, self.average, self._named_optimizers, tensors, path)
        segments = [SegmentIndex(**{name: operator.index(value) for name, value in one.items()}) for one in header["segments"]]
        self.step, self.segments = operator.index(header["step"]), segments
        self.frames, self.seconds = operator.index(header["frames"]), float(header["seconds"])
        blank, shape = tree_flatten(self.model.initial_state(1))
        saved = under("state", tensors)
        if [saved[str(i)].shape for i in range(len(saved))] != [(len(segments), *leaf.shape[1:]) for leaf in blank]:
            raise TensorFileError(f"{path}: its memory is not that of {len(segments)} segments of such a run")
        self.state = tree_unflatten([saved[str(i)][self._shard].clone().to(self.device) for i in range(len(blank))], shape)


def train_world(run: WorldTraining) -> Path:
    """Train, alone or with the other processes of an `accelerate launch`, and return the path of the finished world model."""
    if run.preset:
        run = replace(run, preset="", model=preset(run.preset))
    if run.threads:
        torch.set_num_threads(run.threads)
    group = assemble(run.device)
    run.refuse_uneven_rows(group)
    autoencoder = load_autoencoder(run.autoencoder)
    trainer = _prepared(run, autoencoder, group)
    _train(trainer, autoencoder)
    finished = run.out / "world.safetensors"
    if group.is_main_process:
        save_tensors(finished, trainer.average.state_dict(), trainer.header())
    group.wait()
    return finished


def _prepared(run: WorldTraining, autoencoder: Autoencoder, group: ProcessGroup) -> Trainer:
    """A trainer with all episodes, where the run's last checkpoint was."""
    episodes = latent_episodes(run.data, autoencoder, run.out / "latents", group)
    run = replace(run, model=settings_from_data(fitted(run.model, run.data, episodes), episodes, run.checkpoint))
    check_data(run.model, episodes)
    metric = None
    if run.picture_weight:
        with group.main_process_first():
            metric = latent_metric(autoencoder, episodes, run.out / "latents" / autoencoder_hash(autoencoder) / "metric.safetensors")
    if run.augmentation:
        progress = tqdm(episodes, desc="augmentation", leave=False, disable=not group.is_main_process)
        episodes = episodes + [flipped(episode, autoencoder, run.augmentation) for episode in progress]
    trainer = Trainer(run, episodes, metric, fingerprint(run.data), group)
    if run.checkpoint.exists():
        trainer.load(run.checkpoint)
    elif run.start is not None:
        taken, all_of_them = trainer.begin_with(run.start), len(trainer.model.state_dict())
        if group.is_main_process:
            print(f"{run.start}: {taken} of {all_of_them} tensors taken over, the others drawn anew")
    group.agree(trainer.step, f"the step that {run.checkpoint} goes on from")
    return trainer


def _train(trainer: Trainer, autoencoder: Autoencoder) -> None:
    """Train to the end; the main process shows progress, logs and scores."""
    run, main = trainer.run, trainer.group.is_main_process
    validation = Validation(autoencoder, run.val, run.out, run.model.actions, trainer.device) if run.val and main else None
    writer = SummaryWriter(str(run.out / "logs"), purge_step=trainer.step) if main else None
    total, done = run.steps * run.frames_a_step, trainer.step * run.frames_a_step
    progress = tqdm(total=total, initial=done, unit="frame", unit_scale=True, smoothing=0.02, disable=not main)
    while trainer.step < run.steps:
        losses = trainer.train_step()
        progress.update(run.frames_a_step)
        if trainer.step % LOG_EVERY == 0 and writer is not None:
            log_losses(losses, trainer.step, writer, progress)
        if trainer.step % run.save_every == 0 or trainer.step == run.steps:
            trainer.save(run.checkpoint)
            if validation is not None and writer is not None:
                tqdm.write(validation.score(trainer.average, trainer.step, writer))
    if writer is not None:
        writer.close()


def log_losses(losses: dict[str, Tensor], step: int, writer: SummaryWriter, progress: Any) -> None:
    values = {name: value.item() for name, value in losses.items()}
    for name, value in values.items():
        writer.add_scalar(f"train/{name}", value, step)
    progress.set_postfix({name: f"{value:.4f}" for name, value in values.items()}, refresh=False)


def check_data(config: WorldModelConfig, episodes: list[Segment]) -> None:
    """Raise `ValueError` for episodes whose actions, poses or counts are not those of the model, with the setting that would do."""
    first = episodes[0]
    if short := [number for number, episode in enumerate(episodes) if len(episode) < 2]:
        raise ValueError(f"an episode has at least 2 frames, but number {short[0]} of {len(episodes)} (by name, from 0) has 1: remove it")
    if len({(e.action.shape[1:], e.action.is_floating_point(), e.pose.shape[1], e.inventory.shape[1]) for e in episodes}) > 1:
        raise ValueError("the episodes are of several worlds: they differ in their actions, poses or counts")
    if first.action.is_floating_point():
        size = first.action.shape[1] if first.action.ndim == 2 else 0
        if size != config.action_size or config.actions:
            raise ValueError(f"actions are {size} numbers each: --model.actions 0 --model.action-size {size}")
    elif not config.actions or first.action.ndim != 1:
        raise ValueError("actions are discrete, one a frame: --model.actions N --model.action-size 0")
    elif (largest := max(int(e.action.max()) for e in episodes)) >= config.actions:
        raise ValueError(f"there are actions up to {largest}, but the model knows {config.actions}: --model.actions {largest + 1} or more")
    if config.inventory_size and first.inventory.shape[1] != config.inventory_size:
        raise ValueError(f"{first.inventory.shape[1]} counts go with a frame: --model.inventory-size {first.inventory.shape[1]}")
    if config.inventory_size and not config.inventory_changes and any(bool((e.inventory < 0).any()) for e in episodes):
        raise ValueError("inventories have counts below 0: numbers of any sign need --model.inventory-changes and --model.inventory-range")
    if config.has_spatial_memory and not any(bool(e.pose.isfinite().all(1).any()) for e in episodes):
        raise ValueError("the recordings have no poses, which a spatial memory needs: --model.memory-features 0")
