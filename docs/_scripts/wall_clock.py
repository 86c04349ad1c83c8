"""What policies earn in the real maze after so much time of learning, in dreams and in the maze itself: `docs/media/wall_clock.png`.

python -m docs._scripts.wall_clock                              draw what was measured, `docs/scores/wall_clock.json`
python -m docs._scripts.wall_clock --tried runs/transfer.json   measure anew: policies of `--runs`, tried by `experiments.check_transfer`

A policy's time is that of its run until it was written, preparations included; imitation, where a run began with it, comes before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.policies import load_policy
from lssvwm_gym.evaluation.figures import new_figure, save_figure
from lssvwm_gym.io.json_config import bounded, parsed, write_json

SCORES, FIGURE = Path("docs/scores/wall_clock.json"), Path("docs/media/wall_clock.png")
IMITATED = "agents/policies/memory_maze_map_imitated.safetensors"
RUNS = {  # folders of `agents.ppo` and `experiments.ppo_real`: what they are, and what they began with
    "runs/from_nothing": ("in dreams, from nothing", "random"),
    "runs/from_nothing_real": ("in the real maze, from nothing", "random"),
    "runs/imitated": ("in dreams, from imitation", IMITATED),
    "runs/imitated_real": ("in the real maze, from imitation", IMITATED),
}


@dataclass(frozen=True)
class Args:
    """What to draw."""

    tried: Path | None = None  # what `experiments.check_transfer` wrote of policies of these runs
    runs: tuple[Path, Path, Path, Path] = tuple(map(Path, RUNS))  # in the order of `RUNS`


def main(args: Args) -> None:
    if args.tried is not None:
        report = parsed(bounded(args.tried, 10**7))
        curves = {name: curve(report["policies"], folder, start) for (name, start), folder in zip(RUNS.values(), args.runs, strict=True)}
        write_json(SCORES, {"episodes": report["settings"]["episodes"], "steps": report["settings"]["steps"], "curves": curves})
    scores = parsed(bounded(SCORES, 10**6))
    figure, (axes,) = new_figure(6, 3.5)
    for number, (name, points) in enumerate(scores["curves"].items()):
        columns = ([point[key] for point in points] for key in ("minutes", "mean", "standard_error"))
        how = dict(linestyle="--", markerfacecolor="white") if number % 2 else {}
        axes.errorbar(*columns, label=name, marker="o", color=f"C{number // 2}", capsize=3, **how)
    axes.set(xlabel="minutes of one core", ylabel=f"return, {scores['episodes']} real mazes", xlim=(0, None), ylim=(0, None))
    axes.legend(fontsize=8)
    print(f"wrote {save_figure(figure, FIGURE)}")


def curve(policies: list[dict[str, Any]], folder: Path, start: str) -> list[dict[str, float]]:
    """A point for each policy of a run that was tried, and the one it began with: steps, minutes until it was written, its real return."""
    events = EventAccumulator(str(folder / "log"), size_guidance={"scalars": 0})
    events.Reload()
    steps, seconds = np.array([(event.step, event.value) for event in events.Scalars("elapsed")]).T
    points = []
    for one in policies:
        if one["policy"] == start or Path(one["policy"]).parent == folder:
            written = 0 if one["policy"] == start else load_policy(Path(one["policy"]))[1]["steps"]
            minutes = round(float(np.interp(written, [0, *steps], [0, *seconds])) / 60, 2)
            points.append({"steps": written, "minutes": minutes, **{key: one["real"][key] for key in ("mean", "standard_error")}})
    return sorted(points, key=lambda point: point["steps"])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
