"""Watching and killing the processes of a run, and the table that it must end with."""

import contextlib
import subprocess
import time

import psutil

from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.schema import TIMING_COLUMNS


def ranks_of(run: RunDir) -> list[psutil.Process]:
    """The living ranks of a run (children that evaluate suspects are not among them)."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "hpc.farm" in command and str(run.path) in command and "mpiexec" not in command[0]:
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and "hydra" not in process.name():
                    found.append(process)
    return found


def wait_for(condition, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def kill_everything(run: RunDir, launcher: subprocess.Popen) -> None:
    launcher.kill()
    launcher.wait()
    for process in psutil.process_iter(["cmdline"]):
        if str(run.path) in (process.info["cmdline"] or []):
            with contextlib.suppress(psutil.Error):
                process.kill()
    wait_for(lambda: not ranks_of(run), 20, "the ranks to be gone")


def table_of(run: RunDir) -> list[dict]:
    """All rows without timing, sorted by id, as they must come out whatever happened."""
    rows = [{k: str(v) for k, v in vars(e.row).items() if k not in TIMING_COLUMNS} for e in read_results(run)]
    return sorted(rows, key=lambda r: r["evaluation_id"])
