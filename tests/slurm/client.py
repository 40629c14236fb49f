"""Commands of a user and of an administrator to a private cluster, each with a deadline."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.slurm.configuration import Place
from tests.slurm.daemons import ClusterError

COMMAND_S = 30.0
POLL_S = 0.1
FIELDS = ("JobID", "State", "Reason", "NodeList", "RestartCnt", "exit_code")


class State(StrEnum):
    """Slurm's words for where a job is; GONE is ours, for one that the controller does not know."""

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


ENDED = (
    State.COMPLETED,
    State.CANCELLED,
    State.FAILED,
    State.TIMEOUT,
    State.NODE_FAIL,
    State.OUT_OF_MEMORY,
    State.PREEMPTED,
)


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it.

    Attributes:
        nodes: Slurm's compact list, empty while it waits.
        restarts: how often it was requeued.
        exit_code: of the batch script; minus the signal that ended it.
    """

    number: int
    state: State
    reason: str
    nodes: str
    restarts: int
    exit_code: int


class SlurmClient:
    """What can be asked of a cluster; `environment` is what any command needs to reach it."""

    def __init__(self, place: Place, environment: Mapping[str, str], nodes: list[str]) -> None:
        self.place = place
        self.environment = dict(environment)
        self.nodes = nodes

    def run(self, *command: str, seconds: float = COMMAND_S) -> str:
        """Standard output of a command in the cluster's environment.

        Raises:
            ClusterError: it failed or took longer than `seconds`.
        """
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=seconds,
                                  stdin=subprocess.DEVNULL, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ClusterError(f"`{' '.join(command)}` took more than {seconds} s; see {self.place.logs}.") from None
        if done.returncode:
            raise ClusterError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def succeeds(self, *command: str) -> bool:
        """A command ends well, and soon."""
        try:
            self.run(*command, seconds=5)
        except ClusterError:
            return False
        return True

    def submit(self, script: str, *options: str, log: Path | None = None) -> int:
        """Submit the lines of a bash script by sbatch; the number of the job.

        Args:
            script: what to run; `#!/bin/bash` is put before it.
            options: of sbatch, such as `--nodes=2`.
            log: where its output is appended, of every restart; by default `log/job-NUMBER.out` of the cluster.
        """
        file = self.place.path / "run" / f"job-{time.monotonic_ns()}.sh"
        file.write_text(f"#!/bin/bash\n{script}\n")
        output = log or self.place.logs / "job-%j.out"
        return int(self.run("sbatch", "--parsable", f"--output={output}", "--open-mode=append", *options, str(file)))

    def output(self, job: int) -> str:
        """What a job has written so far, unless it was given its own log."""
        log = self.place.logs / f"job-{job}.out"
        return log.read_text(errors="replace") if log.exists() else ""

    def jobs(self) -> list[Job]:
        """All jobs that the controller knows."""
        return self._squeue()

    def job(self, number: int) -> Job:
        """One job; GONE if the controller does not know it."""
        try:
            return self._squeue(f"--jobs={number}")[0]
        except ClusterError as error:
            if "Invalid job id" not in str(error):
                raise
        return Job(number, State.GONE, "", "", 0, 0)

    def _squeue(self, *options: str) -> list[Job]:
        wanted = ",".join(f"{name}:|" for name in FIELDS)
        lines = self.run("squeue", "--noheader", "--states=all", f"--Format={wanted}", *options).splitlines()
        return [_job(line) for line in lines]

    def wait_for(self, number: int, *states: State, seconds: float = 60) -> Job:
        """Wait until a job is in one of `states`; the job then.

        Raises:
            ClusterError: it is not, after `seconds`; the text has its state and its last words.
        """
        deadline = time.monotonic() + seconds
        while (job := self.job(number)).state not in states:
            if time.monotonic() > deadline:
                wanted = " or ".join(states)
                raise ClusterError(f"Not {wanted} after {seconds} s: {job}. It wrote: {self.output(number)[-2000:]}")
            time.sleep(POLL_S)
        return job

    def wait_for_restart(self, number: int, restarts: int = 1, seconds: float = 60) -> Job:
        """Wait until a job runs again, having been requeued `restarts` times."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.job(number)
            if job.restarts >= restarts and job.state not in (State.PENDING, State.COMPLETING):
                return job
            time.sleep(POLL_S)
        raise ClusterError(f"Not restarted after {seconds} s: {job}. It wrote: {self.output(number)[-2000:]}")

    def cancel(self, *numbers: int) -> None:
        """End jobs for good."""
        self.run("scancel", *map(str, numbers))

    def signal(self, step: int | str, name: str, *options: str) -> None:
        """Send a signal to every task of a job (7) or of one step (7.0); `--full` or `--batch` for its script too."""
        self.run("scancel", f"--signal={name}", *options, str(step))

    def requeue(self, number: int) -> None:
        """What an administrator does; no user signal is sent."""
        self.run("scontrol", "requeue", str(number))

    def release(self, number: int) -> None:
        """Let a held job start."""
        self.run("scontrol", "release", str(number))

    def end_in(self, number: int, seconds: int) -> None:
        """Move the time limit of a running job to `seconds` from now (sbatch knows whole minutes only)."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))
        self.run("scontrol", "update", f"JobId={number}", f"EndTime={end}")

    def preempt(self, seconds: float = 1, nodes: str = "") -> int:
        """Take all nodes, or those listed, for a short job of the partition `high`; its number."""
        listed = nodes or ",".join(self.nodes)
        count = len(self.run("scontrol", "show", "hostnames", listed).split())
        options = ("--partition=high", "--exclusive", f"--nodes={count}", f"--nodelist={listed}", "--time=5")
        return self.submit(f"sleep {seconds}", "--job-name=preempt", *options)

    def set_node(self, node: str, state: str, reason: str = "test") -> None:
        """`down`, `drain`, `resume`, as an administrator does."""
        self.run("scontrol", "update", f"NodeName={node}", f"State={state}", f"Reason={reason}")

    def node_states(self) -> dict[str, str]:
        """`idle`, `mix`, `down*` and so on, of every node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", "--partition=low").splitlines()
        return dict(line.split() for line in lines)

    def wait_for_nodes(self, state: str, seconds: float = 60, nodes: list[str] | None = None) -> None:
        """Wait until all nodes, or those listed, are in a state."""
        deadline = time.monotonic() + seconds
        while {(states := self.node_states())[node] for node in nodes or self.nodes} != {state}:
            if time.monotonic() > deadline:
                raise ClusterError(f"Nodes not {state} after {seconds} s: {states}; see {self.place.logs}.")
            time.sleep(POLL_S)


def _job(line: str) -> Job:
    number, state, reason, nodes, restarts, code = (word.strip() for word in line.split("|")[: len(FIELDS)])
    return Job(int(number), State(state), reason, nodes, int(restarts), os.waitstatus_to_exitcode(int(code or 0)))
