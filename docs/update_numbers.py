"""Write the measured numbers into README.md and the model card: `python docs/update_numbers.py`.

Reads the JSON that `lssvwm-gym evaluate --out` and `lssvwm-gym bench --out` left in docs/scores/, and replaces what
stands between `<!-- numbers:NAME -->` and `<!-- end -->`. With --check it changes nothing and fails where a file is stale.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCORES = ROOT / "docs" / "scores"
TARGETS = (ROOT / "README.md", ROOT / "lssvwm_gym" / "weights" / "memory_maze" / "README.md")


def main() -> None:
    tables = {name: quality(_read(f"{file}.json")) for name, file in (("quality", "memory_maze"), ("balanced", "memory_maze_balanced"))}
    tables |= {"speed": speed(_read("memory_maze_speed.json"))}
    stale = [path for path in TARGETS if _updated(path, tables) != path.read_text()]
    if "--check" in sys.argv and stale:
        sys.exit(f"stale: {', '.join(map(str, stale))}; run python docs/update_numbers.py")
    for path in stale:
        path.write_text(_updated(path, tables))


def quality(report: dict[str, Any]) -> str:
    """One row a score: mean, standard error, clips."""
    lines = ["| test | score | value | clips |", "|---|---|---|---|"]
    for test, scores in report["scores"].items():
        lines += [f"| {test.replace('_', ' ')} | {name.replace(':', '')} | {_shown(v)} |" for name, v in scores.items() if _wanted(name)]
    return "\n".join(lines)


def speed(report: dict[str, Any]) -> str:
    """One row a profile and number of environments."""
    m = report["machine"]
    machine = f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}, {m['date']}"
    lines = ["| profile | denoising passes | envs | steps/s in all | ms a step (median, 10 %, 90 %) |", "|---|---|---|---|---|"]
    for s in report["speeds"]:
        times = f"{s['ms']:.1f} ({s['ms_p10']:.1f}, {s['ms_p90']:.1f})"
        lines.append(f"| {s['profile']} | {s['passes']} | {s['envs']} | {s['steps_per_second']:.0f} | {times} |")
    ages = ", ".join(f"{ms:.1f} ms at step {age}" for age, ms in report["ms_by_age"].items())
    lines.append(f"\nA step of one environment costs {ages}. Machine: {machine}" if ages else f"\nMachine: {machine}")
    return "\n".join(lines)


def _wanted(name: str) -> bool:
    """Of the horizons a few are enough."""
    horizon = re.match(r"frame (\d+):", name)
    return horizon is None or int(horizon[1]) in (1, 10, 50)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        digits = 3 if abs(value["mean"]) < 1.5 else 2
        return f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f} | {value['clips']}"
    return f"{value:.3f} | " if isinstance(value, float) else f"{value} | "


def _read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((SCORES / name).read_text())
    return report


def _updated(path: Path, tables: dict[str, str]) -> str:
    text = path.read_text()
    for name, table in tables.items():
        pattern = rf"(<!-- numbers:{name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, table=table: m[1] + table + "\n" + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    main()
