"""Train every variant on the same clips for the same number of frames, score it, and write what came out to docs/scores/comparison/.

    python experiments/compare_variants.py --data DIR                      # DIR holds train/, val/ and test/; goes on where it was stopped
    python experiments/compare_variants.py --short --data DIR              # short clips for full-causal, into short_comparison/
    python experiments/compare_variants.py --long --data DIR               # as long as the shipped weights, into long_comparison/
    python experiments/compare_variants.py --world minecraft --data DIR    # into docs/scores/minecraft_comparison/
    python experiments/compare_variants.py --data DIR --help

`python docs/_scripts/update_numbers.py` then makes the README's table of it. A variant that is already trained, in --runs, or scored, in
the folder of scores, is left as it is. A model that was trained elsewhere is put where it would have been: --runs/NAME/world.safetensors,
for other worlds than Memory Maze --runs/WORLD-NAME/world.safetensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from experiments.ablations import VARIANTS, variant
from lssvwm_gym.checkpoints.checkpoint import load_weights
from lssvwm_gym.checkpoints.package import Packaging, package
from lssvwm_gym.evaluation.evaluate import EvalContext, Evaluation, evaluate, open_context
from lssvwm_gym.evaluation.figures import revisit_curve, sheet_of_steps
from lssvwm_gym.io.json_config import write_json
from lssvwm_gym.io.tensors import load_tensors, save_tensors
from lssvwm_gym.malloc import keep_freed_memory
from lssvwm_gym.models.world_model import WorldModelConfig
from lssvwm_gym.training.config import Stage, WorldTraining
from lssvwm_gym.training.world_model import train_world
from lssvwm_gym.worlds import WORLDS

ROOT = Path(__file__).parent.parent
SCORES = ROOT / "docs" / "scores"
MEDIA = ROOT / "docs" / "media"


@dataclass(frozen=True)
class Plan:
    """How the variants of one world are trained and scored."""

    world: str
    scores: Path  # folder
    prefix: str  # of folders of variants and of pictures
    training: dict[str, Any]  # what differs from `WorldTraining`'s defaults
    measured: dict[str, Any]  # what differs from `Evaluation`'s
    pictured: tuple[str, str]  # test and its pictures, by which the variants are shown beside the truth
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    packaging: dict[str, int] = field(default_factory=dict)  # what differs from `Packaging`'s
    variants: tuple[str, ...] = tuple(name for name in VARIANTS if name != "full-causal")  # if no others are asked for


SHORT, LONG = "memory-maze, short clips", "memory-maze, as long as the shipped weights"
REVISITS = dict(tests=("next_frame", "retrieval", "reasoning"), retrieval=(400,), memories=("own",), clips=1)
PLANS = {
    "memory-maze": Plan(
        world="memory-maze",
        scores=SCORES / "comparison",
        prefix="",
        training=dict(steps=300),
        measured=REVISITS,
        pictured=("retrieval", "own memory"),
    ),
    LONG: Plan(
        world="memory-maze",
        scores=SCORES / "long_comparison",
        prefix="long-",
        training=dict(  # docs/training.md, "On a GPU"
            steps=2323,
            learning_rate=2e-3,
            average=0.999,
            teacher_forcing=0.35,
            self_rollout=0.4,
            augmentation=(0, 1, 3, 2, 5, 4),
            curriculum=(Stage(0.05, 40, 2), Stage(0.15, 40, 6), Stage(0.8, 40, 20)),
        ),
        measured=REVISITS,
        pictured=("retrieval", "own memory"),
        variants=("ours", "no-spatial-memory"),
    ),
    SHORT: Plan(
        world="memory-maze",
        scores=SCORES / "short_comparison",
        prefix="short-",
        training=dict(steps=200, frames_a_step=320, curriculum=(Stage(1.0, 80, 1),)),
        measured=dict(tests=("next_frame", "retrieval", "reasoning"), retrieval=(40,), reasoning=(50, 30), memories=("own",), clips=2),
        pictured=("retrieval", "own memory"),
        packaging=dict(long_context_frames=100),
        variants=("ours", "sliding-window", "full-causal"),
    ),
    "minecraft": Plan(
        world="minecraft",
        scores=SCORES / "minecraft_comparison",
        prefix="minecraft-",
        training=dict(
            steps=400,
            curriculum=(Stage(0.1, 40, 2), Stage(0.2, 40, 6), Stage(0.7, 40, 12)),
            teacher_forcing=0.35,
            self_rollout=0.35,
            back=0.3,
        ),
        measured=dict(tests=("next_frame", "reasoning"), clips=3),
        pictured=("reasoning", "true poses"),
        model=WorldModelConfig(
            actions=14, inventory_size=9, motion_scale=(0.5, 0.1, 0.25, 0.3, 0.15), memory_scales=((1.0, 0.25), (3.0, 0.5))
        ),
        packaging=dict(long_context_frames=100),
    ),
}


@dataclass(frozen=True)
class Comparison:
    """What to compare, at which training budget."""

    data: Path  # folder with train/, val/ and test/
    world: str = "memory-maze"
    short: bool = False  # clips of 80 frames, which attention over all frames can be trained on, too
    long: bool = False  # 2,973,440 frames, as the shipped weights were trained on: five minutes on an H200, three hours on a CPU core
    autoencoder: Path | None = None  # file, or folder of weights; the world's shipped weights if not given
    runs: Path = ROOT / "runs" / "comparison"  # where variants are trained
    variants: tuple[str, ...] = ()  # all that are compared in the world if not given
    steps: int | None = None  # of 1,280 frames, a minute for 300 of them on an H200, hours on a CPU; the world's own number if not given
    threads: int = 1
    train_only: bool = False  # leave scoring to a later call

    def __post_init__(self) -> None:
        worlds = list(dict.fromkeys(plan.world for plan in PLANS.values()))
        if self.world not in worlds:
            raise ValueError(f"nothing is compared in a world named {self.world}; there are {', '.join(worlds)}")
        if (self.short or self.long) and self.world != PLANS[SHORT].world:
            raise ValueError(f"short clips and long training are compared in {PLANS[SHORT].world} alone, not in {self.world}")
        if self.short and self.long:
            raise ValueError("short clips, or long training: give one of --short and --long")

    @property
    def plan(self) -> Plan:
        return PLANS[SHORT if self.short else LONG if self.long else self.world]

    @property
    def seeing(self) -> Path:
        """The autoencoder."""
        return self.autoencoder or WORLDS[self.world].weights

    @property
    def pictures(self) -> str:
        """What names of pictures begin with."""
        return self.plan.prefix.replace("-", "_")

    def folder(self, name: str) -> Path:
        """Where a variant is trained."""
        return self.runs / f"{self.plan.prefix}{name}"

    def scores(self, name: str) -> Path:
        return self.plan.scores / f"{name}.json"


def main(run: Comparison) -> None:
    torch.set_num_threads(run.threads)
    context: EvalContext | None = None
    for name in run.variants or run.plan.variants:
        world = trained(run, name)
        if not run.train_only and not run.scores(name).exists():
            context = score(run, name, world, context)
    if not run.train_only:
        draw(run)


def trained(run: Comparison, name: str) -> Path:
    """The finished world model of a variant, trained now if it isn't yet."""
    finished = run.folder(name) / "world.safetensors"
    if not finished.exists():
        print(f"{name}: {VARIANTS[name][0]}")
        settings = dict(frames_a_step=1280) | run.plan.training | ({} if run.steps is None else {"steps": run.steps})
        settings |= dict(data=run.data / "train", val=run.data / "val", autoencoder=run.seeing, out=finished.parent)
        training = WorldTraining(**settings, model=run.plan.model, odometry_updates=2, save_every=100, threads=run.threads)
        train_world(variant(name, training))
    return finished


