"""Execution on this machine: start the farm under mpiexec, watch it, start it again after a death."""

from __future__ import annotations

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
from promof_hpc.errors import PromofError
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import Owner, release_lease, renew_lease, take_lease
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, clear_stop, request_stop, stop_requested

MAX_DEATHS_WITHOUT_PROGRESS = 10
NO_ROOM_BYTES = 100_000


def run_to_the_end(run: RunDir, ranks: int, tick: Callable[[], None]) -> int:
    """Evaluate every open batch of a run with `ranks` local MPI ranks.

    A farm that dies is started again; batches that it left behind are handled as suspects.

    Args:
        tick: called about twice a second, for progress.

    Returns:
        exit code: 0 done, 3 incomplete (the tripwire or ten deaths in a row), 75 stopped to be resumed.
    """
    deaths, committed = 0, -1
    while True:
        state = fold(run, None)
        if state.finished:
            return DONE
        if stop_requested(run):
            return STOPPED
        deaths = 0 if state.committed + state.uncharged > committed else deaths + 1
        committed = state.committed + state.uncharged
        if deaths >= MAX_DEATHS_WITHOUT_PROGRESS:
            raise PromofError(
                f"The farm of {run.path} died {deaths} times without committing anything; "
                f"see the newest file in {run.logs}, then run `promof resume {run.path}`."
            )
        code = _watch(start_farm(run, ranks), run, tick)
        if code == CANNOT_GO_ON:
            raise PromofError(_why_failed(run))
        if code == 0 and not fold(run, None).finished:
            return STOPPED if stop_requested(run) else INCOMPLETE


def start_farm(run: RunDir, ranks: int) -> subprocess.Popen[bytes]:
    """Start `ranks` MPI ranks in a session of their own, so that a Ctrl-C reaches only us."""
    farm = [sys.executable, "-m", "hpc.farm", str(run.path)]
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
    owner = Owner.here()
    take_lease(run, owner, claim_expiry_s)
    clear_stop(run)

    def ask_to_stop(number: int, frame: object) -> None:
        if stop_requested(run):
            raise KeyboardInterrupt
        request_stop(run, f"signal {signal.Signals(number).name}")

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        release_lease(run, owner)


def _watch(process: subprocess.Popen[bytes], run: RunDir, tick: Callable[[], None]) -> int:
    try:
        renewed = time.monotonic()
        while process.poll() is None:
            tick()
            if time.monotonic() - renewed > 30:
                renew_lease(run)
                renewed = time.monotonic()
            time.sleep(0.5)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    tick()
    return process.returncode


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
