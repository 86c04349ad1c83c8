"""What was measured, as tables and pictures. Times are medians; in tables the 10th and the 90th percentile are in brackets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmark.machine import Times
from lssvwm_gym.evaluation.figures import new_figure, save_figure

Rows = Sequence[Mapping[str, Any]]
Row = tuple[str, ...]
Printed = tuple[str, Row, list[Row], list[str]]  # title, columns, rows, remarks


def print_part(part: str, printed: Printed) -> None:
    """Print what a part has measured."""
    title, columns, rows, remarks = printed
    table = Table(title=f"{part}: {title}", title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    print()
    Console(width=140).print(table)
    for remark in dict.fromkeys(remarks):
        print(remark)


def speeds_table(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    for s in report["speed"]:
        case, rate = (s["profile"], str(s["passes"]), str(s["envs"])), f"{s['steps_per_second']:.1f}"
        rows.append((*case, rate, ms(s), kib(s["state_bytes"]), f"{s['first_seconds']:.2f}"))
    title = f"{report['world']}, dtype {report['settings']['dtype']}, backend {report['settings']['backend']}"
    return title, ("profile", "passes", "envs", "steps/s in all", "ms a step", "state KiB a row", "first step s"), rows, []


def ages_table(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    for r in report["ages"]:
        memory = "?" if r["memory_bytes"] is None else f"{r['memory_bytes'] / 2**20:,.0f}"
        rows.append((f"{r['age']:,}", ms(r), f"{r['growth']:+.1%}", memory, kib(r["state_bytes"])))
    title = "a step of balanced, so many steps after the reset; timed in turns"
    return title, ("steps", "ms a step", "growth", "MiB of the process", "state KiB"), rows, []


def ms(row: Mapping[str, Any]) -> str:
    return str(Times(row["ms"], row["ms_p10"], row["ms_p90"]))


def kib(count: int) -> str:
    return f"{count / 2**10:,.0f}"


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture of each part that has one and measured something; returns their paths."""
    parts = {name: report.get(name) or [] for name in FIGURES}
    parts = {name: part if isinstance(part, dict) else [row for row in part if "skipped" not in row] for name, part in parts.items()}
    return [save_figure(FIGURES[name](part), folder / f"bench_{name}.png") for name, part in parts.items() if part]


def draw_ages(rows: Rows) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    draw_times(axis, rows, "balanced")
    axis.set(xlabel="steps since the reset", ylabel="ms a step", xscale="log", ylim=(0, None))
    return figure


def draw_times(axis: Any, rows: Rows, label: str) -> None:
    """Medians by age, with the 10th and 90th percentile."""
    median = [row["ms"] for row in rows]
    spread = [[row["ms"] - row["ms_p10"] for row in rows], [row["ms_p90"] - row["ms"] for row in rows]]
    axis.errorbar([row["age"] for row in rows], median, spread, marker="o", markersize=4, capsize=3, label=label)
    axis.legend(frameon=False)


