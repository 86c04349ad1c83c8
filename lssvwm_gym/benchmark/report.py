"""What was measured, as tables. Times are medians, with the 10th and the 90th percentile in brackets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from lssvwm_gym.benchmark.machine import Times


def print_part(part: str, report: Mapping[str, Any]) -> None:
    """Print what a part has measured."""
    title, columns, rows, remarks = PRINTED[part](report)
    table = Table(title=f"{part}: {title}", title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    print()
    Console(width=140).print(table)
    for remark in dict.fromkeys(remarks):
        print(remark)


Row = tuple[str, ...]
Printed = tuple[str, Row, list[Row], list[str]]  # title, columns, rows, remarks


def _speeds(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    for s in report["speeds"]:
        case, rate = (s["profile"], str(s["passes"]), str(s["envs"])), f"{s['steps_per_second']:.1f}"
        rows.append((*case, rate, _ms(s), _kib(s["state_bytes"]), f"{s['first_seconds']:.2f}"))
    title = f"{report['world']}, dtype {report['settings']['dtype']}, backend {report['settings']['backend']}"
    return title, ("profile", "passes", "envs", "steps/s in all", "ms a step", "state KiB a row", "first step s"), rows, []


def _ages(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    for r in report["ages"]:
        memory = "?" if r["memory_bytes"] is None else f"{r['memory_bytes'] / 2**20:,.0f}"
        rows.append((f"{r['age']:,}", _ms(r), f"{r['growth']:+.1%}", memory, _kib(r["state_bytes"])))
    title = "a step of balanced, so many steps after the reset; timed in turns"
    return title, ("steps", "ms a step", "growth", "MiB of the process", "state KiB"), rows, []


def _cache(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = [
        (r["model"], f"{r['weights'] / 1e6:.2f} M", f"{r['age']:,}", _ms(r), f"{r['growth']:+.0%}", _kib(r["state_bytes"]))
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
            rows.append((*shape, _ms(r), f"{r['frames_per_second']:.0f}", f"{r['growth']:+.1%}"))
    columns = ("variant", "frames a clip", "clips", "GB kept for backward", "ms a step", "frames/s", "growth of a frame's cost")
    said = [f"{r['variant']}, clips of {r['clip']}: {r['skipped']}" for r in report["training"] if "skipped" in r]
    settings = report["settings"]
    return f"whole steps of {settings['objective']}, about {settings['frames_a_step']} frames each", columns, rows, said


def _peak(report: Mapping[str, Any]) -> Printed:
    p = report["peak"]
    rows: list[Row] = [(kind, f"{part['share']:.1%}", f"{part['calls']:.0f}") for kind, part in p["account"].items()]
    said = [
        f"peak of a matrix product in {p['dtype']}: {p['peak_flops'] / 1e9:.0f} GFLOP/s",
        f"a step of {p['frames']} frames: {p['step_flops'] / 1e9:.1f} GFLOP in {_ms(p)} ms: {p['reached_flops'] / 1e9:.1f} GFLOP/s, "
        f"{p['share']:.1%} of the peak",
    ]
    if p["products_share_of_peak"] is not None:
        said.append(f"while products run they reach {p['products_share_of_peak']:.0%} of the peak")
    return "where a training step's time goes", ("operators", "share of the time", "calls a step"), rows, said


def _simulators(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    measured = [r for r in report["simulators"] if "skipped" not in r]
    said = [f"{r['id']} left out: {r['skipped']}" for r in report["simulators"] if "skipped" in r]
    real = {(r["observation"], r["processes"]): r["steps_per_second"] for r in measured if "envs" not in r}
    for r in measured:
        name = f"{r['id']}, {r['envs']} of profile {r['profile']} each" if "envs" in r else r["id"]
        beside = real.get((r["observation"], r["processes"]))
        times = "-" if beside is None else f"{r['steps_per_second'] / beside:.1f}"
        rows.append((name, r["observation"], str(r["processes"]), f"{r['steps_per_second']:.1f}", _ms(r), times))
    columns = ("environment", "observation", "processes", "steps/s in all", "ms a step", "times the real one's")
    return "the real world", columns, rows, said


def _scan(report: Mapping[str, Any]) -> Printed:
    rows: list[Row] = []
    best: dict[str, tuple[float, float]] = {}
    measured = [r for r in report["scan"] if "skipped" not in r]
    for r in measured:
        if r["by"] == "ours":
            best[r["what"]] = (r["forward"]["ms"], r["both"]["ms"])
        mine = best[r["what"]]
        times = f"{r['forward']['ms'] / mine[0]:.1f}", f"{r['both']['ms'] / mine[1]:.1f}"
        rows.append((r["what"], r["by"], str(r["chunk"]), _ms(r["forward"]), _ms(r["both"]), *times, f"{r['off']:.0e}"))
    shapes = dict.fromkeys(f"{r['what']}: {'×'.join(map(str, r['shape']))}" for r in measured)
    said: list[str] = [r["skipped"] for r in report["scan"] if "skipped" in r]
    columns = ("what", "by", "chunk", "forward ms", "with backward ms", "times ours forward", "with backward", "off")
    if measured:
        said.append("sequences × tokens × heads × head width × state; " + ", ".join(shapes))
    return "beside transformers' plain PyTorch", columns, rows, said


PRINTED = {
    "speed": _speeds,
    "ages": _ages,
    "cache": _cache,
    "training": _training,
    "peak": _peak,
    "simulators": _simulators,
    "scan": _scan,
}


def _ms(row: Mapping[str, Any]) -> str:
    return str(Times(row["ms"], row["ms_p10"], row["ms_p90"]))


def _kib(count: int) -> str:
    return f"{count / 2**10:,.0f}"
