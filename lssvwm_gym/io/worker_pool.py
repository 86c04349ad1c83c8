"""A pool of worker processes for jobs that need a simulator, which is kept open from job to job.

Unlike with `concurrent.futures.ProcessPoolExecutor`, a worker that is killed fails its own job only and is replaced, jobs report
their progress, what is open is closed when the pool is, and workers end when the process that started them does.
"""

import contextlib
import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

SECONDS_TO_TIDY_UP = 10.0


class Work(Protocol):
    """What a worker does, job after job, with what it needs for that kept open; what it returns comes back in `Done.answer`."""

    def __call__(self, job: int, report: Callable[[int], None], /) -> Any: ...

    def close(self) -> None: ...


class Progress(NamedTuple):
    job: int
    amount: int  # done since the last such message


class Done(NamedTuple):
    job: int
    answer: Any = None


class Failed(NamedTuple):
    job: int
    why: str


class WorkerPoolError(RuntimeError):
    """No job can be done, because a worker can't open its work."""


Message = Progress | Done | Failed


@dataclass
class _Worker:
    process: BaseProcess
    job: int | None


def run_jobs(jobs: Sequence[int], open_work: Callable[[], Work], workers: int) -> Generator[Message, None, None]:
    """Do every job once, in `workers` processes, and yield what they say. Closing the iterator ends them.

    `open_work`, importable by name, is called in a worker before its first job and after a failed one; its errors become `WorkerPoolError`.
    """
    pending = deque(jobs)
    pool: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(workers, len(pending))):
            _start(pool, open_work, pending.popleft())
        while pool:
            for pipe in wait(list(pool)):
                assert isinstance(pipe, Connection)
                yield from _listen(pool, pipe, open_work, pending)
    finally:
        _stop(pool)


def _start(pool: dict[Connection, _Worker], open_work: Callable[[], Work], job: int) -> None:
    context = multiprocessing.get_context("spawn")  # renderers don't survive a fork
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, open_work), daemon=True)
    process.start()
    theirs.close()
    pipe.send(job)
    pool[pipe] = _Worker(process, job)


def _listen(
    pool: dict[Connection, _Worker], pipe: Connection, open_work: Callable[[], Work], pending: deque[int]
) -> Generator[Message, None, None]:
    """Receive one message of one worker, and give it another job if it wants one; replace it if it died."""
    worker = pool[pipe]
    message: Message | WorkerPoolError | None
    try:
        message = pipe.recv()
    except (EOFError, OSError):  # it has gone
        worker.process.join()
        message = None if worker.job is None else Failed(worker.job, f"its process ended with exit code {worker.process.exitcode}")
    if isinstance(message, WorkerPoolError):
        raise message
    if message is not None:
        yield message
    if message is None or (isinstance(message, Failed) and not worker.process.is_alive()):
        del pool[pipe]
        if pending:
            _start(pool, open_work, pending.popleft())
    elif isinstance(message, (Done, Failed)):
        worker.job = pending.popleft() if pending else None
        with contextlib.suppress(OSError):  # one that has just died is heard of next
            pipe.send(worker.job)


def _stop(pool: dict[Connection, _Worker]) -> None:
    for worker in pool.values():
        worker.process.terminate()
    for pipe, worker in pool.items():
        worker.process.join(SECONDS_TO_TIDY_UP)
        worker.process.kill()
        pipe.close()


def _serve(pipe: Connection, open_work: Callable[[], Work]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, and comes here as SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what is open gets closed
    work: Work | None = None
    try:
        with contextlib.suppress(EOFError, OSError):
            for job in iter(pipe.recv, None):
                work = _do(pipe, work or _open(pipe, open_work), job)
    finally:
        if work is not None:
            work.close()


def _open(pipe: Connection, open_work: Callable[[], Work]) -> Work:
    try:
        return open_work()
    except Exception as error:
        _send(pipe, WorkerPoolError(f"{type(error).__name__}: {error}"))
        sys.exit(1)


def _do(pipe: Connection, work: Work, job: int) -> Work | None:
    """Do one job, and return the work if it can be trusted with another."""
    try:
        answer = work(job, lambda amount: _send(pipe, Progress(job, amount)))
    except Exception:
        _send(pipe, Failed(job, traceback.format_exc()))
        work.close()
        return None
    _send(pipe, Done(job, answer))
    return work


def _send(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:
        sys.exit(1)  # nobody listens any more
