"""What a submission will ask of a site, before anything is submitted: jobs, hours, budget, disk, and their scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpc.cluster.batch_script import Request, Role, allocation
from hpc.cluster.site import Site
from hpc.cluster.snapshot import ROOT, snapshot_files, snapshot_place
from hpc.cluster.submission import with_code
from hpc.cluster.wanted import Wanted
from promof_hpc.config import DesignConfig, RunConfig
from promof_hpc.design.inputs import POLICIES, weights_folder
from promof_hpc.store.budget import fold
from promof_hpc.store.checkpoint import KEPT
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir

TYPICAL_GPU_S = 60.0
TYPICAL_BASIS = (
    "60 s a relaxation: five MOFs of 90 to 148 atoms took 5 min on an L4 with UMA-S (kUPS, issue 15); the run has "
    "measured nothing yet"
)
BYTES_A_CANDIDATE, BYTES_A_RESULT = 6_000, 25_000  # measured on cells of 100 atoms, compressed
COPIES_OF_WEIGHTS = 3  # Adam keeps two moments of each
SHORT_MIN = 15


@dataclass(frozen=True)
class Cost:
    """What the evaluations that are left take.

    Attributes:
        left: evaluations; None where the library has not been read.
        seconds: of one rank for one.
        basis: where that figure comes from.
    """

    left: int | None
    seconds: float
    basis: str

    @property
    def hours(self) -> float | None:
        """Of one rank, for all."""
        return None if self.left is None else self.left * self.seconds / 3600


def cost_of(run: RunDir, config: RunConfig) -> Cost:
    """What is left, at the speed that this run has had so far or, before it has any, a published one."""
    done = [(e["end_s"] - e["start_s"], e["structures"]) for e in read_events(run) if e["event"] == "batch"]
    folded = fold(run, config.budget)
    if config.budget is not None:
        left: int | None = max(0, config.budget - folded.committed)
    else:
        left = folded.issued - folded.committed - folded.uncharged if folded.issued else None
    structures = sum(n for _, n in done)
    if not structures:
        return Cost(left, TYPICAL_GPU_S, TYPICAL_BASIS)
    seconds = sum(s for s, _ in done) / structures
    return Cost(left, seconds, f"{seconds:.3g} s an evaluation, measured on {structures} of this run")


def plan_text(
    run: RunDir, config: RunConfig, site: Site, wanted: Sequence[Wanted], texts: bool = True, chain: int = 0
) -> str:
    """The plan for people.

    Args:
        run: may not exist yet.
        texts: whether the batch scripts follow.
        chain: further jobs of each that trains or evaluates.
    """
    cost = cost_of(run, config)
    lines = [*_jobs(wanted, site, chain), "", *_costs(cost, config, wanted, site, chain), *_disk(cost, config)]
    if not texts:
        return "\n".join(lines)
    there = with_code(site, snapshot_place(run))
    scripts = [f"\n--- {one.request.name} ---\n{one.script(there)}" for one in wanted]
    return "\n".join([*lines, *scripts])


def _jobs(wanted: Sequence[Wanted], site: Site, chain: int) -> list[str]:
    lines = []
    for one in wanted:
        beside = f"; beside it {_tasks(one.beside, site)}" if one.beside else ""
        after = f", after {', '.join(one.after)}" if one.after else ""
        time_min, links = one.allocation(site).time_min, one.links(chain)
        followed = f", and {links} more that go on where it ended" if links else ""
        lines.append(f"{one.request.name}: {_tasks(one.request, site)}{beside}, {time_min} min{after}{followed}")
        if time_min < SHORT_MIN:
            lines.append(f"  its limit is below {SHORT_MIN} min: most of it goes into starting and saving")
    return lines


def _tasks(request: Request, site: Site) -> str:
    asked = allocation(request, site)
    gpus = f", {asked.gpu_count} GPU{'s' * (asked.gpu_count > 1)} a node" if asked.gpus else ""
    return f"{asked.nodes} x {asked.tasks_per_node} tasks, {asked.cpus_per_task} CPUs each{gpus}"


def _costs(cost: Cost, config: RunConfig, wanted: Sequence[Wanted], site: Site, chain: int) -> list[str]:
    budget = "the whole library" if config.budget is None else f"{config.budget} evaluations"
    left = "not known before it is read" if cost.left is None else f"{cost.left} left"
    lines = [f"Budget: {budget}, {left}.", f"Basis: {cost.basis}."]
    evaluating = [step for one in wanted for step in one.steps if step.role is Role.EVALUATE]
    ranks = sum(request.nodes * request.tasks_per_node for request in evaluating)
    if cost.hours is not None and ranks:
        hours = cost.hours / ranks
        gpus = sum(request.nodes * allocation(request, site).gpu_count for request in evaluating)
        asked = f"{hours * gpus:.1f} GPU-hours" if gpus else f"{cost.hours:.1f} rank-hours"
        lines.append(f"Evaluation: {asked}, {hours:.1f} h on {ranks} ranks.")
        if gpus > ranks:
            lines.append(f"  {gpus - ranks} of {gpus} GPUs have no rank: farm.ranks={gpus} would use all")
        links = math.ceil(60 * hours / min(request.time_min for request in evaluating))
        if links > chain + 1:
            lines.append(f"  more than one job's limit: --chain {links - 1} submits {links} that follow one another")
    most = rest = 0.0
    for one in wanted:
        job = one.allocation(site)
        hours = (1 + one.links(chain)) * job.nodes * job.time_min / 60
        most += hours * job.gpu_count
        rest += 0 if job.gpu_count else hours
    allowed = [f"{most:.0f} GPU-hours"] * bool(most) + [f"{rest:.0f} node-hours without GPUs"] * bool(rest)
    return [*lines, f"The jobs' limits allow {' and '.join(allowed)} at most; jobs that have nothing to do end."]


def _disk(cost: Cost, config: RunConfig) -> list[str]:
    files = list(snapshot_files())
    code = sum((ROOT / f).stat().st_size for f in files)
    lines = [f"Code copied into the run: {len(files)} files, {code / 1e6:.0f} MB."]
    if cost.left is not None:
        size = cost.left * (BYTES_A_CANDIDATE + BYTES_A_RESULT) / 1e6
        batches = math.ceil(cost.left / config.farm.batch_structures)
        lines.append(f"Results: about {size:.0f} MB; about {batches} files, one a batch.")
    if isinstance(config, DesignConfig):
        weights = [weights_folder(config) / name for name in POLICIES]
        kept = KEPT * COPIES_OF_WEIGHTS * sum(file.stat().st_size for file in weights if file.is_file())
        lines.append(f"Checkpoints: about {kept / 1e6:.0f} MB, the newest {KEPT} (weights and Adam's moments).")
    return lines
