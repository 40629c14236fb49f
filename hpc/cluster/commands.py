"""The commands that need a cluster: submit, stop, retry, logs, plan, site. `hpc.cli` adds them to `promof`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hpc.options import (
    ChainOption,
    ConfigOption,
    DryRunOption,
    LimitOption,
    NamesOption,
    PotentialOption,
    RunArgument,
    SetOption,
    SiteOption,
    StagesOption,
    WeightsOption,
    WhereOption,
    one_thread,
    overrides_of,
)
from promof_hpc.errors import UsageError

submit_app = typer.Typer(help="Hand a run's jobs to Slurm, after printing what they ask for.", no_args_is_help=True)
site_app = typer.Typer(help="Profiles of sites: what their Slurm wants to be told.", no_args_is_help=True)


@submit_app.command("design")
def submit_design(
    site: SiteOption,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="CONFIG", help="YAML file; `promof init --design` writes one.", show_default=False),
    ] = None,
    run: Annotated[Path, typer.Option("--run", help="Run directory, on a disk that all nodes see.")] = Path(
        "runs/design"
    ),
    set_: SetOption = [],  # noqa: B006
    ranks: Annotated[int, typer.Option(help="MPI ranks.")] = 0,
    potential: PotentialOption = "",
    weights: WeightsOption = None,
    chain: ChainOption = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Design on a cluster: a training job, and MPI ranks that evaluate what it proposes."""
    one_thread()
    from hpc.cluster.journeys import submit_design as submit
    from hpc.design import design_config

    flags = overrides_of(ranks=ranks, potential=potential, weights=weights)
    raise typer.Exit(submit(design_config(file, [*flags, *set_]), run, site, dry_run, chain))


