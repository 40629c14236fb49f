"""Going on with a run of any kind: exactly what is missing is done, here or by jobs."""

from __future__ import annotations

from pathlib import Path

from hpc.kinds import design_of, kind_of
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir


def resume_run(path: Path, ranks: int, budget: int | None = None, as_json: bool = False, here: bool = False) -> int:
    """Do what is missing of a run, then write its report; returns the exit code.

    Args:
        ranks: MPI ranks on this machine; 0: as many as its configuration says.
        budget: what a campaign may spend from now on; None leaves it as it is.
        here: on this machine, although jobs were submitted for it.

    Raises:
        UsageError: there is no run, or only campaigns can be given a larger budget.
    """
    from hpc.cluster.steering import is_on_cluster, resume_jobs

    run = RunDir.open(path)
    if budget is not None and kind_of(run) != "design":
        raise UsageError(
            f"{path} is a {kind_of(run)} run, whose budget decides what is read of its library; "
            "begin another run with the larger budget."
        )
    if is_on_cluster(run) and not here:
        if budget is not None:
            _raise(run, budget)
        return resume_jobs(run)
    if kind_of(run) == "design":
        from hpc.design import resume_design

        return resume_design(run, ranks, as_json, budget=budget)
    from hpc.screening import resume_screening

    return resume_screening(run, ranks, as_json)


def _raise(run: RunDir, budget: int) -> None:
    """Give a campaign a larger budget while no job leads it."""
    from hpc.design import give_budget
    from hpc.lease import holding_lease

    with holding_lease(run, design_of(run).farm.claim_expiry_s):
        give_budget(run, budget)
