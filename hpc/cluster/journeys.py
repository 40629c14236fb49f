"""`promof submit`: begin a run as its local command does, print the plan, and hand the jobs to Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hpc.cluster.batch_script import check_run_path
from hpc.cluster.plan import plan_text
from hpc.cluster.site import Site, load_site
from hpc.cluster.steering import resume_jobs
from hpc.cluster.submission import no_other_submits, submissions, submit
from hpc.cluster.wanted import wanted_jobs
from hpc.exit_codes import DONE, FAILED, USAGE
from hpc.kinds import config_of, is_done, kind_of
from promof_hpc.config import DesignConfig, RunConfig, ScreenConfig, dump_config
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import replace_text


def submit_design(config: DesignConfig, path: Path, site_name: str, dry_run: bool, chain: int = 0) -> int:
    """Begin a campaign and submit its jobs, or only show what would be submitted; returns the exit code.

    Args:
        chain: further jobs of each that go on where the one before them ended.

    Raises:
        UsageError, PromofError: see `hpc.design.begin_design` and `hpc.cluster.submission`.
    """
    from hpc.design import begin_design, check_design

    site = _site_for(path, site_name)
    if dry_run:
        return _show(config, path, site, "design", lambda: check_design(config), chain)
    run, _ = begin_design(path, config)
    return _hand_over(run, site, chain)


def submit_screen(config: ScreenConfig, path: Path, site_name: str, dry_run: bool, chain: int = 0) -> int:
    """Begin a screening and submit its jobs, or only show what would be submitted; see `submit_design`."""
    from hpc.runs import begin_run
    from promof_hpc.screen.library import scan as check_library

    site = _site_for(path, site_name)
    if dry_run:
        return _show(config, path, site, "screen", lambda: check_library(config.library), chain)
    return _hand_over(begin_run(path, config), site, chain)


def submit_reference(
    library: str, path: Path, choice: tuple[int, int], ranks: int, config: Path | None, overrides: Sequence[str],
    site_name: str, dry_run: bool = False,
) -> int:  # fmt: skip
    """Submit the making of a reference set: read and propose, evaluate, fit; returns the exit code.

    The MOFs are chosen before, in this process.

    Args:
        path: run directory.
        choice: how many MOFs, and how many atoms in a cell at most.
        ranks: MPI ranks that evaluate.
        config, overrides: as of `hpc.reference.begin_reference`.

    Raises:
        UsageError: see there.
        PromofError: Slurm does not take a job.
    """
    from hpc.reference import begin_reference, reference_config

    site = _site_for(path, site_name)
    if dry_run:
        settings = reference_config(RunDir(path.absolute()), library, ranks, config, overrides)
        return _show(settings, path, site, "reference", lambda: None)
    return _hand_over(begin_reference(library, path, *choice, ranks, config, overrides, readers=1), site)


def plan_run(path: Path, site_name: str) -> None:
    """Print what submitting the rest of a run would ask of a site."""
    run, site = RunDir.open(path), load_site(site_name)
    config = config_of(run)
    print(plan_text(run, config, site, wanted_jobs(run, config, site, kind_of(run))))


def check_site(name: str) -> int:
    """Print how a profile and the cluster here go together, a line a check; 1 where something does not."""
    from hpc.cluster.site_check import as_text, site_check

    checks = site_check(load_site(name))
    print(as_text(checks))
    return FAILED if any(check.passed is False for check in checks) else DONE


def examine(site_name: str, run_path: Path | None) -> int:
    """Print what the doctor finds, a line a check; 1 where something fails."""
    from hpc.cluster.doctor.examination import doctor, doctor_in_allocation
    from hpc.cluster.site_check import as_text

    site = load_site(site_name) if site_name else None
    checks = doctor(site, run_path)
    if site is not None and "SLURM_JOB_ID" in os.environ:
        checks += doctor_in_allocation(site, run_path or Path.cwd())
    print(as_text(checks))
    return FAILED if any(check.passed is False for check in checks) else DONE


def _site_for(path: Path, name: str) -> Site:
    """The profile of a site, once the run's path is known to be one that jobs can work in: before anything is made."""
    check_run_path(path.absolute())
    return load_site(name)


def _show(config: RunConfig, path: Path, site: Site, kind: str, check: Callable[[], object], chain: int = 0) -> int:
    """Print the plan, then whether everything is there that the run needs."""
    run = RunDir(path.absolute())
    print(plan_text(run, config, site, wanted_jobs(run, config, site, kind), chain=chain))
    try:
        check()
    except PromofError as error:
        print(f"\nNot ready: {error}\nThis was a dry run: nothing was submitted.")
        return USAGE
    print("\nThis was a dry run: nothing was submitted.")
    return DONE


def _hand_over(run: RunDir, site: Site, chain: int = 0) -> int:
    if is_done(run):
        print(f"{run.path} is done; nothing was submitted.")
        return DONE
    with no_other_submits(run):
        known = submissions(run)
        if not known:
            _submit_all(run, site, chain)
    if known:  # a second submission must not double what waits or works
        replace_text(run.site, dump_config(site))
        return resume_jobs(run, chain)
    print(f"Follow it with `promof status {run.path} --watch`; nothing here needs to stay open.")
    return DONE


def _submit_all(run: RunDir, site: Site, chain: int) -> None:
    config = config_of(run)
    wanted = wanted_jobs(run, config, site, kind_of(run))
    print(plan_text(run, config, site, wanted, chain=chain), end="\n\n")
    for job in submit(run, site, wanted, chain):
        print(f"Submitted {job.name} as job {job.job}.")
