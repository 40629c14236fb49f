"""The command line: `promof VERB`. Parses, calls, prints; what a verb does lives elsewhere.

Imports stay light here so that `promof --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from hpc.cluster import commands as on_clusters
from hpc.options import (
    ConfigOption,
    JsonOption,
    LimitOption,
    NamesOption,
    PotentialOption,
    RunArgument,
    SetOption,
    StagesOption,
    WeightsOption,
    WhereOption,
    one_thread,
    overrides_of,
)
from promof_hpc.errors import PromofError, UsageError

app = typer.Typer(
    help="Screen and design metal-organic frameworks.", no_args_is_help=True, add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
)  # fmt: skip
reference_app = typer.Typer(
    help="The reference set: real MOFs relaxed with the campaign's potential.", no_args_is_help=True
)
app.add_typer(reference_app, name="reference")
on_clusters.add_to(app)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("promof.yaml"),
    design: Annotated[bool, typer.Option("--design", help="Of a design campaign, not of a screening.")] = False,
) -> None:
    """Write a commented configuration with every key and its default."""
    from promof_hpc.config import DesignConfig, ScreenConfig, commented
    from promof_hpc.store.shard import publish_text

    command = "promof design" if design else "promof screen --config"
    text = commented(DesignConfig if design else ScreenConfig)
    if not publish_text(path.absolute(), f"# {command} {path.name}\n{text}\n"):
        raise PromofError(f"{path} exists already; choose another name.")
    typer.echo(f"Wrote {path}; use it with: {command} {path}")


@app.command()
def screen(
    library: Annotated[
        str,
        typer.Argument(help="Folder or archive of CIFs, extxyz, ASE database, our shards, coremof:2019-ASR, or demo."),
    ] = "",
    run: Annotated[Optional[Path], typer.Option("--run", help="Run directory [default: runs/LIBRARY].")] = None,  # noqa: UP045
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    ranks: Annotated[int, typer.Option(help="MPI ranks on this machine.")] = 0,
    stages: StagesOption = "",
    where: WhereOption = [],  # noqa: B006
    potential: PotentialOption = "",
    weights: WeightsOption = None,
    limit: LimitOption = 0,
    names: NamesOption = None,
    json_: JsonOption = False,
) -> None:
    """Check, measure, relax and rank every structure of a library. Run it again and it does only what is missing."""
    from hpc.screening import screen_library, screening_config

    flags = overrides_of(library, ranks, stages, potential, weights, limit, names)
    settings = screening_config(config, [*flags, *set_], where)
    raise typer.Exit(screen_library(settings, run, json_))


@app.command()
def design(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="CONFIG", help="YAML file; `promof init --design` writes one.", show_default=False),
    ] = None,
    run: Annotated[Optional[Path], typer.Option("--run", help="Run directory [default: runs/design].")] = None,  # noqa: UP045
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    ranks: Annotated[int, typer.Option(help="MPI ranks on this machine.")] = 0,
    potential: PotentialOption = "",
    weights: WeightsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check configuration and inputs, make nothing.")] = False,
    json_: JsonOption = False,
) -> None:
    """Design MOFs for a target under a fixed number of evaluations. Run it again and it goes on where it stopped."""
    one_thread()
    from hpc.design import check_design, design_campaign, design_config

    if file and config:
        raise UsageError("Two configurations were given, as argument and with --config; give one.")
    flags = overrides_of(ranks=ranks, potential=potential, weights=weights)
    settings = design_config(file or config, [*flags, *set_])
    raise typer.Exit(check_design(settings) if dry_run else design_campaign(settings, run, json_))


@app.command()
def evaluate(
    files: Annotated[list[str], typer.Argument(help="Structure files.", show_default=False)],
    stages: StagesOption = "",
    potential: PotentialOption = "",
    weights: WeightsOption = None,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Score a few files here and now, without a run directory."""
    from hpc.screening import evaluate_files, screening_config

    flags = overrides_of(stages=stages, potential=potential, weights=weights)
    raise typer.Exit(evaluate_files(files, screening_config(config, [*flags, *set_], []), json_))


@app.command()
def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until the run ends.")] = False,
    json_: JsonOption = False,
) -> None:
    """Say where a run stands."""
    from hpc.inspection import show_status

    show_status(run, watch, json_)


@app.command()
def resume(
    run: RunArgument,
    ranks: Annotated[int, typer.Option(help="MPI ranks on this machine.")] = 0,
    raise_budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--raise-budget", help="Evaluations that a campaign may spend from now on; recorded."),
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="On this machine, although it was submitted to Slurm.")] = False,
) -> None:
    """Go on with a run: do exactly what is missing, by jobs where it was submitted to Slurm."""
    one_thread()
    from hpc.resume import resume_run

    raise typer.Exit(resume_run(run, ranks, raise_budget, here=here))


@app.command()
def budget(run: RunArgument, json_: JsonOption = False) -> None:
    """Fold the ledger: budget, issued, committed, in flight, wasted."""
    from hpc.inspection import show_budget

    show_budget(run, json_)


@app.command()
def verify(run: RunArgument, json_: JsonOption = False) -> None:
    """Check every shard (checksum, completeness) and name what must be redone."""
    from hpc.inspection import show_verification

    raise typer.Exit(show_verification(run, json_))


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("export"),
    format_: Annotated[str, typer.Option("--format", help="cif, extxyz, csv or parquet.")] = "cif",
    top: Annotated[int, typer.Option(help="Only the best so many; 0: all.")] = 0,
) -> None:
    """Write relaxed structures or the table."""
    from hpc.inspection import export_run

    export_run(run, out, format_, top)


