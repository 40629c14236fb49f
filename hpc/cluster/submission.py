"""Submitting: which jobs a run still needs, and handing them to Slurm by submitit. Nothing waits for them here."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hpc.cluster.batch_script import Request, Role, parameters, python_command, usual_request
from hpc.cluster.jobs import Evaluate, Ingest, Train
from hpc.cluster.site import Site
from hpc.cluster.snapshot import take_snapshot
from promof_hpc.config import DesignConfig, RunConfig, dump_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.shard import list_names, publish_text, replace_text

HOUR_S = 3600.0


Runnable = Train | Evaluate | Ingest


@dataclass(frozen=True)
class Wanted:
    """A job to be submitted.

    Attributes:
        job: what its tasks call.
        after: names of wanted jobs that must have ended before.
    """

    job: Runnable
    request: Request
    after: tuple[str, ...] = ()


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


def wanted_jobs(run: RunDir, config: RunConfig, site: Site) -> list[Wanted]:
    """The jobs that work on a run, which may not have begun, until it is done.

    Raises:
        UsageError: the site does not give what the run's configuration asks for.
    """
    place = str(run.path)
    evaluate = spread(usual_request(Role.EVALUATE, run.path, site), config.farm.ranks, "farm.ranks")
    if isinstance(config, DesignConfig):
        train = spread(usual_request(Role.TRAIN, run.path, site), config.training.tasks, "training.tasks")
        return [Wanted(Train(place), train), Wanted(Evaluate(place), evaluate)]
    if is_ingested(run):
        return [Wanted(Evaluate(place), evaluate)]
    ingest = replace(usual_request(Role.SERIAL, run.path, site), name=f"promof-ingest-{run.path.name}")
    return [Wanted(Ingest(place), ingest), Wanted(Evaluate(place), evaluate, after=(ingest.name,))]


def spread(request: Request, tasks: int, key: str) -> Request:
    """A request for so many tasks on as few nodes as the site's tasks a node allow.

    Raises:
        UsageError: they do not fill their nodes evenly.
    """
    each = min(request.tasks_per_node, tasks)
    if tasks % each:
        raise UsageError(
            f"{key} is {tasks}, which does not fill nodes of {each} tasks; choose {tasks // each * each} or "
            f"{(tasks // each + 1) * each}, or set {request.role}.tasks_per_node in the site profile."
        )
    return replace(request, nodes=tasks // each, tasks_per_node=each)


def submit(run: RunDir, site: Site, wanted: Sequence[Wanted], chain: int = 0) -> list[Submitted]:
    """Submit jobs in their order; each is on record before the next is submitted.

    Args:
        chain: further jobs of each that trains or evaluates, each of which goes on where the one before it ended.

    Raises:
        PromofError: too many submissions within an hour, or Slurm refuses a job (with its words).
    """
    _check_rate(run, site, len(wanted) * (1 + chain))
    code = take_snapshot(run)
    replace_text(run.site, dump_config(site))
    run.submissions.mkdir(exist_ok=True)
    done: list[Submitted] = []
    for one in wanted:
        before = tuple(s.job for s in done if s.name in one.after)
        done.append(_submit(run, with_code(site, code), replace(one.request, after=before), one.job, code))
        for _ in range(0 if one.request.role is Role.SERIAL else chain):
            link = replace(one.request, after=(done[-1].job,), chained=True)
            done.append(_submit(run, with_code(site, code), link, one.job, code))
    return done


def with_code(site: Site, code: Path) -> Site:
    """The site with this code first among what Python imports."""
    if ":" in str(code):
        raise UsageError(f"The path of the run has a colon, which PYTHONPATH cannot hold: {code}; choose another.")
    line = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return site.model_copy(update={"setup": (*site.setup, line)})


def submissions(run: RunDir) -> list[Submitted]:
    """What was submitted for a run, oldest first."""
    names = list_names(run.submissions, ".json")
    found = [Submitted(**json.loads((run.submissions / name).read_text(encoding="utf-8"))) for name in names]
    return sorted(found, key=lambda s: (s.time_s, s.job))


def _submit(run: RunDir, site: Site, request: Request, job_class: Runnable, code: Path) -> Submitted:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder=run.logs, python=python_command(request, site))
    executor.update_parameters(**parameters(request, site))
    try:
        with _without_slurm():
            job = executor.submit(job_class)
    except (FailedSubmissionError, FailedJobError, OSError, RuntimeError) as error:
        raise PromofError(
            f"Slurm did not take the job {request.name}: {_last_words(error)}; `promof site check` says what does not "
            "fit the site, and `promof resume` submits what is missing."
        ) from error
    submitted = Submitted(job.job_id, request.name, str(request.role), time.time(), request.nodes,
                          request.tasks_per_node, request.time_min, code.name)  # fmt: skip
    publish_text(run.submissions / f"{job.job_id}.json", json.dumps(submitted.__dict__))
    return submitted


@contextmanager
def _without_slurm() -> Iterator[None]:
    """Submit as if from a shell of one's own: what an allocation or a user's defaults set would win over the script."""
    hidden = {k: v for k, v in os.environ.items() if k.startswith(("SBATCH_", "SLURM_")) and k != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _check_rate(run: RunDir, site: Site, count: int) -> None:
    recent = [s for s in submissions(run) if time.time() - s.time_s < HOUR_S]
    if len(recent) + count > site.max_submissions_per_hour:
        raise PromofError(
            f"{len(recent)} jobs of {run.path} were submitted within the last hour, and the site profile allows "
            f"{site.max_submissions_per_hour} (max_submissions_per_hour); `promof logs {run.path} --failed` says why "
            "they end."
        )


def _last_words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
