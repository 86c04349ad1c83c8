import subprocess
import sys

import pytest

CHURN = """
import resource, torch
from lssvwm_gym.heap import keep_heap
print(keep_heap())
for step in range(20):
    torch.zeros(2**24)  # 64 MiB
    if step == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(monkeypatch, wish):
    monkeypatch.setenv("LSSVWM_KEEP_HEAP", wish)
    kept, faults = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True).stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_is_kept_unless_unwished(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    kept, faults = page_faults(monkeypatch, "1")
    if not kept:
        pytest.skip("another C library than glibc")
    assert faults < 1000
    kept, faults = page_faults(monkeypatch, "0")
    assert not kept
    assert faults > 9000
