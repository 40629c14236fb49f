"""A pool of processes that ends with the process that made it, and leaves Slurm's warnings to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

T = TypeVar("T")
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # reach every process of a job; who has no handler would die


class Pool(ProcessPoolExecutor):
    """Spawned processes; they inherit that warnings are blocked, since no handler could be there early enough."""

    def __init__(self, workers: int):
        super().__init__(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As any executor; processes start here where they are needed."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Leave with the parent: a killed parent cannot tell its workers, which would wait for jobs for ever."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_leave_after, args=(parent.sentinel,), daemon=True).start()


def _leave_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
