"""Where a job is, read from what squeue, sacct and scontrol write; whatever stands there, nothing here raises."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)

ARRAY_TASKS_MAX = 1_000_000


class JobState(StrEnum):
    """Slurm's words for where a job is; ours are GONE (it has ended, how is forgotten) and UNKNOWN."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    RESIZING = "RESIZING"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STOPPED = "STOPPED"
    REVOKED = "REVOKED"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    SIGNALING = "SIGNALING"
    STAGE_OUT = "STAGE_OUT"
    GONE = "GONE"
    UNKNOWN = "UNKNOWN"


# The controller turns a job that it requeues to PENDING before squeue can list it as one of these, so from squeue they
# are final. Accounts may be older: there the requeue may not have been written down yet.
REQUEUED_OR_OVER = frozenset({JobState.NODE_FAIL, JobState.PREEMPTED})
BADLY = REQUEUED_OR_OVER | {JobState.FAILED, JobState.TIMEOUT, JobState.BOOT_FAIL, JobState.DEADLINE,
                            JobState.OUT_OF_MEMORY}  # fmt: skip
FINAL = BADLY | {JobState.COMPLETED, JobState.CANCELLED, JobState.REVOKED, JobState.GONE}
HELD = frozenset({JobState.REQUEUE_HOLD, JobState.SPECIAL_EXIT, JobState.RESV_DEL_HOLD})
HELD_REASONS = ("jobheld", "jobholdmaxrequeue", "requeued held", "held state")
LIVELIEST_FIRST = (JobState.RUNNING, JobState.COMPLETING, JobState.CONFIGURING, JobState.PENDING)


@dataclass(frozen=True)
class Seen:
    """What the scheduler says of a job.

    Attributes:
        reason: why it waits or ended, in Slurm's words; of an UNKNOWN one why nothing is known.
        exit_code: of the batch script, minus the signal that ended it; None: not known, or it has not ended.
        restarts: how often it was requeued; None: not known.
        cluster: of a GONE one, whose controller says so; it is right about its own jobs only.
    """

    state: JobState
    reason: str = ""
    exit_code: int | None = None
    restarts: int | None = None
    cluster: str = ""

    @property
    def held(self) -> bool:
        """It will not start until somebody releases it, as after "launch failed requeued held"."""
        reason = self.reason.replace("_", " ").lower()
        waits = self.state in (JobState.PENDING, JobState.REQUEUED)
        return self.state in HELD or (waits and any(word in reason for word in HELD_REASONS))

    @property
    def final(self) -> bool:
        """It has ended, and Slurm will not start it again by itself."""
        return self.state in FINAL

    @property
    def badly(self) -> bool:
        """It has ended, and not as it should: many a state goes with the exit code 0; None is no good end either."""
        return self.final and (self.state in BADLY or self.exit_code != 0)


@dataclass(frozen=True)
class JobFields:
    """What `scontrol show job` says.

    Attributes:
        end_time_s: when the time limit ends it, or when it ended, in seconds since 1970; None: not known.
        preempt_time_s: when it was told that it is preempted; None: it was not.
    """

    seen: Seen
    end_time_s: float | None = None
    preempt_time_s: float | None = None


def job_state(word: str) -> JobState:
    """A state as squeue, sacct or scontrol write it; `CANCELLED by 2001` and the cut `OUT_OF_ME+` are known, too."""
    first = (word.split() or [""])[0].upper()
    if first.endswith("+"):
        begun = [state for state in JobState if state.startswith(first[:-1])]
        if len(begun) == 1:
            return begun[0]
    try:
        return JobState(first)
    except ValueError:
        _tell_once(first)
        return JobState.UNKNOWN


@functools.lru_cache(maxsize=100)
def _tell_once(word: str) -> None:
    log.warning("Slurm says %r of a job, which is no state that we know; it is taken as unknown", word)


def from_squeue(text: str) -> dict[str, Seen]:
    """Jobs by id, of lines `JobArrayID|State|RestartCnt|exit_code|Reason|`."""
    found = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) >= 5 and words[1] and re.fullmatch(r"\d+(_\d+)?", words[0]):
            found[words[0]] = _seen(words[1], words[4], _of_wait_status(words[3]), number(words[2]))
    return found


def from_sacct(text: str) -> dict[str, Seen]:
    """Jobs by id, of lines `JobID|State|ExitCode`; steps, headers and whatever else stands there are left out."""
    found = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) >= 2 and words[1] and re.fullmatch(r"\d+(_(\d+|\[.*\]))?", words[0]):
            by = re.search(r"by \S+", words[1])
            seen = _seen(words[1], f"cancelled {by[0]}" if by else "", _of_pair(words[2]) if len(words) > 2 else None)
            found.update(dict.fromkeys(_array_ids(words[0]), seen))
    return found


def from_scontrol(line: str) -> JobFields:
    """A job of the one line that `scontrol show job --oneliner` writes, whose values may hold spaces."""

    def field(name: str) -> str:
        match = re.search(rf"(?:^|\s){name}=(.*?)(?=\s[\w/:]+=|\s*$)", line)
        return match[1].strip() if match else ""

    seen = _seen(field("JobState"), field("Reason"), _of_pair(field("ExitCode")), number(field("Restarts")))
    return JobFields(seen, _epoch_s(field("EndTime")), _epoch_s(field("PreemptTime")))


def of_job(job: str, known: Mapping[str, Seen]) -> Seen | None:
    """What is known of a job; of a whole array that of its liveliest task, else of one that went wrong."""
    if job in known:
        return known[job]
    tasks = [seen for name, seen in known.items() if name.startswith(f"{job}_")]
    return min(tasks, key=_deadness) if tasks else None


def _deadness(seen: Seen) -> int:
    if seen.state in LIVELIEST_FIRST:
        return LIVELIEST_FIRST.index(seen.state)
    return len(LIVELIEST_FIRST) + seen.final + (seen.state is JobState.COMPLETED)


def _seen(word: str, reason: str, exit_code: int | None, restarts: int | None = None) -> Seen:
    state = job_state(word)
    reason = "" if reason in ("None", "(null)", "N/A") else reason
    if state is JobState.UNKNOWN:
        reason = f"Slurm says {word!r}"
    return Seen(state, reason, exit_code if state in FINAL else None, restarts)


def _array_ids(job_id: str) -> list[str]:
    """`123_[0-2,7%4]`, as sacct writes tasks that wait, as four ids; any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    ids = []
    for part in match[2].split(",") if match else ():
        first, _, last = part.partition("-")
        if match and first.isdigit() and (last.isdigit() or not last):
            beyond = min(int(last or first) + 1, int(first) + ARRAY_TASKS_MAX)
            ids += [f"{match[1]}_{index}" for index in range(int(first), beyond)]
    return ids or [job_id]


def number(text: str) -> int | None:
    """The whole number with which a text begins."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None


def _of_pair(text: str) -> int | None:
    """Exit code of sacct's `CODE:SIGNAL`."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    return (-int(match[2]) or int(match[1])) if match else None


def _of_wait_status(text: str) -> int | None:
    """Exit code of the wait status that squeue writes."""
    with contextlib.suppress(ValueError, OverflowError):
        return os.waitstatus_to_exitcode(int(text))
    return None


def _epoch_s(text: str) -> float | None:
    with contextlib.suppress(ValueError, OverflowError):
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None
