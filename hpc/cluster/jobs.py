"""What Slurm starts. A job is pickled as its run directory alone: everything else is found there.

By submitit as `Train(run_dir)`, without it as `python -m hpc.cluster.jobs train RUN`. Each task of a job calls it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hpc.cluster.batch_script import BESIDE_VARIABLE, CHAIN_VARIABLE, LAUNCHER_VARIABLE
from hpc.cluster.chain import may_go_on
from hpc.cluster.job_state import JobState
from hpc.cluster.launcher import launch_ranks
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import Site
from hpc.exit_codes import CANNOT_GO_ON, FAILED
from hpc.kinds import config_of, design_of, is_done, is_evaluated, kind_of
from hpc.preemption import BY_FILE, BY_SIGNAL, Asked, Interrupted, Parting, Requests
from promof_hpc.config import ScreenConfig, load_config
from promof_hpc.errors import PromofError
from promof_hpc.store.claims import Owner
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir, is_ingested, stop_requested
from promof_hpc.store.shard import publish_text

log = logging.getLogger("promof.job")
SPARE_S = 60.0
REQUEUE_TRIES, REQUEUE_WAIT_S = 3, 5.0
OTHERS_WAIT_S, MOST_MISSED = 60.0, 20


@dataclass(frozen=True)
class Train:
    """Propose and learn until the campaign ends."""

    run_dir: str

    def __call__(self) -> None:
        """Be one of its processes."""
        from hpc.cluster.evaluators import Evaluators
        from hpc.training.job import Place, train

        job = Job.begin(self.run_dir, "train")
        between_min = job.site.mean_time_between_preemptions_min
        evaluators = Evaluators(job.run, job.site, job.number, lambda text: job.note("note", text=text))
        place = Place(
            between_deaths_s=between_min and between_min * 60,
            patience_s=job.site.notice_s / 2,
            job_ended=job.is_over,
            why_nobody=evaluators.why_nobody,
        )
        parting = train(job.run, design_of(job.run), job.requests, place)
        job.leave(parting.asked, parting.why)
        if job.rank == 0:
            evaluators.call_back()
            _report(job.run)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate what is proposed or read until nothing more will come."""

    run_dir: str

    def __call__(self) -> None:
        """Be one of its MPI ranks.

        Raises:
            PromofError: no rank can work (the run's events say why), or a screening has not been read yet.
        """
        from hpc.farm import Stay, run_rank

        job = Job.begin(self.run_dir, "evaluate")
        if kind_of(job.run) != "design" and not is_ingested(job.run):
            raise PromofError(
                f"The library of {job.run.path} has not been read; `promof resume` submits what is missing."
            )
        beside = BESIDE_VARIABLE in os.environ  # in a training job's allocation, which lasts as long as that does
        stay = Stay(math.inf if beside else job.site.idle_min * 60, job.site.notice_s / 2)
        if LAUNCHER_VARIABLE in os.environ:
            meeting_s = config_of(job.run).farm.meeting_s
            code, parting = launch_ranks(job.run, job.requests, stay, meeting_s, job.missed)
        else:
            os.environ["PROMOF_RANKS"] = os.environ["SLURM_NTASKS"]
            code, parting = run_rank(job.run, job.requests, stay, job.missed)
        if code and parting.asked is Asked.NOTHING:
            raise PromofError(_why_ended(job.run, code))
        if parting.asked is Asked.NOTHING and job.rank == 0:
            parting = _finish(job, parting)
        job.leave(parting.asked, parting.why)


@dataclass(frozen=True)
class Ingest:
    """Read the library of a screening."""

    run_dir: str

    def __call__(self) -> None:
        """Be its one process."""
        from hpc.lease import holding_lease

        job = Job.begin(self.run_dir, "ingest")
        config = load_config(ScreenConfig, job.run.config)
        asked = Asked.NOTHING
        try:
            with holding_lease(job.run, config.farm.claim_expiry_s, job.is_over):
                self._work(job, config)
        except Interrupted as interrupted:
            asked = interrupted.asked
        job.leave(asked)

    def _work(self, job: Job, config: ScreenConfig) -> None:
        from hpc.worker import load_run_potential
        from promof_hpc.screen.ingest import ingest

        cores = int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
        potential = load_run_potential(job.run, config.evaluation)
        ingest(job.run, config, potential, lambda done, total: job.requests.heed(), workers=cores)


@dataclass(frozen=True)
class IngestReference(Ingest):
    """Read the library of a reference set, then propose the elements."""

    def _work(self, job: Job, config: ScreenConfig) -> None:
        from hpc.reference import propose_elements

        super()._work(job, config)
        propose_elements(job.run, config)


@dataclass(frozen=True)
class Fit:
    """Fit the baseline of a reference set to what was relaxed, or refuse where something is missing."""

    run_dir: str

    def __call__(self) -> None:
        """Be its one process.

        Raises:
            PromofError: evaluations are missing, or too few MOFs have converged.
        """
        from hpc.inspection import write_report
        from hpc.reference import missing_of, write_reference

        job = Job.begin(self.run_dir, "serial")
        if missing := missing_of(job.run):
            job.refuse(
                f"{job.run.path}: {missing}; `promof resume {job.run.path}` goes on, and nothing is fitted to "
                "an incomplete set."
            )
        print(f"Reference set: {write_reference(job.run, load_config(ScreenConfig, job.run.config))}")
        write_report(job.run)
        job.leave(Asked.NOTHING)


