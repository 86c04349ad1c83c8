"""Freed memory is kept for the process that asks for it, and for no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHURN = """
import resource, torch
{before}
for step in range(20):
    torch.zeros(2**24)  # 64 MiB
    if step == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
ASK = "from lssvwm_gym.malloc import keep_freed_memory; print(keep_freed_memory())"
MAKE = """
import gymnasium, lssvwm_gym
env = gymnasium.make("LSSVWM-MemoryMaze-v0", weights={weights!r}, device="cpu")
env.reset(seed=0)
env.step(0)
print(False)
"""
COMMAND = """
import sys
from lssvwm_gym.cli import main
try:
    main(["--help"])
except SystemExit:
    print()
from lssvwm_gym.malloc import keep_freed_memory
print(keep_freed_memory.cache_info().currsize == 1)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def page_faults(monkeypatch, before, wish="1"):
    """Whether memory is kept, as `before` prints it, and page faults of ten large tensors."""
    monkeypatch.setenv("LSSVWM_KEEP_HEAP", wish)
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    program = [sys.executable, "-c", CHURN.format(before=before)]
    kept, faults = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return kept == "True", int(faults)


def test_memory_is_kept_where_it_is_asked_for_unless_the_environment_forbids_it(monkeypatch):
    kept, faults = page_faults(monkeypatch, ASK)
    if not kept:
        pytest.skip("another C library than glibc")
    assert faults < 1000
    kept, faults = page_faults(monkeypatch, ASK, wish="0")
    assert not kept
    assert faults > 9000


def test_making_and_stepping_an_environment_leaves_malloc_alone(monkeypatch, tiny_weights):
    _, faults = page_faults(monkeypatch, MAKE.format(weights=str(tiny_weights)))
    assert faults > 9000


def test_the_command_line_asks_for_it(monkeypatch):
    kept, _ = page_faults(monkeypatch, COMMAND)
    assert kept
