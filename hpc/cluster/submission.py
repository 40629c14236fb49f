"""Submitting: handing jobs to Slurm by submitit, and remembering them. Nothing waits for them here."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.cluster.batch_script import Request, parameters, python_command
from hpc.cluster.scheduler import Scheduler, alone
from hpc.cluster.site import Site
from hpc.cluster.snapshot import take_snapshot
from hpc.cluster.wanted import Wanted
from promof_hpc.config import dump_config
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, publish_text, replace_text

if TYPE_CHECKING:
    from submitit import SlurmExecutor

OF_TASKS = ("PMI", "HYDRA", "OMPI_COMM_WORLD_", "MPI_LOCAL", "PALS_", "SUBMITIT_", "RANK", "LOCAL_RANK", "WORLD_SIZE",
            "LOCAL_WORLD_SIZE", "MASTER_")  # fmt: skip
HOUR_S = 3600.0
SBATCH_S = 300.0  # a busy controller takes a job minutes after it was asked to, and nobody would know of it


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted; the record is `RUN/submissions/JOB.json`."""

    job: str
    name: str
    role: str
    time_s: float
    nodes: int
    tasks_per_node: int
    time_min: int
    code: str
    cluster: str = ""  # where it is not on record, Slurm's word that there is no such job is not believed


def submit(run: RunDir, site: Site, wanted: Sequence[Wanted], chain: int = 0) -> list[Submitted]:
    """Submit jobs in their order; each is on record before the next is submitted.

    Args:
        chain: further jobs of each that trains or evaluates, each of which goes on where the one before it ended.

    Raises:
        PromofError: too many submissions within an hour, or Slurm refuses a job (with its words).
    """
    check_rate(run, site, sum(1 + one.links(chain) for one in wanted))
    code = take_snapshot(run)
    make_place(run, site)
    cluster = Scheduler().limits().cluster
    done: list[Submitted] = []
    for one in wanted:
        before = tuple(s.job for s in done if s.name in one.after)
        first = replace(one, request=replace(one.request, after=(*one.request.after, *before)))
        done.append(_submit(run, with_code(site, code), first, code.name, cluster))
        for _ in range(one.links(chain)):
            link = replace(one, request=replace(one.request, after=(done[-1].job,), chained=True))
            done.append(_submit(run, with_code(site, code), link, code.name, cluster))
    return done


def make_place(run: RunDir, site: Site) -> None:
    """Make what jobs write into; the profile must be there before the first of them starts."""
    for folder in (run.events, run.logs, run.submissions):
        folder.mkdir(parents=True, exist_ok=True)
    replace_text(run.site, dump_config(site))


def with_code(site: Site, code: Path) -> Site:
    """The site with this code first among what Python imports."""
    line = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return site.model_copy(update={"setup": (*site.setup, line)})


def submissions(run: RunDir) -> list[Submitted]:
    """What was submitted for a run, oldest first."""
    names = list_names(run.submissions, ".json")
    found = [Submitted(**json.loads((run.submissions / name).read_text(encoding="utf-8"))) for name in names]
    return sorted(found, key=lambda s: (s.time_s, s.job))


def _submit(run: RunDir, site: Site, wanted: Wanted, code: str, cluster: str) -> Submitted:
    request = wanted.request
    with without_slurm():
        job = _by_submitit(run, site, wanted) if wanted.beside is None else _by_sbatch(run, site, wanted)
    return put_on_record(run, job, request, wanted.what, code, cluster)


def put_on_record(run: RunDir, job: str, request: Request, what: str, code: str, cluster: str = "") -> Submitted:
    """Remember a job that was submitted."""
    submitted = Submitted(job, request.name, what, time.time(), request.nodes, request.tasks_per_node,
                          request.time_min, code, cluster)  # fmt: skip
    publish_text(record_of(run, job), json.dumps(asdict(submitted)))
    return submitted


def record_of(run: RunDir, job: str) -> Path:
    """Where a job that was submitted is remembered."""
    return run.submissions / f"{job}.json"


@contextmanager
def no_other_submits(run: RunDir) -> Iterator[None]:
    """Look which jobs a run has, and submit what is missing, while no other command does.

    Raises:
        PromofError: another one does just now.
    """
    with alone(run.submissions / "submitting") as ours:
        if not ours:
            raise PromofError(
                f"Another command is submitting jobs of {run.path}; nothing was submitted by this one. "
                f"`promof status {run.path}` shows them."
            )
        yield


