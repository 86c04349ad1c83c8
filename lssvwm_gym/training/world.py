"""Train the world model on a folder of episodes: `lssvwm-gym train world --data DIR --autoencoder FILE --out DIR`."""

from __future__ import annotations

import copy
import json
import operator
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lssvwm_gym.data.folder import fingerprint
from lssvwm_gym.heap import keep_heap
from lssvwm_gym.io.tensors import TensorFileError, load_strictly, load_tensors, prefixed, save_tensors, under
from lssvwm_gym.models.autoencoder import Autoencoder
from lssvwm_gym.models.config import preset
from lssvwm_gym.models.inference.backend import Backend, chosen_backend, chosen_device, use_backend
from lssvwm_gym.models.latents import LatentEpisode
from lssvwm_gym.models.state import WorldState, put_rows, take_rows, where_rows
from lssvwm_gym.models.world_model import WorldModel, WorldModelConfig
from lssvwm_gym.training.autoencoder import load_autoencoder
from lssvwm_gym.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from lssvwm_gym.training.distributed import Team, assemble
from lssvwm_gym.training.draws import Draws
from lssvwm_gym.training.fitting import refuse_unfit
from lssvwm_gym.training.looks import Looks
from lssvwm_gym.training.losses import LOSSES, LossOptions
from lssvwm_gym.training.metric import picture_metric
from lssvwm_gym.training.mirror import mirrored
from lssvwm_gym.training.optimizer import make_optimizer
from lssvwm_gym.training.precision import mixed_precision
from lssvwm_gym.training.schedule import learning_rate, set_learning_rate, update_average
from lssvwm_gym.training.sight import learn_to_see
from lssvwm_gym.training.variants import variant
from lssvwm_gym.training.walks import Clip, Episodes, Walk, autoencoder_hash, draw_walk, inputs_of, latent_episodes, read_clip


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum."""

    share: float  # of all steps
    frames: int  # T, of a clip
    clips: int  # the longest walk, in clips that hand their state on


CURRICULUM = (
    Stage(0.05, 80, 1),
    Stage(0.15, 80, 3),
    Stage(0.8, 80, 10),
)  # short clips in longer and longer walks: most frames for the time


@dataclass(frozen=True)
class WorldTraining:
    """How to train a world model. The same command line goes on exactly where a stopped run was."""

    data: Path  # folder with episodes to learn from
    autoencoder: Path  # autoencoder.safetensors of a finished autoencoder, or a folder of weights
    out: Path  # folder for checkpoint.safetensors, world.safetensors, samples and TensorBoard logs
    val: Path | None = None  # folder with episodes to choose by
    preset: str = ""  # tiny, base or paper: sizes by name instead of `model`
    variant: str = "ours"  # or what it is compared with, see `lssvwm_gym.training.variants`
    start: Path | None = (
        None  # world.safetensors, checkpoint.safetensors or shipped model.safetensors to begin with, where names and shapes agree
    )
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    curriculum: tuple[Stage, ...] = CURRICULUM
    steps: int = 6000
    frames_a_step: int = 320  # rows times frames of a clip, of all processes together
    learning_rate: float = 1e-3
    muon: bool = False  # Muon for the matrices of the layers; its bf16 products are slow on processors without bf16
    warmup: int = 100  # steps
    decay: float = 0.35  # share of the steps over which the learning rate falls to zero
    average: float = 0.998  # decay of the moving average that is shipped
    peeking: float = 0.3  # share of steps in which every frame is committed clean and peeked at noisily, as in a dream
    dreaming: float = 0.45  # share of steps in which, besides, a part of the past is what the model dreams; the rest is forcing
    noising: LossOptions = field(default_factory=LossOptions)
    back: float = 0.4  # share of walks that turn round and go back
    picture_weight: float = 0.75  # share of the denoising loss that weighs latent errors as they show in the picture
    reward_weight: float = 0.1
    pose_weight: float = 0.1
    sight_updates: int = 8  # a step, of the head that sees its own motion, which learns from pairs of frames apart from all else
    save_every: int = 250  # steps
    vector_weight: float = 0.5
    mirror: tuple[int, ...] = ()  # each action's mirror image, such as 0 1 3 2: then every episode is learned from its mirror image too
    precision: str = "auto"  # of matrix products: bfloat16 where the processor has it; or float32, bfloat16
    device: str = "auto"  # auto: cuda where there is one, else cpu
    backend: str = "auto"  # of scans: torch; on CUDA also mamba, mamba-ssm's kernels, which auto takes if they are installed
    attention: str = "auto"  # fold; on CUDA also flex, FlexAttention; auto: fold
    seed: int = 0
    threads: int = 0  # 0: leave it to torch

    def __post_init__(self) -> None:
        if self.peeking < 0 or self.dreaming < 0 or self.peeking + self.dreaming > 1:
            raise ValueError(f"peeking and dreaming are shares of the steps, together at most 1; got {self.peeking} and {self.dreaming}")
        Backend(self.backend, self.attention)

    def stage(self, step: int) -> Stage:
        """The stage of the curriculum that a step belongs to."""
        reached = np.cumsum([stage.share for stage in self.curriculum]) * self.steps
        return self.curriculum[min(int(np.searchsorted(reached, step, side="right")), len(self.curriculum) - 1)]

    def rows(self, stage: Stage) -> int:
        """Walks under way in a stage, in all processes together."""
        return max(1, self.frames_a_step // stage.frames)

    def refuse_uneven_rows(self, team: Team) -> None:
        """Refuse a team whose processes could not all have the same number of rows in every stage."""
        for stage in self.curriculum:
            rows = self.rows(stage)
            team.refuse_uneven(rows, f"{rows} rows (--frames-a-step {self.frames_a_step} in clips of {stage.frames} frames)")

    @property
    def checkpoint(self) -> Path:
        """What a stopped run goes on from."""
        return self.out / "checkpoint.safetensors"


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
        team: Team | None = None,
    ) -> None:
        """`metric` says how latent errors show (`picture_metric`), `data` is the episodes' fingerprint, kept with the weights.

        Without a team this process trains alone. Raises `ValueError` for rows that a team can't divide evenly.
        """
        self.team = team = team or Team(torch.device(chosen_device(run.device)))
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
            draws = Draws(generator, self.team.number, self.team.size)
            means, counts, committed = LOSSES[way](self.model, clip, self.state, run.noising, self.metric, draws)
        losses = self._shares(means, counts)
        weights = {"denoise": 1.0, "reward": run.reward_weight, "pose": run.pose_weight, "vector": run.vector_weight}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()
        self.team.add_gradients(self.model.parameters())
        losses = dict(zip(losses, self.team.summed(torch.stack(list(losses.values())).detach()).unbind(), strict=True))
        losses["gradient_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers[:-1]:
            optimizer.step()
        losses["sight"] = learn_to_see(self.model, self.optimizers[-1], self.episodes, run.sight_updates, rng, self.team)
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
    keep_heap()
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


def _prepared(run: WorldTraining, autoencoder: Autoencoder, team: Team) -> Trainer:
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
    looks = Looks(autoencoder, run.val, run.out, run.model.actions, trainer.device) if run.val and leads else None
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
