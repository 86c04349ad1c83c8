"""The real world's steps a second, beside the dream's: random actions, in one process and more.

Processes are Gymnasium's `AsyncVectorEnv`: every step waits for the slowest. A world that can't run here is left out, with the reason.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np

from lssvwm_gym.evaluation.bench.settings import Benchmark
from lssvwm_gym.evaluation.bench.stepping import seconds_of_steps
from lssvwm_gym.evaluation.bench.timing import Times
from lssvwm_gym.simulators import SimulatorDied, SimulatorUnavailable
from lssvwm_gym.worlds import WORLDS


def measure_simulators(run: Benchmark) -> list[dict[str, Any]]:
    """Rows of id, processes, steps a second of all together and milliseconds a step; or `skipped`, the reason."""
    real = WORLDS[run.world].real_id
    if real is None:
        return [{"id": WORLDS[run.world].id, "skipped": "no real environment is known of this world"}]
    rows: list[dict[str, Any]] = []
    for processes in run.processes:
        row: dict[str, Any] = {"id": real, "processes": processes}
        try:
            rows.append(row | _stepped(real, processes, run))
        except (SimulatorUnavailable, SimulatorDied) as error:
            rows.append(row | {"skipped": str(error)})
    return rows


def _stepped(real: str, processes: int, run: Benchmark) -> dict[str, Any]:
    gymnasium.make(real).close()  # says here, and clearly, what is missing
    envs = gymnasium.make_vec(real, processes, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    try:
        envs.reset(seed=0)
        rng, actions = np.random.default_rng(0), int(envs.single_action_space.n)  # type: ignore[attr-defined]
        seconds = seconds_of_steps(lambda: envs.step(rng.integers(actions, size=processes)), run, f"{real}, {processes} processes")
    finally:
        envs.close(terminate=True)
    return {"steps_per_second": float(processes / seconds.mean()), **asdict(Times.of(seconds))}
