"""A long dream, watched: numbers stay finite, memory and speed stay flat, pictures stay like real ones.

    python experiments/soak.py --world memory-maze --steps 100000 --rows 2 --profile fast --out docs/scores/soak_memory_maze.json

It is one dream a row, never begun anew where the world has no end of its own. Actions are random and change about every fourth step, as
those of somebody who walks. Every part of the run is a line of the table: RSS of the process, processor time of a step (which other work
on the machine hardly changes, as it does the time on the clock), and mean, contrast (standard deviation over the pixels of a frame) and
sharpness (mean difference of neighbouring pixels) of its frames, all of 0..255; beside them what they are in the frames that dreams of
this world start from, as the autoencoder shows them. The file is written anew after every part, so a run that is stopped has said what it
reached. Exits with 1 where something isn't finite, RSS or the time of a step has grown by more than is allowed, or the frames' mean or
contrast leave the range of the real ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmark.machine import machine, memory_bytes
from lssvwm_gym.envs import DreamVectorEnv
from lssvwm_gym.envs.simulator import Dream
from lssvwm_gym.envs.spaces import picture_of
from lssvwm_gym.io.json_config import write_json

LOOK_EVERY = 10  # steps between two frames that are measured
REAL_FRAMES = 500
MAX_GROWTH_MIB = 64.0  # of RSS, from the second part on: the first fills caches
MAX_SLOWING = 1.5  # median processor time of a step, last part over second
NAMES = ("mean", "contrast", "sharpness")
FAMILIAR = 0.5  # info["familiarity"] from which a place counts as known


def main() -> int:
    args = arguments()
    if memory_bytes() is None:
        raise SystemExit("memory can't be watched here: there is no /proc/self/statm")
    envs = DreamVectorEnv(args.world, args.rows, weights=args.weights, profile=args.profile, device="cpu")
    envs.reset(seed=args.seed)
    real = spread(contrast_and_sharpness(real_frames(envs.dream)))
    print(f"{'step':>8} {'RSS MiB':>8} {'CPU ms':>8}" + "".join(f" {name:>10}" for name in NAMES) + f" {'finite':>7}")
    parts: list[dict[str, Any]] = []
    rng = np.random.default_rng(args.seed)
    actions = rng.integers(envs.single_action_space.n, size=args.rows)
    for number in range(args.parts):
        steps = args.steps * (number + 1) // args.parts - args.steps * number // args.parts
        part, actions = soaked(envs, steps, actions, rng)
        parts.append({"step": args.steps * (number + 1) // args.parts, **part})
        print(line(parts[-1]), flush=True)
        write(args, parts, real)
    print("real frames, 1st to 99th percentile: " + ", ".join(f"{name} {low:.1f} to {high:.1f}" for name, (low, high) in real.items()))
    wrong = what_is_wrong(parts, real)
    print("\n".join(wrong) or "nothing is wrong")
    return bool(wrong)


def write(args: argparse.Namespace, parts: list[dict[str, Any]], real: dict[str, list[float]]) -> None:
    """What was reached so far."""
    run = {
        "command": "python experiments/soak.py " + " ".join(sys.argv[1:]),
        "date": str(date.today()),
        "machine": machine("cpu"),
        "seed": args.seed,
    }
    reached = parts[-1]["step"]
    size = {"steps": args.steps, "reached": reached, "rows": args.rows, "frames": reached * args.rows}
    write_json(args.out, {**run, **size, "parts": parts, "real": real, "wrong": what_is_wrong(parts, real)})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="memory-maze")
    parser.add_argument("--weights", type=Path, help="another folder of weights")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.parts < 3 or args.steps < args.parts * LOOK_EVERY:
        parser.error(f"at least 3 parts of at least {LOOK_EVERY} steps each")
    return args


def soaked(envs: DreamVectorEnv, steps: int, actions: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    """Go on for some steps; what was measured, and the last actions."""
    seconds, seen, known, finite, clock = [], [], [], True, time.perf_counter()
    for step in range(steps):
        actions = np.where(rng.random(len(actions)) < 0.25, rng.integers(envs.single_action_space.n, size=len(actions)), actions)
        began = time.process_time()
        observations, rewards, _, _, info = envs.step(actions)
        seconds.append(time.process_time() - began)
        finite = finite and all(np.isfinite(value).all() for value in (rewards, *info.values()))
        if step % LOOK_EVERY == 0:
            seen.append(picture_of(observations))
            known.append(info.get("familiarity", np.zeros(len(actions))))
    finite = finite and all(leaf.isfinite().all() for leaf in torch.utils._pytree.tree_leaves(envs.clone_state().dream))
    measured = contrast_and_sharpness(np.concatenate(seen))
    wall = (time.perf_counter() - clock) / steps
    part = {
        "rss_mib": memory_bytes() / 2**20,
        "cpu_seconds_a_step": float(np.median(seconds)),
        "wall_seconds_a_step": wall,
        "finite": finite,
    }
    part |= {name: float(values.mean()) for name, values in measured.items()}
    return part | by_familiarity(measured["contrast"], np.concatenate(known)), actions


def contrast_and_sharpness(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, contrast (standard deviation) and sharpness (mean difference of neighbours) of the pixels, 0..255, of each frame
    (K, height, width, 3) uint8."""
    pixels = frames.astype(np.float32)
    sharpness = (np.abs(np.diff(pixels, axis=1)).mean((1, 2, 3)) + np.abs(np.diff(pixels, axis=2)).mean((1, 2, 3))) / 2
    return {"mean": pixels.mean((1, 2, 3)), "contrast": pixels.std((1, 2, 3)), "sharpness": sharpness}


