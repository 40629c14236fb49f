"""Execution on this machine: lead a run, start its farm under mpiexec, start it again after a death."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc.exit_codes import CANNOT_GO_ON, DONE, INCOMPLETE, STOPPED
from hpc.lease import holding_lease
from promof_hpc.errors import PromofError
from promof_hpc.store.budget import fold
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, clear_stop, request_stop, stop_requested

MAX_DEATHS_WITHOUT_PROGRESS = 10
NO_ROOM_BYTES = 100_000
POLL_S = 0.1


class Stopped(Exception):
    """Somebody asked the run to stop; it can be resumed."""


class Incomplete(Exception):
    """The ranks left by themselves before the work was done: the tripwire."""


class Farm:
    """The local ranks of a run: started when they are needed, started again after a death, ended with the block."""

    def __init__(self, run: RunDir, ranks: int, idle_s: float = 0.0):
        """A farm without processes yet.

        Args:
            idle_s: seconds that ranks stay without work; 0: they leave when nothing is left to do.
        """
        self._run, self._ranks, self._idle_s = run, ranks, idle_s
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths, self._ended = 0, -1

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def keep(self) -> None:
        """See to it that ranks are at work.

        Raises:
            Stopped: they left because somebody asked the run to stop.
            Incomplete: they left by themselves.
            PromofError: they cannot work, or died ten times without committing anything.
        """
        code = self._process.poll() if self._process is not None else None
        if self._process is not None and code is None:
            return
        if stop_requested(self._run):
            raise Stopped
        if code == CANNOT_GO_ON:
            raise PromofError(_why_failed(self._run))
        if code == 0:
            raise Incomplete
        self._count_deaths()
        self._process = start_farm(self._run, self._ranks, self._idle_s)

    def leave(self, tick: Callable[[], None], within_s: float = math.inf) -> None:
        """Wait until the ranks have left, as they do when the work is done or a stop was asked for."""
        deadline = time.monotonic() + within_s
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            tick()
            time.sleep(POLL_S)

    def _count_deaths(self) -> None:
        state = fold(self._run, None)
        ended = state.committed + state.uncharged
        self._deaths = 0 if ended > self._ended else self._deaths + 1
        self._ended = ended
        if self._deaths >= MAX_DEATHS_WITHOUT_PROGRESS:
            raise PromofError(
                f"The farm of {self._run.path} died {self._deaths} times without committing anything; "
                f"see the newest file in {self._run.logs}, then run `promof resume {self._run.path}`."
            )


def run_to_the_end(run: RunDir, ranks: int, tick: Callable[[], None]) -> int:
    """Evaluate every open batch of a run with `ranks` local MPI ranks.

    A farm that dies is started again; batches that it left behind are handled as suspects.

    Args:
        tick: called often, for progress.

    Returns:
        exit code: 0 done, 3 incomplete (the tripwire), 75 stopped to be resumed.

    Raises:
        PromofError: the ranks cannot work, or died ten times without committing anything.
    """
    try:
        with Farm(run, ranks) as farm:
            while not fold(run, None).finished:
                farm.keep()
                farm.leave(tick)
                tick()
    except Stopped:
        return STOPPED
    except Incomplete:
        return INCOMPLETE
    return DONE


def start_farm(run: RunDir, ranks: int, idle_s: float = 0.0) -> subprocess.Popen[bytes]:
    """Start `ranks` MPI ranks in a session of their own, so that a Ctrl-C reaches only us."""
    farm = [sys.executable, "-m", "hpc.farm", str(run.path), str(idle_s)]
    command = [_mpiexec(), "-n", str(ranks), *farm] if ranks > 1 else farm
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PROMOF_LAUNCHER": str(os.getpid()),
                   "PROMOF_RANKS": str(ranks)}  # fmt: skip
    log = run.logs / f"farm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


@contextmanager
def leading(run: RunDir, claim_expiry_s: float = 300.0) -> Iterator[None]:
    """Hold the run's lease; Ctrl-C and SIGTERM ask the run to stop at the next safe point, a second one at once.

    Raises:
        PromofError: another live process leads this run.
    """

    def ask_to_stop(number: int, frame: object) -> None:
        if stop_requested(run):
            raise KeyboardInterrupt
        request_stop(run, f"signal {signal.Signals(number).name}")

    with holding_lease(run, claim_expiry_s):
        clear_stop(run)
        before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _why_failed(run: RunDir) -> str:
    failures = [e for e in read_events(run) if e["event"] == "failed"]
    latest = max(failures, key=lambda e: e["time_s"], default=None)
    if shutil.disk_usage(run.path).free < NO_ROOM_BYTES:  # then the event could not be written either
        return f"The disk of {run.path} is full; free some space and run `promof resume {run.path}`, nothing is lost."
    return str(latest["why"]) if latest else f"A rank could not go on; see {run.logs}."


def _mpiexec() -> str:
    """The mpiexec beside this Python (the MPI wheel), else the one in PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise PromofError("mpiexec was not found: load your site's MPI module, or pip install 'promof-hpc[mpi-wheel]'.")
    return found
