"""What `python -m agents.ppo` was paid while it learned, `docs/media/from_nothing.png` from `docs/scores/from_nothing.json`.

python -m docs._scripts.learning_curve                                     draw what was measured
python -m docs._scripts.learning_curve --log runs/ppo/memory-maze/log      measure anew: read the log of a run, and draw
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lssvwm_gym.evaluation.figures import new_figure, save_figure
from lssvwm_gym.io.json_config import bounded, parsed, write_json

SCORES, FIGURE = Path("docs/scores/from_nothing.json"), Path("docs/media/from_nothing.png")
POINTS = 40  # of the curve; each is the mean of the updates between two


@dataclass(frozen=True)
class Args:
    """What to draw."""

    log: Path | None = None  # folder of TensorBoard logs of a run


def main(args: Args) -> None:
    if args.log is not None:
        write_json(SCORES, read(args.log))
    scores = parsed(bounded(SCORES, 10**6))
    figure, (axes,) = new_figure(6, 3)
    axes.plot(np.array(scores["steps"]) / 1000, scores["reward_per_1000_steps"])
    minutes = scores["minutes"][-1]
    axes.set(xlabel=f"thousand dreamed steps, {minutes:.0f} minutes", ylabel="dreamed rewards in 1,000 steps", ylim=(0, None))
    print(f"wrote {save_figure(figure, FIGURE)}")


def read(log: Path) -> dict[str, list[float]]:
    """Means of equal numbers of updates."""
    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    columns = {name: events.Scalars(name) for name in ("reward_per_step", "elapsed")}
    parts = [part for part in np.array_split(np.arange(len(columns["elapsed"])), POINTS) if len(part)]
    return {
        "steps": [columns["elapsed"][part[-1]].step for part in parts],
        "minutes": [round(columns["elapsed"][part[-1]].value / 60, 2) for part in parts],
        "reward_per_1000_steps": [round(1000 * float(np.mean([columns["reward_per_step"][n].value for n in part])), 3) for part in parts],
    }


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