def score(run: Comparison, name: str, world: Path, opened: EvalContext | None) -> EvalContext:
    """Score a variant on the test episodes and write its JSON; returns its context, whose encoded episodes serve the next one, too."""
    plan, weights = run.plan, run.folder(name) / "weights"
    package(Packaging(run.seeing, world, out=weights, data=run.data / "val", short_contexts=1, long_contexts=1, **plan.packaging))
    evaluation = Evaluation(run.data / "test", world=run.world, weights=weights, **plan.measured)
    context = open_context(evaluation) if opened is None else EvalContext(evaluation, opened.world, load_weights(weights), opened.episodes)
    report = evaluate(evaluation, context)
    tensors, header = load_tensors(world)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    seen = {key: header[key] for key in ("step", "frames", "seconds")}
    report["training"] = {"variant": name, "about": VARIANTS[name][0], "parameters": parameters} | seen
    test, shown = plan.pictured
    pictures = {key: context.kept[test][key] for key in ("truth", shown)}
    save_tensors(run.folder(name) / "recalled.safetensors", pictures, {})
    write_json(run.scores(name), report)
    return context


def draw(run: Comparison) -> None:
    """The variants' revisit curves in one plot, where there is retrieval, and their dreams of the same clips in one contact sheet."""
    plan = run.plan
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(plan.scores.glob("*.json"))}
    if "retrieval" in plan.measured["tests"]:
        revisit_curve(MEDIA / f"{run.pictures}variants_curve.png", reports)
    recalled = {name: run.folder(name) / "recalled.safetensors" for name in reports}
    frames = {name: load_tensors(path)[0] for name, path in recalled.items() if path.exists()}
    if frames:
        truth = next(iter(frames.values()))["truth"]
        shown = {name: pictures[plan.pictured[1]] for name, pictures in frames.items()}
        retrieval_sheet(MEDIA / f"{run.pictures}variants.png", truth, shown)


def retrieval_sheet(path: Path, truth: Tensor, frames: dict[str, Tensor]) -> Path:
    """The same clips as several models, or one with several memories, dream them: a row each under the truth, steps as columns.

    Of the truth (B, T, height, width, 3) uint8 the first clips are shown. Raises `ValueError` for frames, by label, of another shape.
    """
    for label, dreamed in frames.items():
        if dreamed.shape != truth.shape:
            raise ValueError(f"{label!r} has frames {tuple(dreamed.shape)}, the truth {tuple(truth.shape)}")
    return sheet_of_steps(path, {"truth": truth, **frames})


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Comparison, description=__doc__))
