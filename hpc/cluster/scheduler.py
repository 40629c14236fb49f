"""Questions and orders to Slurm: every call has a deadline, and none raises because Slurm is ill.

The scheduler's word is advice: a run's own files say what was done. So whatever a command does (late, absent, empty,
garbage, words that are new to us) comes back as UNKNOWN with the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.cluster.job_state import (
    REQUEUED_OR_OVER,
    JobFields,
    JobState,
    Seen,
    from_sacct,
    from_scontrol,
    from_squeue,
    number,
    of_job,
)
from promof_hpc.errors import PromofError
from promof_hpc.store.shard import replace_text

log = logging.getLogger(__name__)

DEADLINE_S = 20.0
LAST_WORDS_S = 1.0
REMEMBERED_S = 86_400.0
NO_SUCH_JOB = "Invalid job id specified"
ASKED_TOGETHER = 8  # jobs about which the controller is asked one by one, at the same time
FOREIGN = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT")  # a user's own formats and filters
SQUEUE = ("squeue", "--noheader", "--array", "--states=all",
          "--Format=JobArrayID:|,State:|,RestartCnt:|,exit_code:|,Reason:|")  # fmt: skip
SACCT = ("sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,ExitCode")


@dataclass(frozen=True)
class Limits:
    """What `scontrol show config` says; None or empty where it does not.

    Attributes:
        max_array: tasks of an array at most.
        user_signal: a preempted job gets the signal of its --signal.
        cluster: its name.
    """

    max_array: int | None = None
    kill_wait_s: int | None = None
    preempt_mode: str = ""
    preempt_type: str = ""
    user_signal: bool | None = None
    version: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Answer:
    """What a command wrote to its standard output; `why` says why it is no answer, and is empty if it is one.

    Attributes:
        answered: it came to its end, or could not begin; False where it was ended at the deadline.
    """

    text: str
    why: str = ""
    answered: bool = True


@dataclass(frozen=True)
class Scheduler:
    """Slurm's commands as they are in PATH.

    Attributes:
        deadline_s: any call but `states` has returned after this and the seconds that it takes to end what did not
            answer.
        environment: of the commands; None: this process's.
    """

    deadline_s: float = DEADLINE_S
    environment: Mapping[str, str] | None = None

    def reachable(self) -> str:
        """Empty if a controller answers, else why not."""
        answer = self.ask("scontrol", "ping")
        if re.search(r"\bUP\b", answer.text):
            return ""
        return answer.why or f"no Slurm controller is up ({_last_line(answer.text) or 'scontrol ping said nothing'})"

    def states(self, job_ids: Iterable[str]) -> dict[str, Seen]:
        """Each of these jobs by its id (`123`, or `123_4` of an array), by one squeue and one sacct for all.

        The id of a whole array gets what its liveliest task is. What both leave open the controller is asked about job
        by job, within a second deadline: only its own word that there is no such job makes one GONE.
        """
        wanted = list(dict.fromkeys(job_ids))
        if not wanted:
            return {}
        roots = ",".join(dict.fromkeys(map(_root, wanted)))
        # by user: asked for a job that it has forgotten, squeue fails and says nothing of the others
        squeue = (*SQUEUE, f"--user={os.getuid()}")
        queued, accounted = self._ask_at_once([squeue, (*SACCT, f"--jobs={roots}")])
        in_queue, on_account = from_squeue(queued.text), from_sacct(accounted.text)
        why = "; ".join(answer.why for answer in (queued, accounted) if answer.why)
        told = {job: of_job(job, on_account) for job in wanted if of_job(job, in_queue) is None}
        left_open = dict.fromkeys(_root(job) for job, seen in told.items() if not _settled(seen))
        gone = set() if queued.why else self._gone(list(left_open))
        cluster = self.limits().cluster if gone else ""
        return {
            job: of_job(job, in_queue)
            or _unlisted(told[job], cluster if _root(job) in gone else None, bool(queued.why), why)
            for job in wanted
        }

    def _gone(self, job_ids: Sequence[str]) -> set[str]:
        """Those of which the controller says that it knows no such job."""
        gone: set[str] = set()
        for first in range(0, len(job_ids), ASKED_TOGETHER):
            some = job_ids[first : first + ASKED_TOGETHER]
            answers = self._ask_at_once([("scontrol", "show", "job", "--oneliner", job) for job in some])
            gone.update(job for job, answer in zip(some, answers, strict=True) if NO_SUCH_JOB in answer.why)
            if not all(answer.answered for answer in answers):
                break  # the rest would wait for as long again
        return gone

    def job(self, job_id: str) -> JobFields:
        """One job in detail; UNKNOWN with the reason if the controller does not say."""
        answer = self.ask("scontrol", "show", "job", "--oneliner", job_id)
        line = answer.text.strip().partition("\n")[0]
        if answer.why or "JobState=" not in line:
            return JobFields(Seen(JobState.UNKNOWN, answer.why or "scontrol says nothing about it"))
        return from_scontrol(line)

    def limits(self) -> Limits:
        """What the controller allows."""
        answer = self.ask("scontrol", "show", "config")
        found = dict(re.findall(r"^(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", answer.text, re.MULTILINE))
        parameters = found.get("SlurmctldParameters", "") + found.get("PreemptParameters", "")
        return Limits(
            number(found.get("MaxArraySize", "")),
            number(found.get("KillWait", "")),
            found.get("PreemptMode", ""),
            found.get("PreemptType", ""),
            "preempt_send_user_signal" in parameters if "PreemptMode" in found else None,
            found.get("SLURM_VERSION", ""),
            found.get("ClusterName", ""),
        )

    def cancel(self, job_ids: Sequence[str]) -> str:
        """End jobs for good; empty, or why that failed."""
        return self.ask("scancel", *job_ids).why if job_ids else ""

    def release(self, job_id: str) -> str:
        """Let a held job start; empty, or why that failed."""
        return self.ask("scontrol", "release", job_id).why

    def requeue(self, job_id: str) -> str:
        """Put a running job back into the queue; empty, or why that failed."""
        return self.ask("scontrol", "requeue", job_id).why

    def ask(self, *command: str) -> Answer:
        """Run a command to its end or to the deadline."""
        return self._ask_at_once([command])[0]

    def _ask_at_once(self, commands: Sequence[Sequence[str]]) -> list[Answer]:
        """Run commands side by side, so that a slow one does not take the time of the next."""
        until = time.monotonic() + self.deadline_s
        environment = os.environ if self.environment is None else self.environment
        ours = {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}
        started = [_start(command, ours) for command in commands]
        return [
            process if isinstance(process, Answer) else _finish(process, command[0], until, self.deadline_s)
            for process, command in zip(started, commands, strict=True)
        ]


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes] | Answer:
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=environment, start_new_session=True)  # fmt: skip
    except FileNotFoundError:
        return Answer("", f"{command[0]} is not in PATH")
    except (OSError, ValueError) as error:
        return Answer("", f"{command[0]} cannot be started: {error}")


def _finish(process: subprocess.Popen[bytes], name: str, until: float, deadline_s: float) -> Answer:
    try:
        out, errors = process.communicate(timeout=max(LAST_WORDS_S, until - time.monotonic()))
    except BaseException as error:  # also where the user interrupts us: it is in a group of its own, and would go on
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        with contextlib.suppress(subprocess.TimeoutExpired):  # what has left the group may hold the pipes for ever
            process.communicate(timeout=LAST_WORDS_S)
        return Answer("", f"{name} did not answer within {deadline_s:g} s", answered=False)
    text, said = out.decode(errors="replace"), _last_line(errors.decode(errors="replace"))
    if process.returncode == 0:
        return Answer(text)
    if re.search(r"accounting.*(disabled|off)", said, re.IGNORECASE):
        return Answer(text, "accounting off")
    said = said.removeprefix(f"{name}: ") or f"exit code {process.returncode}"
    return Answer(text, f"{name}: {said}")


def _root(job: str) -> str:
    """The id of the whole array that a task belongs to."""
    return job.partition("_")[0]


def _settled(accounted: Seen | None) -> bool:
    """Whether the accounts alone say that a job is over."""
    return accounted is not None and accounted.final and accounted.state not in REQUEUED_OR_OVER


def _unlisted(accounted: Seen | None, gone_from: str | None, squeue_failed: bool, why: str) -> Seen:
    """What is known of a job that squeue does not list; `gone_from` is the cluster that knows no such job."""
    gone = gone_from is not None
    if gone_from is not None and not (accounted and accounted.final):
        return Seen(JobState.GONE, "the controller knows it no more", cluster=gone_from)
    if accounted is None:
        return Seen(JobState.UNKNOWN, why or "neither squeue nor sacct knows it")
    believed = accounted.state not in REQUEUED_OR_OVER if squeue_failed else _settled(accounted)
    if gone or believed or accounted.state is JobState.UNKNOWN:
        return accounted
    squeue = "did not answer" if squeue_failed else "does not list it any more"
    return Seen(JobState.UNKNOWN, f"squeue {squeue}, and sacct still says {accounted.state}")


def _last_line(text: str) -> str:
    """Where Slurm's commands and Python say what went wrong."""
    return text.strip().rpartition("\n")[2].strip()


