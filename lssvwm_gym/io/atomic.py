"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def renamed_when_whole(path: Path) -> Iterator[Path]:
    """A name to write to, beside `path`; becomes `path` if the block succeeds and is removed if it doesn't.

    Its folder is made. What a process that was killed has left of an earlier try is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        _onto_the_disk(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_together(folder: Path, last: str) -> Iterator[Path]:
    """A folder to write several files to, which then go to `folder`, the one named `last` after all others.

    The old `last` goes before any other file is replaced, so where it is, it belongs to what is beside it. If the block fails, all
    that was there stays. Other files of `folder` are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(folder / last)
    unfinished.mkdir()
    try:
        yield unfinished
        files = sorted(unfinished.iterdir(), key=lambda file: file.name == last)
        for file in files:
            _onto_the_disk(file)
        (folder / last).unlink(missing_ok=True)
        for file in files:
            os.replace(file, folder / file.name)
    finally:
        discard(unfinished)


def discard(unfinished: Path) -> None:
    """Remove what became of a temporary name, a file or a folder, if anything is left of it."""
    if unfinished.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
    else:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    """A temporary name for `path`. What processes began under such names that no longer run on this machine is removed."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process = abandoned.name.split(".")[-2]
        if process.isdigit() and (int(process) == os.getpid() or not _runs(int(process))):
            discard(abandoned)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _onto_the_disk(file: Path) -> None:
    """Wait for the contents, so that not even a power failure leaves a name without them."""
    with open(file, "r+b") as written:
        os.fsync(written.fileno())


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # there, asking with a signal would end it
    try:
        os.kill(process, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True