def by_familiarity(contrast: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """How well places were known, and the contrast where that was well and where it wasn't; None where there is no such frame."""
    familiar = known > FAMILIAR
    means = [float(contrast[which].mean()) if which.any() else None for which in (familiar, ~familiar)]
    return {"familiarity": float(known.mean()), "contrast_of_familiar": means[0], "contrast_of_unfamiliar": means[1]}


@torch.no_grad()
def real_frames(dream: Dream) -> np.ndarray:
    """Frames of openings and walks, spread evenly, as the autoencoder shows them."""
    latent = torch.cat([starts.latent.flatten(0, 1) for starts in (dream.weights.short_contexts, dream.weights.long_contexts)])
    chosen = latent[torch.linspace(0, len(latent) - 1, min(REAL_FRAMES, len(latent))).long()]
    return np.concatenate([dream.weights.autoencoder.decode(part.float()).numpy() for part in chosen.split(50)])


def spread(measured: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: [float(value) for value in np.percentile(values, [1, 99])] for name, values in measured.items()}


def what_is_wrong(parts: list[dict[str, Any]], real: dict[str, list[float]]) -> list[str]:
    """What is wrong. The first part warms up; sharpness is shown, not judged: a dream in one pass is known to be softer."""
    wrong = [f"step {part['step']}: numbers that are not finite" for part in parts if not part["finite"]]
    warm = parts[1:2] or parts
    growth = parts[-1]["rss_mib"] - warm[0]["rss_mib"]
    if growth > MAX_GROWTH_MIB:
        wrong.append(f"memory has grown by {growth:.0f} MiB since step {warm[0]['step']}")
    slowing = parts[-1]["cpu_seconds_a_step"] / warm[0]["cpu_seconds_a_step"]
    if slowing > MAX_SLOWING:
        wrong.append(f"a step takes {slowing:.2f} times as long as at step {warm[0]['step']}")
    for name in NAMES[:2]:
        low, high = real[name]
        wrong += [f"step {part['step']}: {name} {part[name]:.1f}" for part in parts if not low <= part[name] <= high]
    return wrong


def line(part: dict[str, Any]) -> str:
    numbers = f"{part['step']:>8} {part['rss_mib']:>8.1f} {1000 * part['cpu_seconds_a_step']:>8.2f}"
    return numbers + "".join(f" {part[name]:>10.2f}" for name in NAMES) + f" {'yes' if part['finite'] else 'NO':>7}"


if __name__ == "__main__":
    sys.exit(main())
