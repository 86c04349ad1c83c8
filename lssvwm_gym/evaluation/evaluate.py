"""Evaluate dreams on real episodes: `lssvwm-gym evaluate --data DIR`. Prints tables, writes JSON and pictures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lssvwm_gym.data.episode import fingerprint
from lssvwm_gym.evaluation.context import DoesNotApply, EvalContext, Evaluation, open_context
from lssvwm_gym.evaluation.ends import ends, reward
from lssvwm_gym.evaluation.figures import draw
from lssvwm_gym.evaluation.imagination import imagination, known_places, stability
from lssvwm_gym.evaluation.memory import retrieval
from lssvwm_gym.evaluation.metrics import Score
from lssvwm_gym.evaluation.prediction import drift, next_frame, open_loop, reasoning, reconstruction
from lssvwm_gym.io.json_config import write_json

__all__ = ["TESTS", "EvalContext", "Evaluation", "evaluate", "open_context"]

FUNCTIONS = (reconstruction, next_frame, open_loop, reward, ends, retrieval, reasoning, drift, imagination, known_places, stability)
TESTS: dict[str, Callable[[EvalContext], dict[str, Any]]] = {test.__name__: test for test in FUNCTIONS}


@torch.no_grad()
def evaluate(run: Evaluation, context: EvalContext | None = None) -> dict[str, Any]:
    """Run the tests, print a table after each, write JSON and pictures, and return what the JSON holds.

    The JSON is written after every test, so that one that fails costs none of those before it. Tests that do not apply to the world
    are named in `skipped`, with the reason. A context that is given holds what the tests keep for figures. Raises `ValueError` for a
    test or a world that doesn't exist, and episodes too short for a test.
    """
    if unknown := set(run.tests) - TESTS.keys():
        raise ValueError(f"no test named {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    context = context or open_context(run)
    report: dict[str, Any] = {
        "world": context.world.id,
        "weights": context.weights.info,
        "data": fingerprint(run.data),
        **({"other_data": fingerprint(run.other_data)} if run.other_data else {}),
        "settings": dataclasses.asdict(run),
        "scores": {},
    }
    for name in run.tests:
        try:
            results = TESTS[name](context)
        except DoesNotApply as reason:
            report.setdefault("skipped", {})[name] = str(reason)
            print(f"{name.replace('_', ' ')}: left out, {reason}")
        else:
            report["scores"][name] = {k: dataclasses.asdict(v) if isinstance(v, Score) else v for k, v in results.items()}
            _print(name, results)
        if run.out:
            write_json(run.out, report)
    if run.figures:
        for path in draw(context, report, run.figures):
            print(f"wrote {path}")
    return report


def _print(name: str, results: dict[str, Any]) -> None:
    table = Table("score", "value", "clips", title=name.replace("_", " "), title_justify="left")
    for key, value in results.items():
        shown = str(value) if isinstance(value, (Score, int)) else f"{value:.3f}"
        table.add_row(key, shown, str(value.clips) if isinstance(value, Score) else "")
    Console(width=120).print(table)
