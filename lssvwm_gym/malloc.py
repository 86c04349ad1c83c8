"""Keep freed memory for the tensors to come, instead of handing it back to the operating system.

Every step makes states of megabytes and frees the last ones. With glibc's defaults many are mapped anew, and the kernel
clears every page again, which was measured to cost up to a fifth of a step (docs/performance.md).

This changes the whole process, so nothing does it unasked: importing the package or making an environment doesn't. The
programs of this repository, `lssvwm-gym` among them, ask for it when they start; so may yours:

    from lssvwm_gym.malloc import keep_freed_memory

    keep_freed_memory()
"""

import ctypes
import functools
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep up to 2 GiB that this process has freed. Call it at the start of a program that steps or trains on a CPU.

    Processes that are forked from this one inherit it; spawned ones call it themselves.

    Returns whether memory is kept. Nothing is changed with another C library than glibc, or where the environment says
    `LSSVWM_KEEP_HEAP=0`.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if os.environ.get("LSSVWM_KEEP_HEAP") == "0" or not hasattr(library, "gnu_get_libc_version"):
        return False
    assert library is not None
    wanted = {
        _MMAP_MAX: 0,  # nothing is mapped on its own
        _TRIM_THRESHOLD: 2**31 - 1,  # bytes that are kept at the end of the heap
        _TOP_PAD: 2**26,  # bytes that the heap grows by at least
    }
    taken = [library.mallopt(parameter, value) for parameter, value in wanted.items()]  # all, whatever the first one says
    return all(taken)
