"""Whether a chained job goes on with what the one before it did: only where that is sure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hpc.cluster.job_state import JobState
from hpc.cluster.scheduler import Scheduler
from hpc.kinds import is_done
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir, stop_requested
from promof_hpc.store.shard import list_names, publish_text

ANSWER_S = 120.0
POLL_S = 0.2
YES = "yes"


def may_go_on(run: RunDir, job: str, rank: int, before: Sequence[str]) -> bool:
    """Whether this job works on the run; the first of its tasks decides for all.

    Args:
        before: the jobs that it comes after.
    """
    answer = run.submissions / f"{job}.goes-on"
    if rank == 0:
        why = why_not(run, Scheduler(), before)
        if why:
            EventLog(run, f"{job}-chain").write("chain_ends", role="chain", job=job, restart=0, why=why)
        publish_text(answer, why or YES)
    deadline = time.monotonic() + ANSWER_S
    while answer.name not in list_names(run.submissions):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return answer.read_text(encoding="utf-8") == YES


def why_not(run: RunDir, scheduler: Scheduler, before: Sequence[str]) -> str:
    """Why a chained job must not go on; empty where it may."""
    if stop_requested(run):
        return "somebody asked the run to stop"
    if is_done(run):
        return "the run is done"
    for job, seen in scheduler.states(before).items():
        if seen.state is JobState.CANCELLED:
            return f"job {job} before it was cancelled"
        if seen.state in (JobState.UNKNOWN, JobState.GONE):
            return f"what became of job {job} before it is not known ({seen.reason})"
    return ""
