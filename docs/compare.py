"""Train every variant on the same clips for the same number of frames, score it, and write what came out to docs/scores/comparison/.

    python docs/compare.py --data DIR          # DIR holds train/, val/ and test/; goes on where it was stopped
    python docs/compare.py --data DIR --help

`python docs/update_numbers.py` then makes the README's table of it. A variant that is already trained, in --runs, or scored, in
docs/scores/comparison/, is left as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from lssvwm_gym.data.tensors import load_tensors, save_tensors
from lssvwm_gym.evaluation.evaluate import Bench, Evaluation, evaluate, open_bench
from lssvwm_gym.evaluation.figures import retrieval_sheet, revisit_curve
from lssvwm_gym.models.weights import load_weights
from lssvwm_gym.training.ship import Shipping, ship
from lssvwm_gym.training.variants import VARIANTS
from lssvwm_gym.training.world import WorldTraining, train_world

ROOT = Path(__file__).parent.parent
SCORES = ROOT / "docs" / "scores" / "comparison"
MEDIA = ROOT / "docs" / "media"
FRAMES = 400  # of the way that is walked back


@dataclass(frozen=True)
class Comparison:
    """What to compare, at which expense."""

    data: Path  # folder with train/, val/ and test/
    autoencoder: Path = ROOT / "lssvwm_gym" / "weights" / "memory_maze"
    runs: Path = ROOT / "runs" / "comparison"  # where variants are trained
    variants: tuple[str, ...] = tuple(name for name in VARIANTS if name != "full-causal")
    steps: int = 300  # of 1,280 frames: a minute each on an H200, hours on a CPU
    threads: int = 1
    train_only: bool = False  # leave scoring to a later call


def main(run: Comparison) -> None:
    torch.set_num_threads(run.threads)
    bench: Bench | None = None
    for name in run.variants:
        world = trained(run, name)
        if not run.train_only and not (SCORES / f"{name}.json").exists():
            bench = score(run, name, world, bench)
    if not run.train_only:
        draw(run)


def trained(run: Comparison, name: str) -> Path:
    """The finished world model of a variant, trained now if it isn't yet."""
    training = WorldTraining(
        data=run.data / "train",
        val=run.data / "val",
        autoencoder=run.autoencoder,
        out=run.runs / name,
        variant=name,
        steps=run.steps,
        frames_a_step=1280,
        sight_updates=2,
        save_every=100,
        threads=run.threads,
    )
    finished = training.out / "world.safetensors"
    if not finished.exists():
        print(f"{name}: {VARIANTS[name][0]}")
        train_world(training)
    return finished


def score(run: Comparison, name: str, world: Path, opened: Bench | None) -> Bench:
    """Score a variant on the test episodes and write its JSON; returns the bench, whose encoded episodes serve the next one, too."""
    weights = run.runs / name / "weights"
    ship(Shipping(run.autoencoder, world, run.data / "val", weights, openings=1, walks=1))
    tests = ("next_frame", "retrieval", "reasoning")
    evaluation = Evaluation(run.data / "test", weights=weights, tests=tests, retrieval=(FRAMES,), memories=("own",), clips=1)
    bench = open_bench(evaluation) if opened is None else Bench(evaluation, opened.world, load_weights(weights), opened.episodes)
    report = evaluate(evaluation, bench)
    tensors, header = load_tensors(world)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    seen = {key: header[key] for key in ("step", "frames", "seconds")}
    report["training"] = {"variant": name, "about": VARIANTS[name][0], "parameters": parameters} | seen
    pictures = {key: bench.kept["retrieval"][key] for key in ("truth", "own memory")}
    save_tensors(run.runs / name / "recalled.safetensors", pictures, {})
    SCORES.mkdir(parents=True, exist_ok=True)
    (SCORES / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    return bench


def draw(run: Comparison) -> None:
    """The variants' revisit curves in one plot, and what they recall of the same ways back in one contact sheet."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(SCORES.glob("*.json"))}
    revisit_curve(MEDIA / "variants_curve.png", reports)
    recalled = {name: run.runs / name / "recalled.safetensors" for name in reports}
    frames = {name: load_tensors(path)[0] for name, path in recalled.items() if path.exists()}
    if frames:
        truth = next(iter(frames.values()))["truth"]
        retrieval_sheet(MEDIA / "variants.png", truth, {name: pictures["own memory"] for name, pictures in frames.items()})


if __name__ == "__main__":
    main(tyro.cli(Comparison, description=__doc__))