def _by_submitit(run: RunDir, site: Site, wanted: Wanted) -> str:
    with submitting(run, site, wanted.request) as executor:
        return str(executor.submit(wanted.job).job_id)


@contextmanager
def submitting(run: RunDir, site: Site, request: Request) -> Iterator[SlurmExecutor]:
    """submitit's executor for a request.

    Raises:
        PromofError: Slurm refuses what is submitted with it (with its words).
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    class Executor(SlurmExecutor):
        """submitit waits for sbatch for ever: ours is asked, and what it said is what submitit's command says."""

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["/bin/echo", f"Submitted batch job {_sbatch(run, request, submission_file_path)}"]

    executor = Executor(folder=run.logs, python=python_command(request, site))
    executor.update_parameters(**parameters(request, site))
    try:
        yield executor
    except (FailedSubmissionError, FailedJobError, OSError, RuntimeError) as error:
        raise _refused(request, (str(error).strip().splitlines() or [type(error).__name__])[-1]) from error


def _by_sbatch(run: RunDir, site: Site, wanted: Wanted) -> str:
    """submitit knows one step a job only."""
    script = run.submissions / f"{wanted.request.name}-{time.time_ns()}.sh"
    publish_text(script, wanted.script(site))
    return _sbatch(run, wanted.request, script)


def _sbatch(run: RunDir, request: Request, script: Path) -> str:
    """Submit a script; the job's id, also where sbatch did not live to say it.

    Raises:
        PromofError: Slurm refuses it (with its words), or nobody says what became of it.
    """
    answer = Scheduler(SBATCH_S).ask("sbatch", str(script))
    said = re.search(r"job (\d+)", answer.text)
    if said and not answer.why:
        return said[1]
    if answer.answered and "timed out" not in answer.why:  # which the controller's answer may have been, job or no job
        raise _refused(request, answer.why or f"sbatch said {answer.text.strip()!r}")
    listed = Scheduler().ask("squeue", "--noheader", "--states=all", f"--name={request.name}", "--format=%i|%o")
    if listed.why:
        raise PromofError(
            f"{answer.why}, and whether it took {request.name} is not known ({listed.why}); look with "
            f"`squeue --name={request.name}`, and cancel what is there, before you submit again."
        )
    known = {submitted.job for submitted in submissions(run)}
    for line in listed.text.splitlines():
        job, _, command = line.strip().partition("|")
        job = job.partition("_")[0]  # of a task of an array
        if script.name in command and job not in known:  # jobs of other runs may have the same name
            return job
    raise _refused(request, f"{answer.why}, and squeue lists no such job")


def _refused(request: Request, said: str) -> PromofError:
    return PromofError(
        f"Slurm did not take {request.name}: {said}; `promof site check` says what does not fit the "
        "site, and the same command submits what is missing."
    )


@contextmanager
def without_slurm() -> Iterator[None]:
    """Submit as if from a shell of one's own: what an allocation or a user's defaults set would win over the script.

    What is a task's own (its rank, what it is chained to) the new job's tasks would take for theirs.
    """
    of_tasks = OF_TASKS if "SLURM_JOB_ID" in os.environ else ()
    names = [n for n in os.environ if n.startswith(("SBATCH_", "SLURM_", "PROMOF_", *of_tasks)) and n != "SLURM_CONF"]
    hidden = {name: os.environ[name] for name in names}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_rate(run: RunDir, site: Site, count: int) -> None:
    """Let so many more jobs be submitted.

    Raises:
        PromofError: there would be more within an hour than the site's profile allows.
    """
    recent = [s for s in submissions(run) if time.time() - s.time_s < HOUR_S]
    allowed = site.max_submissions_per_hour
    if count > allowed:
        raise PromofError(
            f"{count} jobs are asked for at once, and the site profile allows {allowed} within an hour "
            "(max_submissions_per_hour); ask for fewer (--chain, --parts), or let the profile allow more."
        )
    if len(recent) + count > allowed:
        raise PromofError(
            f"{len(recent)} jobs of {run.path} were submitted within the last hour and {count} more are asked for; the "
            f"site profile allows {allowed} (max_submissions_per_hour). `promof logs {run.path} --failed` says why "
            "jobs ended."
        )
