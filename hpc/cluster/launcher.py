"""Evaluators where srun cannot start MPI ranks: one process in the job's place starts them by the site's launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from hpc.cluster.batch_script import LAUNCHER_VARIABLE
from hpc.farm import Stay
from hpc.preemption import Asked, Parting, Requests
from hpc.relay import VARIABLE, Relay, Word
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir

log = logging.getLogger("promof.job")
POLL_S = 0.5
END_S = 10.0  # from SIGTERM, which a launcher passes on to other nodes, to SIGKILL


def launch_ranks(
    run: RunDir, requests: Requests, stay: Stay, meeting_s: float, missed: Callable[[], None]
) -> tuple[int, Parting]:
    """Start the ranks and stay until they have left; they drain when this process was asked to stop, or dies.

    Args:
        meeting_s: within which a rank must have begun; from then on ranks watch each other.
        missed: called where they do not begin, or do not find each other.

    Returns:
        exit code of the launcher, and how the ranks left, or what was asked of this process.

    Raises:
        PromofError: the ranks did not find each other.
    """
    words = shlex.split(os.environ[LAUNCHER_VARIABLE])
    relay = Relay(run.submissions / f"{os.environ['SLURM_JOB_ID']}.ranks")
    shutil.rmtree(relay.folder, ignore_errors=True)  # of an earlier start
    relay.folder.mkdir()
    environment = {**os.environ, "PROMOF_RANKS": words[words.index("-n") + 1], VARIABLE: str(relay.folder)}
    command = [*words, sys.executable, "-m", "hpc.farm", str(run.path), str(stay.idle_s), str(stay.drain_s)]
    farm = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + meeting_s
    try:
        while farm.poll() is None:
            if relay.told(Word.MISSED) or (time.monotonic() > until and not relay.told(Word.BEGUN)):
                break
            if requests.asked is not Asked.NOTHING and not relay.told(Word.DRAIN):
                relay.tell(Word.DRAIN)
            time.sleep(POLL_S)
        if relay.told(Word.MISSED) or farm.poll() is None:
            _end(farm)
            missed()
            raise PromofError(
                f"The MPI ranks that '{words[0]}' starts did not find each other within {meeting_s:g} s "
                f"(farm.meeting_s); see {run.logs}."
            )
        said = relay.parting()
    finally:
        shutil.rmtree(relay.folder, ignore_errors=True)
    return farm.returncode, Parting(max(requests.asked, said.asked), said.why)


def _end(farm: subprocess.Popen[bytes]) -> None:
    """End a launcher with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(farm.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            farm.wait(END_S)
            return