@submit_app.command("screen")
def submit_screen(
    site: SiteOption,
    library: Annotated[str, typer.Argument(help="As of `promof screen`.")] = "",
    run: Annotated[Path, typer.Option("--run", help="Run directory, on a disk that all nodes see.")] = Path(
        "runs/screen"
    ),
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    ranks: Annotated[int, typer.Option(help="MPI ranks.")] = 0,
    stages: StagesOption = "",
    where: WhereOption = [],  # noqa: B006
    potential: PotentialOption = "",
    weights: WeightsOption = None,
    limit: LimitOption = 0,
    names: NamesOption = None,
    chain: ChainOption = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Screen on a cluster: a job that reads the library, and MPI ranks that evaluate it."""
    one_thread()
    from hpc.cluster.journeys import submit_screen as submit
    from hpc.screening import screening_config

    flags = overrides_of(library, ranks, stages, potential, weights, limit, names)
    settings = screening_config(config, [*flags, *set_], where)
    raise typer.Exit(submit(settings, run, site, dry_run, chain))


@submit_app.command("pretrain")
def submit_pretrain(
    site: SiteOption,
    policy: Annotated[str, typer.Argument(help="chemist or engineer.", show_default=False)],
    data: Annotated[list[Path], typer.Option(help="Folder made by promof prep; repeatable.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the weights, on a disk that all nodes see.")] = Path("weights"),
    set_: SetOption = [],  # noqa: B006
    dry_run: DryRunOption = False,
) -> None:
    """Train a policy in one job, which saves and requeues itself."""
    from hpc.cluster.folders import journeys

    raise typer.Exit(journeys.submit_pretrain(policy, data, out, set_, site, dry_run))


@submit_app.command("prep")
def submit_prep(
    site: SiteOption,
    source: Annotated[str, typer.Argument(help="As of `promof prep`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to, on a disk that all nodes see.")] = Path("prepared"),
    parts: Annotated[int, typer.Option(help="Tasks of the job array.")] = 8,
    seed: Annotated[int, typer.Option(help="As of `promof prep`.")] = 0,
    conformers: Annotated[bool, typer.Option(help="As of `promof prep`.")] = True,
    max_atoms: Annotated[int, typer.Option(help="As of `promof prep`.")] = 300,
    max_blocks: Annotated[int, typer.Option(help="As of `promof prep`.")] = 20,
    data: Annotated[Optional[Path], typer.Option(help="synthetic: training set that lends the parts.")] = None,  # noqa: UP045
    count: Annotated[int, typer.Option(help="synthetic: MOFs to make.")] = 1000,
    dry_run: DryRunOption = False,
) -> None:
    """Prepare a training set by a job array, and merge its parts."""
    one_thread()
    from hpc.cluster.folders import journeys
    from hpc.preparation import preparation_settings

    if source == "synthetic":
        if data is None:
            raise UsageError("`promof submit prep synthetic` needs --data, a folder made by `promof prep`.")
        raise typer.Exit(journeys.submit_synthetic(data, out, count, seed, site, parts, dry_run))
    settings = preparation_settings(seed, conformers, max_atoms, max_blocks)
    raise typer.Exit(journeys.submit_prep(source, out, settings, site, parts, dry_run))


@submit_app.command("reference")
def submit_reference(
    site: SiteOption,
    library: Annotated[str, typer.Argument(help="Real MOFs.")] = "coremof:2019-ASR",
    run: Annotated[Path, typer.Option("--run", help="Run directory, seen by all nodes.")] = Path("runs/reference"),
    count: Annotated[int, typer.Option(help="MOFs to relax.")] = 320,
    max_atoms: Annotated[int, typer.Option(help="Largest cell.")] = 100,
    ranks: Annotated[int, typer.Option(help="MPI ranks.")] = 4,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    dry_run: DryRunOption = False,
) -> None:
    """Build a reference set: relax real MOFs by MPI ranks, then fit the energy baseline."""
    one_thread()
    from hpc.cluster.journeys import submit_reference as submit

    chosen = (count, max_atoms)
    raise typer.Exit(submit(library, run, chosen, ranks, config, set_, site, dry_run))


def stop(run: RunArgument, now: Annotated[bool, typer.Option("--now", help="Cancel its jobs, too.")] = False) -> None:
    """Ask a run to stop where it loses nothing; nothing queues itself again."""
    from hpc.cluster.steering import stop_run

    raise typer.Exit(stop_run(run, now))


def retry(run: RunArgument) -> None:
    """Submit the jobs of a run that failed again."""
    from hpc.cluster.steering import retry_failed

    raise typer.Exit(retry_failed(run))


def logs(
    run: RunArgument, failed: Annotated[bool, typer.Option("--failed", help="Only of jobs that failed.")] = False
) -> None:
    """Print the last lines of what a run's jobs have written."""
    from hpc.cluster.steering import show_logs

    raise typer.Exit(show_logs(run, failed))


def plan(run: RunArgument, site: SiteOption) -> None:
    """Print what submitting the rest of a run would ask of a site."""
    from hpc.cluster.journeys import plan_run

    plan_run(run, site)


@site_app.command("check")
def site_check(
    site: Annotated[str, typer.Argument(help="Site profile: a name or a YAML file.", show_default=False)],
) -> None:
    """Compare a site profile with the cluster that this machine belongs to."""
    from hpc.cluster.journeys import check_site

    raise typer.Exit(check_site(site))


def doctor(
    site: Annotated[str, typer.Option("--site", help="Site profile: a name or a YAML file.")] = "",
    run: Annotated[Optional[Path], typer.Option("--run", help="A run, or where one is to be.")] = None,  # noqa: UP045
) -> None:
    """Say whether everything a run needs is there and works; within a job also what only its tasks can tell."""
    from hpc.cluster.journeys import examine

    raise typer.Exit(examine(site, run))


def stage(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration whose files are to be copied.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that compute nodes see.", show_default=False)],
    environment: Annotated[bool, typer.Option("--environment", help="Pack the Python environment, too.")] = False,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Copy weights, libraries and the reference set to where compute nodes find them."""
    from hpc.cluster.staging.stage import stage_config

    raise typer.Exit(stage_config(config, to, environment, set_))


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for command in (stop, retry, logs, plan, doctor, stage):
        app.command()(command)
    app.add_typer(submit_app, name="submit")
    app.add_typer(site_app, name="site")
