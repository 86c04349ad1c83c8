"""What was measured, as pictures by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lssvwm_gym.evaluation.figures import new_figure, save_figure


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture of each part that has one; returns their paths."""
    drawn: dict[str, Callable[[Any], Any]] = {"ages": _ages, "cache": _cache, "training": _training, "peak": _account, "scan": _scans}
    return [save_figure(figure(report[name]), folder / f"bench_{name}.png") for name, figure in drawn.items() if _has(report.get(name))]


def _has(part: Any) -> bool:
    """Whether there is anything to draw."""
    return bool(part) and (isinstance(part, dict) or any("skipped" not in row for row in part))


def _ages(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    _line(axis, rows, "age", "balanced")
    axis.set(xlabel="steps since the reset", ylabel="ms a step", xscale="log", ylim=(0, None))
    return figure


def _cache(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = new_figure(12, 4.2, 2)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        _line(axes[0], own, "age", model)
        axes[1].plot([row["age"] for row in own], [row["state_bytes"] / 1e6 for row in own], marker="o", markersize=4, label=model)
    axes[0].set(xlabel="frames in memory", ylabel="ms a step", xscale="log", yscale="log")
    axes[1].set(xlabel="frames in memory", ylabel="MB of the state", xscale="log", yscale="log")
    axes[1].legend(frameon=False)
    return figure


def _training(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant and "skipped" not in row]
        axis.plot([r["clip"] for r in own], [r["ms"] / r["frames"] for r in own], marker="o", markersize=4, label=variant)
    axis.set(xlabel="frames a clip", ylabel="ms a frame of a training step", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def _account(peak: Mapping[str, Any]) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    kinds = list(peak["account"])[::-1]
    axis.barh([kind.split(":")[0] for kind in kinds], [100 * peak["account"][kind]["share"] for kind in kinds])
    axis.set(xlabel=f"% of a training step, which reaches {peak['share']:.1%} of the peak")
    return figure


def _scans(rows: Sequence[Mapping[str, Any]]) -> Any:
    measured = [row for row in rows if "skipped" not in row]
    figure, axes = new_figure(12, 4.2, 2)
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