@dataclass(frozen=True)
class Job:
    """A task of a Slurm job at its work on a run; `number` is the job's id, `rank` the task's."""

    run: RunDir
    site: Site
    requests: Requests
    role: str
    rank: int
    number: str

    @classmethod
    def begin(cls, run_dir: str, role: str) -> Job:
        """Note the signals from now on, and say that the job has begun."""
        requests = Requests()
        logging.basicConfig(format=f"%(asctime)s {role} %(levelname)s %(message)s", level=logging.INFO)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run = RunDir.open(Path(run_dir))
        site = load_config(Site, run.site)
        job = cls(run, site, requests, role, int(os.environ["SLURM_PROCID"]), os.environ["SLURM_JOB_ID"])
        before = os.environ.get(CHAIN_VARIABLE, "")
        if before and not may_go_on(run, job.number, job.rank, before.split(",")):
            raise SystemExit(0)
        # Slurm says since when where it is new enough; the allocation is a little older than its processes
        since = float(os.environ.get("SLURM_JOB_START_TIME", _started_s()))
        job.note("job_began", host=os.uname().nodename, tasks=int(os.environ["SLURM_NTASKS"]), allocated_s=since)
        return job

    def note(self, event: str, **content: object) -> None:
        """Write an event, once a job."""
        if self.rank == 0:
            events = EventLog(self.run, f"{self.number}-{self.role}")
            events.write(event, role=self.role, job=self.number, restart=self._restart, **content)

    def refuse(self, why: str) -> NoReturn:
        """End, and say why.

        Raises:
            PromofError: always.
        """
        self.note("refused", why=why)
        raise PromofError(why)

    def is_over(self, job: str) -> bool:
        """Whether the scheduler knows for certain that another job has ended; what it never knew may live elsewhere."""
        if job.startswith("local-"):
            return False
        seen = Scheduler().states([job])[job]
        return seen.final and seen.state is not JobState.GONE

    def is_done(self) -> bool:
        """Whether another start would find nothing to do."""
        return is_done(self.run)

    def leave(self, asked: Asked, why: str = "") -> None:
        """Go the way that was asked for; returns only where the work went on to its end."""
        if asked is Asked.REQUEUE and stop_requested(self.run):
            asked, why = Asked.LEAVE, BY_FILE
        self.note("job_leaves", asked=asked.name, why=why or (BY_SIGNAL if asked is not Asked.NOTHING else ""))
        if asked is Asked.NOTHING:
            return
        if asked is Asked.REQUEUE and self.rank == 0 and self._may_come_back():
            self._requeue()
        if asked is Asked.HOLD:
            # Who ends by himself after TERM counts as completed, and is not requeued after a preemption.
            time.sleep(self.site.grace_s + self.site.kill_wait_s + SPARE_S)
        raise SystemExit(0)  # for which submitit writes no result

    def missed(self) -> None:
        """What is done where the processes of this job do not find each other: queue it again, some times.

        A step beside one that trains ends alone, and the job's script starts it again.
        """
        if self.rank > 0:
            time.sleep(OTHERS_WAIT_S)  # the death of one ends them all
            return
        self.note("missed")
        if self._restart < MOST_MISSED and self._may_come_back():
            self._requeue()

    def _may_come_back(self) -> bool:
        """Whether another start would find something to do, and is this process's to ask for."""
        # one that trains asks itself, and may need what time is left to save; once training has ended nobody else asks
        beside = BESIDE_VARIABLE in os.environ and not is_evaluated(self.run)
        return not (beside or stop_requested(self.run) or self.is_done())

    def _requeue(self) -> None:
        """Once for every start of the job, however many signals came."""
        marker = self.run.submissions / f"{self.number}.requeued-{self._restart}"
        if not publish_text(marker, Owner.here().host + "\n"):
            return
        why = ""
        for _ in range(REQUEUE_TRIES):
            why = Scheduler().requeue(self.number)
            if not why:
                self.note("requeued")
                return
            time.sleep(REQUEUE_WAIT_S)
        self.note("requeue_failed", why=why)

    @property
    def _restart(self) -> int:
        return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _started_s() -> float:
    """When this process was started, before it imported anything (proc_pid_stat(5))."""
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    running_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    return time.time() - running_s


def _why_ended(run: RunDir, code: int) -> str:
    if code == CANNOT_GO_ON:
        return f"No rank can evaluate; the events of {run.path} say why (`promof status`)."
    return (
        f"The MPI ranks of {run.path} ended with exit code {code} before they were done, as where one is killed; see "
        f"{run.logs}, then `promof resume {run.path}`."
    )


def _finish(job: Job, parting: Parting) -> Parting:
    """Do what is left when the last batch has been committed; how that ended, where it is not as the ranks did."""
    from hpc.local import Stopped
    from hpc.second_opinion import ask

    try:
        if kind_of(job.run) == "design" and is_evaluated(job.run):
            ask(job.run, 1, lambda done, total: None, job.requests.heed)
    except Stopped:
        return Parting(Asked.LEAVE, BY_FILE)
    except Interrupted as interrupted:
        return Parting(interrupted.asked, BY_SIGNAL)
    if is_done(job.run):
        _report(job.run)
    return parting


def _report(run: RunDir) -> None:
    from hpc.inspection import write_report

    write_report(run)


JOBS: dict[str, Callable[[str], Callable[[], None]]] = {"train": Train, "evaluate": Evaluate, "serial": Ingest}


def main(role: str, run_dir: str) -> None:
    """A job that was not started by submitit."""
    try:
        JOBS[role](run_dir)()
    except PromofError as error:
        log.error("%s", error)
        sys.exit(FAILED)


if __name__ == "__main__":
    main(*sys.argv[1:3])
