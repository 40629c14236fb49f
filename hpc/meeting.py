"""A deadline for processes that are to find each other.

MPI's start waits in C for as long as the others do not come, where neither signals nor threads of Python are heard. So
a forked child watches it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5


@contextmanager
def deadline(seconds: float, missed: Callable[[], None]) -> Iterator[None]:
    """Kill this process if the block takes longer, after calling `missed` in the child that watches."""
    watched, watcher = os.getpid(), os.fork()
    if watcher == 0:
        try:
            _watch(watched, seconds, missed)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)


def _watch(watched: int, seconds: float, missed: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(POLL_S)
        if os.getppid() != watched:
            return
    try:
        missed()
    finally:
        os.kill(watched, signal.SIGKILL)
