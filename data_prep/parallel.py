"""Jobs over processes, and in a process of their own where one kills the pool; a limit to the time of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from promof_hpc.processes import Pool

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
Progress = Callable[[str, int, int], None]  # step, how much of it is done, how much there is


class TimedOut(Exception):
    """A step took longer than its limit."""


def run_jobs(
    work: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    workers: int,
    finished: Callable[[JobT, ResultT], None],
) -> list[JobT]:
    """Do independent jobs; `finished` is called here with each as it ends.

    Args:
        work: a module-level function; its exceptions are raised here.
        workers: processes; with one, everything happens in this process.

    Returns:
        Jobs that were under way or waiting when a process died (signal, memory); none in the usual case.
    """
    if workers <= 1:
        for job in jobs:
            finished(job, work(job))
        return []
    left = dict(enumerate(jobs))
    try:
        with Pool(workers) as pool:
            futures = {pool.submit(work, job): k for k, job in left.items()}
            try:
                for future in as_completed(futures):
                    finished(left[futures[future]], future.result())
                    del left[futures[future]]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # do not begin the rest before telling what went wrong
                raise
    except BrokenProcessPool:
        return list(left.values())
    return []


def run_alone(work: Callable[[JobT], ResultT], job: JobT) -> ResultT | None:
    """Do one job in a process of its own; None if that process dies."""
    try:
        with Pool(1) as pool:
            return pool.submit(work, job).result()
    except BrokenProcessPool:
        return None


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimedOut` inside the block after so much wall time; only the main thread of a process is timed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimedOut(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
