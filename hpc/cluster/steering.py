"""`promof stop`, `resume`, `retry` and `logs` for runs whose jobs are in a scheduler's hands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpc.cluster.goodput import describe as describe_goodput
from hpc.cluster.goodput import goodput
from hpc.cluster.overview import JobView, jobs_of, log_files
from hpc.cluster.plan import plan_text
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import Site
from hpc.cluster.submission import no_other_submits, submit
from hpc.cluster.wanted import Wanted, outstanding, wanted_jobs
from hpc.exit_codes import DONE, FAILED
from hpc.kinds import config_of, is_done, kind_of
from promof_hpc.config import load_config
from promof_hpc.errors import PromofError
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, clear_stop, request_stop
from promof_hpc.store.shard import list_names

LAST_LINES = 25
SILENT_POLLS = 10


def is_on_cluster(run: RunDir) -> bool:
    """Whether jobs were submitted for a run."""
    return run.site.name in list_names(run.path)


def stop_run(path: Path, now: bool) -> int:
    """Ask a run's jobs to stop at the next safe point; with `now`, have the scheduler end them. Nobody requeues."""
    run = RunDir.open(path)
    request_stop(run, "promof stop")
    print(f"Asked {path} to stop at the next safe point; `promof resume {path}` goes on.")
    if now and is_on_cluster(run):
        ids = [job.submitted.job for job in jobs_of(run, anew=True) if not job.over]
        why = Scheduler().cancel(ids)
        if why:
            raise PromofError(
                f"Jobs {', '.join(ids)} could not be cancelled ({why}); they stop at the next safe point."
            )
        print(f"Cancelled {', '.join(ids) or 'nothing: no job is left'}.")
    return DONE


def resume_jobs(run: RunDir, chain: int = 0) -> int:
    """Release what is held, and submit the jobs that a run misses; jobs that are waiting or working are left alone.

    Args:
        chain: further jobs of each that is submitted, as of `hpc.cluster.submission.submit`.

    Raises:
        PromofError: see there; or another command submits jobs of this run just now.
    """
    if is_done(run):
        print(f"{run.path} is done.")
        return DONE
    with no_other_submits(run):
        jobs = jobs_of(run, anew=True)
        clear_stop(run)
        for job in jobs:
            if job.seen.held:
                _release(job)
        missing, alive = missing_jobs(run, jobs), [job for job in jobs if not job.over]
        for job in alive:
            print(job.describe())
        if missing:
            config, site = config_of(run), load_config(Site, run.site)
            print(plan_text(run, config, site, missing, texts=False, chain=chain))
            for submitted in submit(run, site, missing, chain):
                print(f"Submitted {submitted.name} as job {submitted.job}.")
        else:
            print(
                "Nothing was submitted: of the jobs that the run needs none is known to be over. Where they are "
                "ending, ask again in a moment."
            )
    if chain and alive:
        print("--chain counts for what is submitted now; jobs that were there already get no further links.")
    return DONE


def _release(job: JobView) -> None:
    why = Scheduler().release(job.submitted.job)
    what = f"releasing it failed ({why})" if why else "released."
    print(f"Job {job.submitted.job} was held by Slurm; {what}")


def retry_failed(path: Path) -> int:
    """Submit again the jobs that failed, and no others."""
    run = RunDir.open(path)
    if is_done(run):
        print(f"{run.path} is done.")
        return DONE
    with no_other_submits(run):
        newest = {job.submitted.name: job for job in jobs_of(run, anew=True)}
        failed = [name for name, job in newest.items() if job.failed]
        if not failed:
            print("No job has failed.")
            return DONE
        config, site = config_of(run), load_config(Site, run.site)
        again = [one for one in wanted_jobs(run, config, site, kind_of(run)) if one.request.name in failed]
        for submitted in submit(run, site, again):
            print(f"Submitted {submitted.name} again, as job {submitted.job}.")
    return DONE


def show_logs(path: Path, failed: bool) -> int:
    """Print the last lines of what the jobs' tasks wrote."""
    run = RunDir.open(path)
    files = [file for file in log_files(run, failed) if file.stat().st_size]
    for file in files:
        print(f"==> {file} <==")
        print("\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]))
    if not files:
        print("No job has failed." if failed else "No job has written anything yet.")
    return FAILED if failed and files else DONE


def known_jobs(run: RunDir) -> list[JobView]:
    """The jobs of a run; none where none was submitted."""
    return jobs_of(run) if is_on_cluster(run) else []


def describe_jobs(run: RunDir, jobs: Sequence[JobView]) -> Sequence[str]:
    """A line a job, and what to do where one is missing; empty where none was submitted."""
    lines = [job.describe() for job in jobs]
    lines += describe_goodput(goodput(read_events(run)) if jobs else {})
    missing = [] if not jobs or is_done(run) else missing_jobs(run, jobs)
    if missing:
        roles = " and ".join(one.what for one in missing)
        failed = f"; `promof logs {run.path} --failed` says why" if any(job.failed for job in jobs) else ""
        lines.append(f"No {roles} job is left: `promof resume {run.path}` submits what is missing{failed}.")
    return lines


def patience_s(run: RunDir) -> float:
    """How long the jobs of a run may be unknown to the scheduler before nobody waits for them any more."""
    return SILENT_POLLS * load_config(Site, run.site).poll_s


def missing_jobs(run: RunDir, jobs: Sequence[JobView]) -> list[Wanted]:
    """What a run that is not done needs beside the jobs that wait or work.

    Args:
        jobs: all that were submitted for it (`hpc.cluster.overview.jobs_of`).
    """
    wanted = wanted_jobs(run, config_of(run), load_config(Site, run.site), kind_of(run))
    return outstanding(wanted, [job for job in jobs if not job.over])