def _cache(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = [
        (r["model"], f"{r['weights'] / 1e6:.2f} M", f"{r['age']:,}", ms(r), f"{r['growth']:+.0%}", kib(r["state_bytes"]))
        for r in report["cache"]
    ]
    title = "the model's step beside attention over all frames with a growing cache; random weights, no decoder"
    return title, ("model", "weights", "frames in memory", "ms a step", "growth", "state KiB"), rows, []


def _training(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    for r in report["training"]:
        shape = (r["variant"], f"{r['clip']:,}", str(r["clips"]), f"{r['kept_bytes'] / 1e9:.2f}")
        if "skipped" in r:
            rows.append((*shape, "-", "-", "-"))
        else:
            rows.append((*shape, ms(r), f"{r['frames_per_second']:.0f}", f"{r['growth']:+.1%}"))
    columns = ("variant", "frames a clip", "clips", "GB kept for backward", "ms a step", "frames/s", "growth of a frame's cost")
    said = [f"{r['variant']}, clips of {r['clip']}: {r['skipped']}" for r in report["training"] if "skipped" in r]
    settings = report["settings"]
    return f"whole steps of {settings['objective']}, about {settings['frames_a_step']} frames each", columns, rows, said


def _peak(report: Mapping[str, Any]) -> Printed:
    p = report["peak"]
    rows: list[Row] = [(kind, f"{part['share']:.1%}", f"{part['calls']:.0f}") for kind, part in p["account"].items()]
    said = [
        f"peak of a matrix product in {p['dtype']}: {p['peak_flops'] / 1e9:.0f} GFLOP/s",
        f"a step of {p['frames']} frames: {p['step_flops'] / 1e9:.1f} GFLOP in {ms(p)} ms: {p['reached_flops'] / 1e9:.1f} GFLOP/s, "
        f"{p['share']:.1%} of the peak",
    ]
    if p["products_share_of_peak"] is not None:
        said.append(f"while products run they reach {p['products_share_of_peak']:.0%} of the peak")
    return "where a training step's time goes", ("operators", "share of the time", "calls a step"), rows, said


def _scan(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    best: dict[str, tuple[float, float]] = {}
    measured = [r for r in report["scan"] if "skipped" not in r]
    for r in measured:
        if r["by"] == "ours":
            best[r["what"]] = (r["forward"]["ms"], r["both"]["ms"])
        mine = best[r["what"]]
        times = f"{r['forward']['ms'] / mine[0]:.1f}", f"{r['both']['ms'] / mine[1]:.1f}"
        rows.append((r["what"], r["by"], str(r["chunk"]), ms(r["forward"]), ms(r["both"]), *times, f"{r['off']:.0e}"))
    shapes = dict.fromkeys(f"{r['what']}: {'×'.join(map(str, r['shape']))}" for r in measured)
    said: list[str] = [r["skipped"] for r in report["scan"] if "skipped" in r]
    columns = ("what", "by", "chunk", "forward ms", "with backward ms", "times ours forward", "with backward", "off")
    if measured:
        said.append("sequences × tokens × heads × head width × state; " + ", ".join(shapes))
    return "beside transformers' plain PyTorch", columns, rows, said


def _simulators(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    measured = [r for r in report["simulators"] if "skipped" not in r]
    said = [f"{r['id']} left out: {r['skipped']}" for r in report["simulators"] if "skipped" in r]
    real = {(r["observation"], r["processes"]): r["steps_per_second"] for r in measured if "envs" not in r}
    for r in measured:
        name = f"{r['id']}, {r['envs']} of profile {r['profile']} each" if "envs" in r else r["id"]
        beside = real.get((r["observation"], r["processes"]))
        times = "-" if beside is None else f"{r['steps_per_second'] / beside:.1f}"
        rows.append((name, r["observation"], str(r["processes"]), f"{r['steps_per_second']:.1f}", ms(r), times))
    columns = ("environment", "observation", "processes", "steps/s in all", "ms a step", "times the real one's")
    return "the real world", columns, rows, said


def _draw_cache(rows: Rows) -> Any:
    figure, axes = new_figure(12, 4.2, 2)
    for model, own in _by(rows, "model"):
        draw_times(axes[0], own, model)
        axes[1].plot([row["age"] for row in own], [row["state_bytes"] / 1e6 for row in own], marker="o", markersize=4, label=model)
    axes[0].set(xlabel="frames in memory", ylabel="ms a step", xscale="log", yscale="log")
    axes[1].set(xlabel="frames in memory", ylabel="MB of the state", xscale="log", yscale="log")
    axes[1].legend(frameon=False)
    return figure


def _draw_training(rows: Rows) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    for variant, own in _by(rows, "variant"):
        axis.plot([r["clip"] for r in own], [r["ms"] / r["frames"] for r in own], marker="o", markersize=4, label=variant)
    axis.set(xlabel="frames a clip", ylabel="ms a frame of a training step", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def _draw_account(peak: Mapping[str, Any]) -> Any:
    figure, (axis,) = new_figure(6, 4.2)
    kinds = list(peak["account"])[::-1]
    axis.barh([kind.split(":")[0] for kind in kinds], [100 * peak["account"][kind]["share"] for kind in kinds])
    axis.set(xlabel=f"% of a training step, which reaches {peak['share']:.1%} of the peak")
    return figure


def _draw_scans(rows: Rows) -> Any:
    figure, axes = new_figure(12, 4.2, 2)
    labels = [f"{row['what']}\n{row['by']}, chunk {row['chunk']}" for row in rows][::-1]
    colours = ["C0" if row["by"] == "ours" else "C1" for row in rows][::-1]
    for axis, name, title in zip(axes, ("forward", "both"), ("forward", "forward and backward"), strict=True):
        axis.barh(labels, [row[name]["ms"] for row in rows][::-1], color=colours)
        axis.set(xlabel=f"ms, {title}")
        axis.tick_params(axis="y", labelsize=6)
    return figure


def _by(rows: Rows, key: str) -> list[tuple[str, Rows]]:
    """The rows of each value of a column, in the order in which they come."""
    return [(value, [row for row in rows if row[key] == value]) for value in dict.fromkeys(row[key] for row in rows)]


TABLES: dict[str, Callable[[Mapping[str, Any]], Printed]] = {
    "speed": speeds_table,
    "ages": ages_table,
    "cache": _cache,
    "training": _training,
    "peak": _peak,
    "scan": _scan,
    "simulators": _simulators,
}
FIGURES: dict[str, Callable[[Any], Any]] = {
    "ages": draw_ages,
    "cache": _draw_cache,
    "training": _draw_training,
    "peak": _draw_account,
    "scan": _draw_scans,
}