@app.command()
def report(run: RunArgument) -> None:
    """Write the table and the HTML page anew."""
    from hpc.inspection import write_report

    typer.echo(f"Report: {write_report(run)}")


@app.command()
def prune(
    run: RunArgument, yes: Annotated[bool, typer.Option("--yes", help="Remove, don't only say.")] = False
) -> None:
    """Remove what a run no longer needs: temporary files, void claims, logs. Never a shard."""
    from hpc.inspection import prune_run

    prune_run(run, yes)


@app.command()
def prep(
    source: Annotated[
        str, typer.Argument(help="coremof:2019-ASR, coremof:2019-FSR, a folder of CIFs; or synthetic (see --data).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("prepared"),
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the conformers, or of synthetic pairs.")] = 0,
    conformers: Annotated[bool, typer.Option(help="Match generated conformers to every linker.")] = True,
    max_atoms: Annotated[int, typer.Option(help="Atoms in the primitive cell at most.")] = 300,
    max_blocks: Annotated[int, typer.Option(help="Blocks in the primitive cell at most.")] = 20,
    data: Annotated[Optional[Path], typer.Option(help="synthetic: training set that lends the parts.")] = None,  # noqa: UP045
    count: Annotated[int, typer.Option(help="synthetic: MOFs to make.")] = 1000,
) -> None:
    """Decompose MOFs into building blocks (training shards, libraries, splits), or make synthetic ones of them."""
    from hpc.preparation import prepare_library, prepare_synthetic

    if source == "synthetic":
        raise typer.Exit(prepare_synthetic(data, out, count, seed, workers))
    raise typer.Exit(prepare_library(source, out, workers, seed, conformers, max_atoms, max_blocks))


@app.command()
def pretrain(
    policy: Annotated[str, typer.Argument(help="chemist or engineer.", show_default=False)],
    data: Annotated[list[Path], typer.Option(help="Folder made by promof prep; repeatable.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the weights; both policies may share one.")] = Path("weights"),
    minutes: Annotated[Optional[float], typer.Option(help="Training time [default: 30].")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(help="Optimiser steps, instead of minutes.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Train a policy on prepared MOFs. Run it again after a stop and it goes on."""
    from hpc.pretraining import pretrain_policy

    flags = {"minutes": minutes, "steps": steps, "seed": seed}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    raise typer.Exit(pretrain_policy(policy, data, out, [*overrides, *set_]))


@app.command()
def compare(
    study: Annotated[
        Path, typer.Argument(help="YAML file: a base design, strategies, tasks, seeds.", show_default=False)
    ],
    out: Annotated[Optional[Path], typer.Option(help="Folder of the study [default: runs/NAME].")] = None,  # noqa: UP045
    jobs: Annotated[int, typer.Option(help="Runs at a time on this machine.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Run strategies, tasks and seeds as one study under equal budgets and print its table. Run again to go on."""
    one_thread()
    from hpc.comparison import compare as compare_strategies

    raise typer.Exit(compare_strategies(study, out, jobs, json_))


@app.command()
def assess(
    data: Annotated[str, typer.Option(help="Folder made by `promof prep`, or shipped.")] = "shipped",
    weights: Annotated[str, typer.Option(help="Folder made by `promof pretrain`, shipped, or none.")] = "shipped",
    out: Annotated[Path, typer.Option(help="Folder for records and table.")] = Path("assessment"),
    methods: Annotated[str, typer.Option(help="Of random,raw_flow,flow,net,net_flow; all by default.")] = "",
    geometry: Annotated[str, typer.Option(help="crystal, matched or realised.")] = "crystal",
    tries: Annotated[int, typer.Option(help="Assemblies of each set and method.")] = 64,
    snap_tries: Annotated[int, typer.Option(help="Starts that snap may use for one assembly.")] = 1,
    contact_weight: Annotated[
        float, typer.Option(help="Weight of the contact head in snap's pairs, in Å² (flow).")
    ] = 5.0,
    start_time: Annotated[float, typer.Option(help="Flow time to which net starts are noised (net_flow).")] = 0.6,
    limit: Annotated[int, typer.Option(help="Only the first so many sets; 0: all.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Assemble held-out component sets and say how many pass the gate or match their crystal. Resumable."""
    from hpc.assessment import assess as assess_held_out
    from promof_hpc.design.comparing.assessment import AssessSettings, Geometry

    settings = AssessSettings(
        geometry=Geometry(geometry),
        tries=tries,
        seed=seed,
        snap_tries=snap_tries,
        contact_weight=contact_weight,
        start_time=start_time,
    )
    raise typer.Exit(assess_held_out(data, weights, out, methods, limit, workers, settings))


@reference_app.command("build")
def reference_build(
    library: Annotated[str, typer.Argument(help="Real MOFs.")] = "coremof:2019-ASR",
    run: Annotated[Path, typer.Option("--run", help="Run directory.")] = Path("runs/reference"),
    count: Annotated[int, typer.Option(help="MOFs to relax.")] = 320,
    max_atoms: Annotated[int, typer.Option(help="Largest cell.")] = 100,
    ranks: Annotated[int, typer.Option(help="MPI ranks on this machine.")] = 1,
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Relax a seeded, stratified sample of real MOFs and the elements, and fit the energy baseline."""
    from hpc.reference import begin_reference
    from hpc.resume import resume_run

    begin_reference(library, run, count, max_atoms, ranks, config, set_)
    raise typer.Exit(resume_run(run, ranks))


def main() -> None:
    """Entry point of the command `promof`."""
    try:
        app()
    except PromofError as error:
        typer.echo(f"promof: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("promof: stopped; `promof resume RUN` goes on.", err=True)
        sys.exit(75)


if __name__ == "__main__":
    main()
