"""A file that is whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """A name to write to, beside `path`; becomes `path` if the block succeeds and is removed if it doesn't."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
