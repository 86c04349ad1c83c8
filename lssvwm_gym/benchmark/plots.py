"""What was measured, as pictures by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lssvwm_gym.io.atomic import renamed_when_whole


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture of each part that has one; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Callable[[Any], Any]] = {"ages": _ages, "cache": _cache, "training": _training, "peak": _account, "scan": _scans}
    return [_saved(figure(report[name]), folder / f"bench_{name}.png") for name, figure in drawn.items() if _has(report.get(name))]


def _has(part: Any) -> bool:
    """Whether there is anything to draw."""
    return bool(part) and (isinstance(part, dict) or any("skipped" not in row for row in part))


def _ages(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = _figure(1)
    _line(axes[0], rows, "age", "balanced")
    axes[0].set(xlabel="steps since the reset", ylabel="ms a step", xscale="log", ylim=(0, None))
    return figure


def _cache(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = _figure(2)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        _line(axes[0], own, "age", model)
        axes[1].plot([row["age"] for row in own], [row["state_bytes"] / 1e6 for row in own], marker="o", markersize=4, label=model)
    axes[0].set(xlabel="frames in memory", ylabel="ms a step", xscale="log", yscale="log")
    axes[1].set(xlabel="frames in memory", ylabel="MB of the state", xscale="log", yscale="log")
    axes[1].legend(frameon=False)
    return figure


def _training(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = _figure(1)
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant and "skipped" not in row]
        axes[0].plot([r["clip"] for r in own], [r["ms"] / r["frames"] for r in own], marker="o", markersize=4, label=variant)
    axes[0].set(xlabel="frames a clip", ylabel="ms a frame of a training step", ylim=(0, None))
    axes[0].legend(frameon=False)
    return figure


def _account(peak: Mapping[str, Any]) -> Any:
    figure, axes = _figure(1)
    kinds = list(peak["account"])[::-1]
    axes[0].barh([kind.split(":")[0] for kind in kinds], [100 * peak["account"][kind]["share"] for kind in kinds])
    axes[0].set(xlabel=f"% of a training step, which reaches {peak['share']:.1%} of the peak")
    return figure


def _scans(rows: Sequence[Mapping[str, Any]]) -> Any:
    measured = [row for row in rows if "skipped" not in row]
    figure, axes = _figure(2)
    for axis, name, title in zip(axes, ("forward", "both"), ("forward", "forward and backward"), strict=True):
        labels = [f"{row['what']}\n{row['by']}, chunk {row['chunk']}" for row in measured][::-1]
        colours = ["C0" if row["by"] == "ours" else "C1" for row in measured][::-1]
        axis.barh(labels, [row[name]["ms"] for row in measured][::-1], color=colours)
        axis.set(xlabel=f"ms, {title}")
        axis.tick_params(axis="y", labelsize=6)
    return figure


def _line(axis: Any, rows: Sequence[Mapping[str, Any]], across: str, label: str) -> None:
    """Medians with the 10th and 90th percentile."""
    below = [row["ms"] - row["ms_p10"] for row in rows]
    above = [row["ms_p90"] - row["ms"] for row in rows]
    axis.errorbar(
        [row[across] for row in rows], [row["ms"] for row in rows], [below, above], marker="o", markersize=4, capsize=3, label=label
    )
    axis.legend(frameon=False)


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * columns, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    with renamed_when_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return path
