"""Going on with a run of any kind: exactly what is missing is done."""

from __future__ import annotations

from pathlib import Path

from hpc.kinds import kind_of
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir


def resume_run(path: Path, ranks: int, budget: int | None = None, as_json: bool = False) -> int:
    """Do what is missing of a run, then write its report; returns the exit code.

    Args:
        ranks: MPI ranks; 0: as many as its configuration says.
        budget: what a campaign may spend from now on; None leaves it as it is.

    Raises:
        UsageError: there is no run, or only campaigns can be given a larger budget.
    """
    run = RunDir.open(path)
    if kind_of(run) == "design":
        from hpc.design import resume_design

        return resume_design(run, ranks, as_json, budget=budget)
    if budget is not None:
        raise UsageError(
            f"{path} is a {kind_of(run)} run, whose budget decides what is read of its library; "
            "begin another run with the larger budget."
        )
    from hpc.screening import resume_screening

    return resume_screening(run, ranks, as_json)
