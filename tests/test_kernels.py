"""The real kernels of mamba-ssm against PyTorch's scan, without a GPU; see kernel_parity.py for how, and for what each case is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(sys.prefix) / "kernels"  # where `make test` installs them: apart, so that nothing else sees Triton
NOT_INSTALLED = 3
CASES = (  # and the largest difference, over the largest number of the reference
    ("scan: 40 tokens in chunks of 32", 5e-5),
    ("scan: 50 tokens in chunks of 16, two groups, no D", 5e-5),
    ("scan: 5 tokens in one chunk, no initial state", 5e-5),
    ("scan in float16", 5e-3),
    ("scan of a batch in parts", 5e-6),
    ("tokens that write nothing", 5e-6),
    ("one token", 5e-6),
    ("layer: Mamba2", 2e-4),
    ("world model: training", 5e-5),
    ("world model: dream", 5e-5),
)


@pytest.fixture(scope="module")
def report():
    """What the process that compares found, by case."""
    paths = [str(KERNELS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "kernel_parity.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NOT_INSTALLED:
        log = KERNELS / "install.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        said = [line for line in lines if line.startswith("ERROR")][:1]
        pytest.skip("; ".join([done.stderr.strip().splitlines()[-1], *said]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "most"), CASES, ids=[case for case, _ in CASES])
def test_kernels_give_what_pytorch_gives(report, case, most):
    numbers = dict(report[case])
    numbers.pop("seconds")
    launched = sum(numbers.pop(name) for name in ("scan calls", "step calls"))
    assert launched, "no kernel ran"
    assert {name: error for name, error in numbers.items() if not error <= most} == {}


@pytest.mark.slow
def test_every_comparison_is_judged(report):
    assert set(report) == {case for case, _ in CASES}
    dream = report["world model: dream"]
    assert dream["scan calls"] == dream["step calls"] == 3  # a commit each: four tokens a block in one layer, one in the other
