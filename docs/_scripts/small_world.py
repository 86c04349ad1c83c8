"""The picture of docs/small_world.md, from docs/scores/small_world/: `python docs/_scripts/small_world.py`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np

from lssvwm_gym.evaluation.figures import new_figure, save_figure

ROOT = Path(__file__).parent.parent.parent
SCORES, PICTURE = ROOT / "docs" / "scores" / "small_world", ROOT / "docs" / "media" / "small_world.png"
COLUMNS, SEED = 9, 3  # of the wall that is shown
MARKS = "os^vDX"


def main() -> None:
    figure, (world, curves) = new_figure(14, 4.6, 2)
    draw_world(world)
    draw_curves(curves, read_scores())
    print(f"wrote {save_figure(figure, PICTURE)}")


def read_scores() -> dict[str, dict[int, list[float]]]:
    """By variant, best at long range first, and frames since seen: the share of each seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted(SCORES.glob("*.json")):
        scores = json.loads(path.read_text(encoding="utf-8"))
        for since, share in scores["recall"].items():
            found.setdefault(scores["variant"], {}).setdefault(int(since), []).append(share)
    return dict(sorted(found.items(), key=lambda item: -np.mean([item[1][since] for since in (32, 64, 128)])))


def draw_curves(axes: Any, scores: dict[str, dict[int, list[float]]]) -> None:
    for (variant, shares), mark in zip(scores.items(), MARKS, strict=False):
        since = sorted(since for since in shares if since)
        seeds = np.array([shares[s] for s in since])
        (line,) = axes.plot(since, seeds.mean(1), marker=mark, markersize=5, label=variant)
        axes.plot(since, seeds, color=line.get_color(), linewidth=0.7, alpha=0.5)
    axes.axhline(1 / 8, color="0.4", linestyle=":", linewidth=1)
    axes.text(1, 1 / 8 + 0.01, "chance", color="0.4", fontsize="small")
    axes.set_xscale("log", base=2)
    axes.set_xticks(since, [str(s) for s in since])
    axes.set(xlabel="frames since the tile was last in view (a bin begins here)", ylabel="tiles of the right colour", ylim=(0, 1.04))
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_world(axes: Any) -> None:
    """A wall from above, rolled out, and below it some frames of a walk along it."""
    example = runpy.run_path(str(ROOT / "examples" / "small_world.py"))
    episodes = example["draw_episodes"](np.random.default_rng(SEED), 1, 60, COLUMNS, 10**6, 0)
    latent, action = episodes.latent[0].numpy(), episodes.action[0].tolist()
    column = latent[..., 3:].argmax(-1)
    wall: dict[tuple[int, int], Any] = {}
    for t in range(len(latent)):
        wall |= {(row, column[t, token]): latent[t, token] for token, row in enumerate(example["ROW"])}
    for (row, place), tile in wall.items():
        draw_tile(axes, 0.6 + 1.1 * place, 5.2 - 1.1 * row, tile)
    axes.text(0.6, 6.5, "the wall of one episode, rolled out: a colour and one lit lamp a tile", fontsize="small")
    names = ("walk right", "walk left", "run right", "run left", "")
    for shown in range(4):
        left = 0.6 + 2.75 * shown
        axes.text(left, 2.75, f"frame {shown}" + (f": {names[action[shown]]}" if shown else ""), fontsize="x-small")
        for token in range(4):
            draw_tile(axes, left + 1.1 * example["COLUMN"][token], 1.5 - 1.1 * example["ROW"][token], latent[shown, token])
    axes.text(0.6, 3.35, "what the camera sees: 2 x 2 tiles a frame", fontsize="small")
    axes.set(xlim=(0, 11.5), ylim=(0, 7), aspect="equal")
    axes.axis("off")


def draw_tile(axes: Any, left: float, low: float, tile: np.ndarray) -> None:
    from matplotlib.patches import Circle, Rectangle

    axes.add_patch(Rectangle((left, low), 1, 1, color=tuple(np.where(tile[:3] > 0, 0.85, 0.15)), linewidth=0))
    axes.add_patch(Rectangle((left + 0.04, low + 0.06), 0.92, 0.2, color="0.1", linewidth=0))
    for lamp, lit in enumerate(tile[3:] > 0):
        axes.add_patch(
            Circle((left + 0.09 + 0.82 * lamp / (COLUMNS - 1), low + 0.16), 0.045, color="#ffe680" if lit else "0.35", linewidth=0)
        )


if __name__ == "__main__":
    main()
