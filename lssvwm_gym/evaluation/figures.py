"""Figures of what the tests produced: curves and maps by matplotlib, contact sheets of frames by Pillow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lssvwm_gym.evaluation.context import PICTURED, EvalContext
from lssvwm_gym.evaluation.memory import REVISIT, view_steps
from lssvwm_gym.io.atomic import renamed_when_whole

ZOOM = 2  # screen pixels a pixel
LABEL = 150  # screen pixels at the left for a row's name
HEAD = 16  # screen pixels above the frames for the columns' names
GAP = 8  # screen pixels between clips
STEPS = 8  # columns
MAPS = 6  # paths
DRAWN_APART = ("recall", "imagination", "drift")  # all else is rows of frames


def draw(context: EvalContext, report: dict[str, Any], folder: Path) -> list[Path]:
    """Write a picture of everything that the tests have left in `context.kept`; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = context.kept
    written = [sheet_of_steps(folder / f"{name}.png", rows) for name, rows in kept.items() if name not in DRAWN_APART]
    if "recall" in kept:
        steps = view_steps(max(context.run.retrieval) - 1)
        written.append(sheet(folder / "recall.png", kept["recall"], [f"step {step}" for step in steps]))
    if "imagination" in kept:
        written.append(_imagination_sheet(folder / "imagination.png", **kept["imagination"]))
    if "drift" in kept:
        written.append(paths_map(folder / "map.png", kept["drift"]["true"], kept["drift"]["real frames"]))
    if revisits(report):
        written.append(revisit_curve(folder / "revisit_curve.png", {report["world"]: report}))
    return written


def revisits(report: dict[str, Any]) -> dict[int, list[tuple[int, float, float]]]:
    """Points of a report's revisit curves: by size of the past a list of frames since seen, PSNR, standard error."""
    curves: dict[int, list[tuple[int, float, float]]] = {}
    for key, value in report["scores"].get("retrieval", {}).items():
        if found := REVISIT.fullmatch(key):
            curves.setdefault(int(found[1]), []).append((int(found[2]), value["mean"], value["error"]))
    return {size: sorted(points) for size, points in curves.items()}


def revisit_curve(path: Path, reports: dict[str, dict[str, Any]]) -> Path:
    """PSNR by frames since a view was last seen, a line for each report and size of its past. Raises `ValueError` for a report without."""
    figure, (axes,) = new_figure(7, 4.5)
    for label, report in reports.items():
        if not (curves := revisits(report)):
            raise ValueError(f"the report {label!r} has no revisit curve: evaluate with the test retrieval and the memory own")
        for size, points in curves.items():
            since, mean, error = zip(*points, strict=True)
            name = label if len(curves) == 1 else f"{label}, {size} frames"
            axes.errorbar(since, mean, [0 if e != e else e for e in error], marker="o", markersize=4, capsize=3, label=name)
    axes.set(xlabel="frames since the view was last seen", ylabel="PSNR (dB)", xlim=(0, None))
    axes.legend(frameon=False)
    return save_figure(figure, path)


def paths_map(path: Path, true: Tensor, estimated: Tensor) -> Path:
    """Where each clip was and where the model estimated it to be, from above; poses (B, T, 4)."""
    count = min(MAPS, len(true))
    figure, axes = new_figure(3 * count, 3.2, count)
    for index, place in enumerate(axes):
        for pose, name, colour in ((true, "true", "0.6"), (estimated, "estimated", "tab:red")):
            x, y = pose[index, :, 0].tolist(), pose[index, :, 1].tolist()
            place.plot(x, y, color=colour, linewidth=1, label=name)
            place.plot(x[-1], y[-1], "o", color=colour, markersize=5)
        place.grid(False)
        place.set(aspect="equal", title=f"{true.shape[1] - 1} steps", xlabel="world units")
    figure.legend(*place.get_legend_handles_labels(), loc="upper right", frameon=False, fontsize="small")
    return save_figure(figure, path)


def _imagination_sheet(path: Path, real: Tensor, dreamed: Tensor, moments: Tensor) -> Path:
    """Real walks at the left, the dreams along their actions at the right: a row each."""
    columns = [f"{name}, frame {moment}" for name in ("real", "dreamed") for moment in moments.tolist()]
    columns.insert(len(moments), "")
    both = torch.cat([real, torch.full_like(real[:, :1], 255), dreamed], 1)
    return sheet(path, {"": both}, columns, len(both))


def sheet(path: Path, rows: dict[str, Tensor], columns: Sequence[str], most: int = PICTURED) -> Path:
    """A contact sheet of labelled rows (B, columns, height, width, 3), clip under clip, so many clips at most."""
    from PIL import Image, ImageDraw

    clips = min(most, *(len(frames) for frames in rows.values()))
    high, wide = (ZOOM * side for side in next(iter(rows.values())).shape[2:4])
    block = high * len(rows) + GAP
    picture = Image.new("RGB", (LABEL + wide * len(columns), HEAD + block * clips), "white")
    pen = ImageDraw.Draw(picture)
    for i, name in enumerate(columns):
        pen.text((LABEL + wide * i + 4, 2), name, fill="black")
    for clip in range(clips):
        for j, (name, frames) in enumerate(rows.items()):
            top = HEAD + block * clip + high * j
            pen.text((4, top + high // 2 - 6), name, fill="black")
            strip = Image.fromarray(torch.cat(list(frames[clip]), 1).numpy())
            picture.paste(strip.resize((ZOOM * strip.width, ZOOM * strip.height), Image.Resampling.NEAREST), (LABEL, top))
    with renamed_when_whole(path) as unfinished:
        picture.save(unfinished, format="png")
    return path


def sheet_of_steps(path: Path, rows: dict[str, Tensor]) -> Path:
    """A contact sheet of some steps, evenly spaced, of rows (B, T, height, width, 3)."""
    frames = next(iter(rows.values())).shape[1]
    steps = sorted({round(step) for step in torch.linspace(1, frames, STEPS).tolist()})
    places = [step - 1 for step in steps]
    return sheet(path, {name: row[:PICTURED, places] for name, row in rows.items()}, [f"step {step}" for step in steps])


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of matplotlib, in inches, that needs no display, and its axes beside each other, with a grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Any, path: Path) -> Path:
    with renamed_when_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return path
