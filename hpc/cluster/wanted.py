"""Which jobs a run needs until it is done, and which of them nobody has in hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpc.cluster.batch_script import (
    Allocation,
    Request,
    Role,
    Template,
    allocation,
    enough_for_all,
    render,
    sbatch_text,
    usual_request,
)
from hpc.cluster.jobs import Evaluate, Fit, Ingest, IngestReference, Train
from hpc.cluster.site import Site
from hpc.kinds import is_evaluated
from promof_hpc.config import DesignConfig, RunConfig
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir, has_ended, is_ingested

if TYPE_CHECKING:
    from hpc.cluster.overview import JobView

Runnable = Callable[[], None]  # pickled with paths alone


@dataclass(frozen=True)
class Wanted:
    """A job to be submitted.

    Attributes:
        job: what its tasks call; of a job with two steps the first one's.
        after: names of wanted jobs that must have ended before.
        beside: second step of the same job.
    """

    job: Runnable
    request: Request
    after: tuple[str, ...] = ()
    beside: Request | None = None

    @property
    def steps(self) -> tuple[Request, ...]:
        """The one or two of which it consists."""
        return (self.request,) if self.beside is None else (self.request, self.beside)

    @property
    def what(self) -> str:
        """In words."""
        return " and ".join(step.role for step in self.steps)

    def links(self, chain: int) -> int:
        """How many jobs follow it where each that trains or evaluates is to be followed by `chain` further ones."""
        return 0 if self.request.role is Role.SERIAL else chain

    def allocation(self, site: Site) -> Allocation:
        """What it asks of a site for all of its steps."""
        return enough_for_all([allocation(step, site) for step in self.steps])

    def script(self, site: Site) -> str:
        """What is submitted."""
        if self.beside is None:
            return sbatch_text(self.request, site)
        return render(Template.ONE_JOB, self.steps, site)


def wanted_jobs(run: RunDir, config: RunConfig, site: Site, kind: str) -> list[Wanted]:
    """The jobs that work on a run, which may not have begun, until it is done.

    Args:
        kind: of the run, as of `hpc.kinds.kind_of`.

    Raises:
        UsageError: the site does not give what the run's configuration asks for.
    """
    devices = {"evaluation.potential.device": config.evaluation.potential.device}
    if isinstance(config, DesignConfig):
        devices["training.device"] = config.training.device
    require_gpus(devices, site)
    ranks = spread(usual_request(Role.EVALUATE, run.path, site), config.farm.ranks, "farm.ranks")
    evaluate = Wanted(Evaluate(str(run.path)), ranks)
    if isinstance(config, DesignConfig):
        return _for_design(run, config, site, evaluate)
    if kind == "reference":
        return _for_reference(run, site, evaluate)
    if is_ingested(run):
        return [evaluate]
    ingest = Wanted(Ingest(str(run.path)), _serial(run, site, "ingest"))
    return [ingest, replace(evaluate, after=(ingest.request.name,))]


def outstanding(wanted: Sequence[Wanted], alive: Sequence[JobView]) -> list[Wanted]:
    """Those of which no job is alive; where they come after one that is, they wait for it by its id."""
    ids = {job.submitted.name: job.submitted.job for job in alive}

    def waiting(one: Wanted) -> Wanted:
        known = tuple(ids[name] for name in one.after if name in ids)
        request = replace(one.request, after=(*one.request.after, *known))
        return replace(one, request=request, after=tuple(name for name in one.after if name not in ids))

    return [waiting(one) for one in wanted if one.request.name not in ids]


def _for_design(run: RunDir, config: DesignConfig, site: Site, evaluate: Wanted) -> list[Wanted]:
    if has_ended(run) and is_evaluated(run):
        return [evaluate]  # to ask the second potential, once the ranks have found nothing to do
    request = spread(usual_request(Role.TRAIN, run.path, site), config.training.tasks, "training.tasks")
    train = Wanted(Train(str(run.path)), request)
    if site.layout == "one_job":
        return [replace(train, request=replace(request, name=f"promof-{run.path.name}"), beside=evaluate.request)]
    return [train, evaluate]


def _for_reference(run: RunDir, site: Site, evaluate: Wanted) -> list[Wanted]:
    from hpc.reference import has_elements, missing_of

    fit = Wanted(Fit(str(run.path)), _serial(run, site, "fit"))
    if not missing_of(run):
        return [fit]
    fit = replace(fit, after=(evaluate.request.name,))
    if is_ingested(run) and has_elements(run):
        return [evaluate, fit]
    ingest = Wanted(IngestReference(str(run.path)), _serial(run, site, "ingest"))
    return [ingest, replace(evaluate, after=(ingest.request.name,)), fit]


def _serial(run: RunDir, site: Site, what: str) -> Request:
    return replace(usual_request(Role.SERIAL, run.path, site), name=f"promof-{what}-{run.path.name}")


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


def require_gpus(devices: Mapping[str, str], site: Site) -> None:
    """Look whether the jobs of a site have the devices that a configuration names, by key.

    Raises:
        UsageError: a GPU is asked for and the profile asks for none.
    """
    for key, device in devices.items():
        if device.startswith("cuda") and site.scheduler == "slurm" and not site.gpus_per_node:
            raise UsageError(
                f"{key} is {device}, but the site profile asks for no GPUs; set its gpus_per_node, or --set {key}=cpu."
            )