@dataclass(frozen=True)
class CachedScheduler:
    """Asks about jobs at most once in `poll_s`, all processes that share the file `path` together.

    Attributes:
        path: on a disk that these processes share; its folder is made.
        clock: seconds since 1970.
    """

    scheduler: Scheduler
    path: Path
    poll_s: float
    clock: Callable[[], float] = time.time

    def states(self, job_ids: Iterable[str]) -> dict[str, Seen]:
        """As `Scheduler.states`, and at most `poll_s` old unless another process is asking just now."""
        wanted = list(dict.fromkeys(job_ids))
        memory = _Memory.read(self.path)
        if self._is_old(memory, wanted):
            with alone(self.path) as ours:
                memory = _Memory.read(self.path)  # another process may have asked since
                if ours and self._is_old(memory, wanted):
                    memory = self._look(memory, wanted)
        wait_s = max(0.0, memory.asked_s + self.poll_s - self.clock())
        unknown = Seen(JobState.UNKNOWN, f"not asked about yet; the next question is due in {wait_s:.0f} s")
        return {job: memory.jobs.get(job, unknown) for job in wanted}

    def _is_old(self, memory: _Memory, wanted: Iterable[str]) -> bool:
        if all(job in memory.jobs and memory.jobs[job].final for job in wanted):
            return False
        return not 0 <= self.clock() - memory.asked_s < self.poll_s

    def _look(self, memory: _Memory, wanted: Iterable[str]) -> _Memory:
        """Ask about what anybody waits for; that it is being asked is written first, in case asking never ends."""
        now = self.clock()
        wanted_s = {job: s for job, s in memory.wanted_s.items() if now - s < REMEMBERED_S} | dict.fromkeys(wanted, now)
        known = {job: seen for job, seen in memory.jobs.items() if job in wanted_s}
        _Memory(now, known, wanted_s).write(self.path)
        asked = self.scheduler.states(job for job in wanted_s if job not in known or not known[job].final)
        looked = _Memory(now, known | asked, wanted_s)
        looked.write(self.path)
        return looked


@dataclass(frozen=True)
class _Memory:
    """The file that processes share: when the scheduler was asked, what it said, and when each job was wanted last."""

    asked_s: float = float("-inf")
    jobs: dict[str, Seen] = field(default_factory=dict)
    wanted_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Memory:
        """What stands there; nothing if it is absent or not ours."""
        try:
            content = json.loads(path.read_bytes())
            jobs = {str(job): _seen_of(seen) for job, seen in content["jobs"].items()}
            return cls(float(content["asked_s"]), jobs, {str(job): float(s) for job, s in content["wanted_s"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file; where that fails the scheduler is asked more often, and nothing else happens."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, json.dumps(asdict(self)))
        except (OSError, PromofError) as error:
            log.warning("what the scheduler said cannot be kept in %s: %s", path, error)


def _seen_of(content: Mapping[str, Any]) -> Seen:
    exit_code, restarts = content["exit_code"], content["restarts"]
    return Seen(JobState(content["state"]), str(content["reason"]), exit_code, restarts, content["cluster"])


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether this process may go ahead: no other that shares `path` is in such a block."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f"{path.name}.lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:  # a disk without locks: better asked twice than never
            log.debug("no lock beside %s: %s", path, error)
        yield True
