"""The jobs of a run: what its own files say of them first, and what the scheduler says as advice."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc.cluster.job_state import JobState, Seen
from hpc.cluster.scheduler import CachedScheduler, Scheduler
from hpc.cluster.site import Site
from hpc.cluster.submission import Submitted, record_of, submissions
from hpc.preemption import Asked
from promof_hpc.config import load_config
from promof_hpc.store.events import Event, read_events
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names

ASK_ANEW_S = 10.0  # for what a person orders now, a word from before is worth less than a question more to Slurm
TROUBLE = {
    "requeue_failed": "it could not requeue itself ({}): `promof resume` submits what is missing",
    "missed": "its processes did not find each other (farm.meeting_s){}",
}


@dataclass(frozen=True)
class JobView:
    """One job of a run.

    Attributes:
        began_s: when it last began to work on the run; None: not yet.
        left: what it was asked for when it left then (a name of `Asked`); empty while it works, or where it was killed.
        why: why it left, in words; empty where all was done.
        restarts: how often it has begun again.
        trouble: why it could not do that, or did not begin.
        seen: the scheduler's word.
    """

    submitted: Submitted
    began_s: float | None
    left: str
    why: str
    restarts: int
    trouble: str
    seen: Seen

    @property
    def over(self) -> bool:
        """It will do nothing more for the run: by its own word, or because the scheduler is sure."""
        return self.left in ("NOTHING", "IDLE", "LEAVE") or self.seen.final

    @property
    def failed(self) -> bool:
        """It ended without having said why."""
        return self.seen.badly and not self.left

    def describe(self) -> str:
        """In one line."""
        words = [f"{self.submitted.role} job {self.submitted.job}: {self._state()}"]
        if self.restarts:
            words.append(f"started again {self.restarts} times")
        if self.trouble:
            words.append(self.trouble)
        if self.seen.held:
            words.append(f"held by Slurm ({self.seen.reason}): `promof resume` releases it")
        return "; ".join(words)

    def _state(self) -> str:
        if self.left == "NOTHING":
            return "done"
        if self.left in ("IDLE", "LEAVE"):
            return f"left: {self.why or 'the run was to stop'}"
        if self.left in ("REQUEUE", "HOLD") and not self.seen.final:
            why = "a warning of Slurm" if self.left == "REQUEUE" else "SIGTERM"
            return f"stopped after {why}, {_word(self.seen)}"
        if self.began_s is not None and not self.seen.final:
            since = f"at work since {time.strftime('%H:%M', time.localtime(self.began_s))}"
            if self.seen.state is not JobState.UNKNOWN:
                return since
            return f"{since} by its own word; unknown to the scheduler ({self.seen.reason})"
        return _word(self.seen)


def _word(seen: Seen) -> str:
    reason = f" ({seen.reason})" if seen.reason and seen.reason != "None" else ""
    return f"{seen.state.lower()}{reason}"


def jobs_of(run: RunDir, anew: bool = False) -> list[JobView]:
    """Every job that was submitted for a run, oldest first; asks the scheduler at most once in the site's `poll_s`.

    Args:
        anew: somebody acts on the answer: it may be `ASK_ANEW_S` old at most.
    """
    known = submissions(run)
    if not known:
        return []
    site = load_config(Site, run.site)
    poll_s = min(ASK_ANEW_S, site.poll_s) if anew else site.poll_s
    said = CachedScheduler(Scheduler(), scheduler_cache(), poll_s).states(s.job for s in known)
    events: dict[str, list[Event]] = {}
    for event in read_events(run):
        if "job" in event and "role" in event:
            events.setdefault(str(event["job"]), []).append(event)
    return [_view(s, events.get(s.job, []), _if_ours(run, s, said[s.job])) for s in known]


def _if_ours(run: RunDir, submitted: Submitted, seen: Seen) -> Seen:
    """A controller says that there is no such job also of another cluster's, and of other users' where a site hides
    these.
    """
    if seen.state is not JobState.GONE:
        return seen
    if record_of(run, submitted.job).stat().st_uid != os.getuid():
        return Seen(JobState.UNKNOWN, "another user submitted it, and the controller says nothing about it")
    if seen.cluster != submitted.cluster or not seen.cluster:
        there, here = submitted.cluster or "a cluster that is not on record", seen.cluster or "another one"
        return Seen(JobState.UNKNOWN, f"it was submitted to {there}, and {here} was asked")
    return seen


def _view(submitted: Submitted, events: Sequence[Event], seen: Seen) -> JobView:
    leads, _, second = submitted.role.partition(" and ")  # of a job with two steps the first one decides
    beside = {e["restart"] for e in events if second and e["role"] == second and e["event"] == "job_leaves"}
    events = [e for e in events if e["role"] in (leads, "chain", "ingest")]
    began = [e for e in events if e["event"] == "job_began"]
    last = began[-1] if began else None
    since = [e for e in events if last is None or e["restart"] == last["restart"]]
    # the second step may have a second potential to ask when the first one has done its work
    left = [e for e in since if e["event"] == "job_leaves"
            and (not second or e["asked"] != Asked.NOTHING.name or e["restart"] in beside)]  # fmt: skip
    declined = [e for e in since if e["event"] == "chain_ends"]
    trouble = [TROUBLE[e["event"]].format(e.get("why", "")) for e in since if e["event"] in TROUBLE]
    view = JobView(submitted, None, "", "", 0, trouble[-1] if trouble else "", seen)
    if left:
        view = replace(view, left=str(left[-1]["asked"]), why=str(left[-1].get("why", "")))
    if declined:
        why = f"it did not go on where the job before it ended, because {declined[-1]['why']}"
        view = replace(view, left=Asked.LEAVE.name, why=why)
    return replace(view, began_s=float(last["time_s"]), restarts=int(last["restart"])) if last else view


def scheduler_cache() -> Path:
    """What the scheduler said last, shared by all `promof` commands of a user on this machine."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    # a home may be shared by clusters whose jobs have the same ids: a machine belongs to one, or to that of SLURM_CONF
    asks = hashlib.sha256(f"{socket.gethostname()} {os.environ.get('SLURM_CONF', '')}".encode()).hexdigest()[:12]
    return Path(base) / "promof" / f"scheduler-{asks}.json"


def log_files(run: RunDir, failed_only: bool) -> list[Path]:
    """What the tasks of the jobs printed, newest job first, the task that ended badly first where one did."""
    jobs = [j.submitted.job for j in jobs_of(run) if j.failed or not failed_only]
    return [run.logs / name for job in reversed(jobs) for name in list_names(run.logs) if name.startswith(f"{job}_")
            and name.endswith((".err", ".out"))]  # fmt: skip
