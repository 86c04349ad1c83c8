"""Train the world model on a folder of episodes: `lssvwm-gym train world --data DIR --autoencoder FILE --out DIR`."""

from __future__ import annotations

import copy
import json
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

from lssvwm_gym.data.episode import fingerprint
from lssvwm_gym.data.segments import (
    Clip,
    Episodes,
    LatentEpisode,
    Walk,
    autoencoder_hash,
    draw_walk,
    inputs_of,
    latent_episodes,
    mirrored,
    read_clip,
)
from lssvwm_gym.io import legacy
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.config import preset
from lssvwm_gym.models.inference.backend import Backend, chosen_backend, chosen_device, use_backend
from lssvwm_gym.models.state import WorldState, put_rows, take_rows, where_rows
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.ablations import variant
from lssvwm_gym.training.autoencoder import load_autoencoder
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.distributed import ProcessGroup, ShardedRNG, assemble
from lssvwm_gym.training.latent_metric import picture_metric
from lssvwm_gym.training.objectives import LOSSES
from lssvwm_gym.training.odometry import train_odometry
from lssvwm_gym.training.optim import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    mixed_precision,
    optimizer_tensors,
    set_learning_rate,
    update_average,
)
from lssvwm_gym.training.validation import Validation


class Trainer:
    """A training run in memory: weights, their average, optimiser, and the walks under way with their states.

    Of a team every process has a trainer, with all walks and the states of its own rows, and all call the same methods.
    """

    def __init__(
        self,
        run: WorldTraining,
        episodes: list[LatentEpisode],
        metric: Tensor | None = None,
        data: dict[str, Any] | None = None,
        team: ProcessGroup | None = None,
    ) -> None:
        """`metric` says how latent errors show (`picture_metric`), `data` is the episodes' fingerprint, kept with the weights.

        Without a team this process trains alone. Raises `ValueError` for rows that a team can't divide evenly.
        """
        self.team = team = team or ProcessGroup(torch.device(chosen_device(run.device)))
        run.refuse_uneven_rows(team)
        torch.manual_seed(run.seed)
        self.run, self.step, self.device = run, 0, team.device
        self.episodes = Episodes.of(episodes, self.device)
        self.frames, self.seconds = 0, 0.0  # seen and spent so far, over all sessions of the run
        self.model = WorldModel(run.model).to(self.device)
        use_backend(self.model, chosen_backend(Backend(run.backend, run.attention), str(self.device)))
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = make_optimizer(self.model, run.muon)
        self.data = data or {}
        plain = torch.eye(run.model.tokens * run.model.latent_channels, device=self.device)
        self.metric = plain if metric is None else torch.lerp(plain, metric.to(self.device), run.picture_weight)
        self.walks: list[Walk] = []
        self.state: WorldState = self.model.initial_state(0)

    def train_step(self) -> dict[str, Tensor]:
        """One step of the optimiser; returns losses to log, of all rows."""
        began, run, stage = time.monotonic(), self.run, self.run.stage(self.step)
        rng = np.random.default_rng([run.seed, self.step])
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        self._begin_walks(run.rows(stage), stage, rng)
        clip = read_clip(self.episodes, self.walks[self._mine], stage.frames, run.model.actions)
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, learning_rate(self.step, run.steps, run.learning_rate, run.warmup, run.decay))
            optimizer.zero_grad()
        way = rng.choice(list(LOSSES), p=[max(0.0, 1 - run.peeking - run.dreaming), run.peeking, run.dreaming])  # 1 - 0.9 - 0.1 < 0
        with mixed_precision(run.precision, self.device.type):
            draws = ShardedRNG(generator, self.team.number, self.team.size)
            means, counts, committed = LOSSES[way](self.model, clip, self.state, run.noising, self.metric, draws)
        losses = self._shares(means, counts)
        weights = {"denoise": 1.0, "reward": run.reward_weight, "pose": run.pose_weight, "vector": run.inventory_weight}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()
        self.team.add_gradients(self.model.parameters())
        losses = dict(zip(losses, self.team.summed(torch.stack(list(losses.values())).detach()).unbind(), strict=True))
        losses["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers[:-1]:
            optimizer.step()
        losses["sight"] = train_odometry(self.model, self.optimizers[-1], self.episodes, run.odometry_updates, rng, self.team)
        update_average(self.average, self.model, self.step, run.average)
        self._hand_over(clip, stage.frames, committed)
        self.step += 1
        self.frames += clip.reward.numel() * self.team.size
        self.seconds += time.monotonic() - began
        return losses

    @property
    def _mine(self) -> slice:
        """The rows of this process."""
        return self.team.share(len(self.walks))

    def _shares(self, means: dict[str, Tensor], counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process's means add to those over the frames of all processes; masks leave each another number of frames."""
        here = torch.stack(list(counts.values()))
        share = here.clamp(min=1) / self.team.summed(here).clamp(min=1)
        return {name: means[name] * part for name, part in zip(counts, share.unbind(), strict=True)}

    def _begin_walks(self, rows: int, stage: Stage, rng: np.random.Generator) -> None:
        """Rows whose walk has ended begin a new one with an empty state; a new stage begins all anew."""
        if len(self.walks) != rows:
            self.walks = [Walk(0, 0, 0, 0)] * rows
            self.state = self.model.initial_state(rows // self.team.size)
        ended = torch.tensor([walk.done for walk in self.walks[self._mine]], device=self.device)
        self.state = where_rows(ended, self.model.initial_state(len(ended)), self.state)
        self.walks = [draw_walk(self.episodes, stage.frames, stage.clips, self.run.back, rng) if walk.done else walk for walk in self.walks]

    @torch.no_grad()
    def _hand_over(self, clip: Clip, frames: int, committed: WorldState | None) -> None:
        """Every walk that goes on starts its next clip with the memory of this one; commit the clean clip if that wasn't done."""
        self.walks = [walk.advanced(frames) for walk in self.walks]
        if committed is not None:
            self.state = tree_map(lambda old, new: new.detach().to(old.dtype), self.state, committed)
            return
        going_on = torch.tensor(
            [row for row, walk in enumerate(self.walks[self._mine]) if not walk.done], dtype=torch.int64, device=self.device
        )
        if not len(going_on):
            return
        part = Clip(*(tensor[going_on] for tensor in vars(clip).values()))
        noise = torch.zeros(part.reward.shape, device=self.device)
        with mixed_precision(self.run.precision, self.device.type):
            after = self.model(part.latent, inputs_of(part, noise, part.placed), take_rows(self.state, going_on)).state
        self.state = put_rows(self.state, going_on, after)

    def begin_with(self, path: Path) -> int:
        """Take over the weights of another model where names and shapes agree; returns how many tensors did.

        Raises `TensorFileError` if none does.
        """
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
        """Write everything that the next step depends on, the states of all rows included; of a team, the leading process writes."""
        state: dict[str, Tensor] = {}
        for i, leaf in enumerate(tree_flatten(self.state)[0]):
            rows = self.team.gathered(leaf)
            state |= {str(i): rows.cpu()} if self.team.leads else {}
        if not self.team.leads:
            return
        tensors = {
            **prefixed("model", self.model.state_dict()),
            **prefixed("average", self.average.state_dict()),
            **prefixed("state", state),
        }
        for number, optimizer in enumerate(self.optimizers):
            tensors |= prefixed(f"optimizer{number}", optimizer_tensors(optimizer))
        save_tensors(path, tensors, self.header() | {"seed": self.run.seed, "walks": [asdict(walk) for walk in self.walks]})

    def header(self) -> dict[str, Any]:
        """What the model is and what it has seen."""
        seen = {"step": self.step, "frames": self.frames, "seconds": round(self.seconds)}
        return {"config": asdict(self.run.model), **seen, "data": self.data}

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote, in any number of processes. Raises `TensorFileError` if it belongs to another model or seed."""
        tensors, header = load_tensors(path)
        for name, mine in (("config", json.loads(json.dumps(asdict(self.run.model)))), ("seed", self.run.seed)):
            if header.get(name) != mine:
                raise TensorFileError(f"{path} was made with {name} {header.get(name)!s:.500}, not {mine}; choose another --out")
        try:
            self._take(path, tensors, header)
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise TensorFileError(f"{path}: not a whole checkpoint of such a run ({type(error).__name__}: {error})") from None

    def _take(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        load_strictly(self.model, under("model", tensors), path)
        load_strictly(self.average, under("average", tensors), path)
        for number, optimizer in enumerate(self.optimizers):
            load_optimizer_tensors(optimizer, under(f"optimizer{number}", tensors), path)
        walks = [Walk(**{name: operator.index(value) for name, value in walk.items()}) for walk in header["walks"]]
        self.step, self.walks = operator.index(header["step"]), walks
        self.frames, self.seconds = operator.index(header["frames"]), float(header["seconds"])
        blank, shape = tree_flatten(self.model.initial_state(1))
        saved = under("state", tensors)
        if [saved[str(i)].shape for i in range(len(saved))] != [(len(walks), *leaf.shape[1:]) for leaf in blank]:
            raise TensorFileError(f"{path}: its memory is not that of {len(walks)} walks of such a run")
        self.state = tree_unflatten([saved[str(i)][self._mine].clone().to(self.device) for i in range(len(blank))], shape)


def train_world(run: WorldTraining) -> Path:
    """Train, alone or with the other processes of an `accelerate launch`, and return the path of the finished world model."""
    if run.preset:
        run = replace(run, preset="", model=preset(run.preset))
    run = variant(run.variant, run)
    if run.threads:
        torch.set_num_threads(run.threads)
    team = assemble(run.device)
    run.refuse_uneven_rows(team)
    autoencoder = load_autoencoder(run.autoencoder)
    trainer = _prepared(run, autoencoder, team)
    _train(trainer, autoencoder)
    finished = run.out / "world.safetensors"
    if team.leads:
        save_tensors(finished, trainer.average.state_dict(), trainer.header())
    team.wait()
    return finished


def _prepared(run: WorldTraining, autoencoder: Autoencoder, team: ProcessGroup) -> Trainer:
    """A trainer with all episodes, where the run's last checkpoint was."""
    episodes = latent_episodes(run.data, autoencoder, run.out / "latents", team)
    refuse_unfit(run.model, episodes)
    metric = None
    if run.picture_weight:
        with team.leader_first():
            metric = picture_metric(autoencoder, episodes, run.out / "latents" / autoencoder_hash(autoencoder) / "metric.safetensors")
    if run.mirror:
        progress = tqdm(episodes, desc="mirror images", leave=False, disable=not team.leads)
        episodes = episodes + [mirrored(episode, autoencoder, run.mirror) for episode in progress]
    trainer = Trainer(run, episodes, metric, fingerprint(run.data), team)
    if run.checkpoint.exists():
        trainer.load(run.checkpoint)
    elif run.start is not None:
        taken, all_of_them = trainer.begin_with(run.start), len(trainer.model.state_dict())
        if team.leads:
            print(f"{run.start}: {taken} of {all_of_them} tensors taken over, the others drawn anew")
    team.agree(trainer.step, f"the step that {run.checkpoint} goes on from")
    return trainer


def _train(trainer: Trainer, autoencoder: Autoencoder) -> None:
    """Train to the end; the leading process shows progress, logs and scores."""
    run, leads = trainer.run, trainer.team.leads
    looks = Validation(autoencoder, run.val, run.out, run.model.actions, trainer.device) if run.val and leads else None
    writer = SummaryWriter(str(run.out / "logs"), purge_step=trainer.step) if leads else None
    total, done = run.steps * run.frames_a_step, trainer.step * run.frames_a_step
    progress = tqdm(total=total, initial=done, unit="frame", unit_scale=True, smoothing=0.02, disable=not leads)
    while trainer.step < run.steps:
        losses = trainer.train_step()
        progress.update(run.frames_a_step)
        if trainer.step % 20 == 0 and writer is not None:
            for name, value in losses.items():
                writer.add_scalar(f"train/{name}", value.item(), trainer.step)
            progress.set_postfix({name: f"{value.item():.4f}" for name, value in losses.items()}, refresh=False)
        if trainer.step % run.save_every == 0 or trainer.step == run.steps:
            trainer.save(run.checkpoint)
            if looks is not None and writer is not None:
                tqdm.write(looks.look(trainer.average, trainer.step, writer))
    if writer is not None:
        writer.close()


def refuse_unfit(config: WorldModelConfig, episodes: list[LatentEpisode]) -> None:
    """Raise `ValueError` for episodes whose actions, poses or counts are not those of the model, with the setting that would do."""
    first = episodes[0]
    shapes = {(e.action.shape[1:], e.action.is_floating_point(), e.pose.shape[1], e.inventory.shape[1]) for e in episodes}
    if len(shapes) > 1:
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
    if config.has_spatial_memory and not any(bool(e.pose.isfinite().all(1).any()) for e in episodes):
        raise ValueError("the recordings tell no poses, and without those no places can be remembered: --variant no-places")
