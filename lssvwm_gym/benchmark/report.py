"""What was measured, as tables and pictures. Times are medians; in tables the 10th and the 90th percentile are in brackets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lssvwm_gym.benchmark.machine import Times
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


def draw(report: Mapping[str, Any], figures: Mapping[str, Callable[[Any], Any]], folder: Path) -> list[Path]:
    """Write a picture of each part that has one and measured something; returns their paths."""
    parts = {name: report.get(name) or [] for name in figures}
    parts = {name: part if isinstance(part, dict) else [row for row in part if "skipped" not in row] for name, part in parts.items()}
    return [save_figure(figures[name](part), folder / f"bench_{name}.png") for name, part in parts.items() if part]


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


TABLES: dict[str, Callable[[Mapping[str, Any]], Printed]] = {"speed": speeds_table, "ages": ages_table}
FIGURES: dict[str, Callable[[Any], Any]] = {"ages": draw_ages}
