"""Evaluators where srun cannot start MPI ranks: one process in the job's place starts them by the site's launcher."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

from hpc.cluster.batch_script import LAUNCHER_VARIABLE
from hpc.preemption import Asked, Requests
from promof_hpc.store.run_dir import RunDir

POLL_S = 0.5


def launch_ranks(run: RunDir, requests: Requests, resident_s: float) -> tuple[int, Asked]:
    """Start the ranks and stay until they have left; they drain when this process was asked to stop, or dies.

    Returns:
        exit code of the launcher, and what was asked of this process.
    """
    words = shlex.split(os.environ[LAUNCHER_VARIABLE])
    drain = run.submissions / f"{os.environ['SLURM_JOB_ID']}.drain"
    drain.unlink(missing_ok=True)
    ranks = words[words.index("-n") + 1]
    environment = {**os.environ, "PROMOF_RANKS": ranks, "PROMOF_DRAIN": str(drain)}
    command = [*words, sys.executable, "-m", "hpc.farm", str(run.path), str(resident_s)]
    farm = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    while farm.poll() is None:
        if requests.asked is not Asked.NOTHING:
            drain.touch()
        time.sleep(POLL_S)
    drain.unlink(missing_ok=True)
    return farm.returncode, requests.asked
