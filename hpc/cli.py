"""The command line: `promof VERB`. Parses, calls, prints; what a verb does lives elsewhere.

Imports stay light here so that `promof --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from promof_hpc.errors import PromofError

app = typer.Typer(
    help="Screen and design metal-organic frameworks.", no_args_is_help=True, add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]}, pretty_exceptions_enable=False,
)  # fmt: skip
reference_app = typer.Typer(
    help="The reference set: real MOFs relaxed with the campaign's potential.", no_args_is_help=True
)
app.add_typer(reference_app, name="reference")

RunArgument = Annotated[Path, typer.Argument(help="A run directory, for instance runs/demo.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[list[str], typer.Option("--set", help="key=value, for instance evaluation.relax.max_steps=100.")]
ConfigOption = Annotated[Optional[Path], typer.Option("--config", help="YAML file; `promof init` writes one.")]  # noqa: UP045


@app.command()
def init(path: Annotated[Path, typer.Argument(help="File to write.")] = Path("promof.yaml")) -> None:
    """Write a commented configuration with every key and its default."""
    from promof_hpc.config import ScreenConfig, commented
    from promof_hpc.store.shard import publish_text

    if not publish_text(
        path.absolute(), "# promof screen --config " + path.name + "\n" + commented(ScreenConfig) + "\n"
    ):
        raise PromofError(f"{path} exists already; choose another name.")
    typer.echo(f"Wrote {path}; use it with: promof screen --config {path}")


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
    stages: Annotated[str, typer.Option(help="For instance read,validity,pores.")] = "",
    where: Annotated[list[str], typer.Option(help="Gate, for instance 'pld_ang > 3.3'; repeatable.")] = [],  # noqa: B006
    potential: Annotated[str, typer.Option(help="sevennet-0, chgnet-0.3.0, uma.")] = "",
    weights: Annotated[Optional[Path], typer.Option(help="Checkpoint file of uma.")] = None,  # noqa: UP045
    limit: Annotated[int, typer.Option(help="Take only so many entries, drawn with read.seed.")] = 0,
    names: Annotated[Optional[Path], typer.Option(help="Take only the entries named in this file.")] = None,  # noqa: UP045
    json_: JsonOption = False,
) -> None:
    """Check, measure, relax and rank every structure of a library. Run it again and it does only what is missing."""
    from hpc.screening import screen_library, screening_config

    flags = {
        "library": library, "farm.ranks": ranks, "evaluation.stages": stages, "evaluation.potential.name": potential,
        "evaluation.potential.weights": weights and weights.absolute(), "read.limit": limit,
        "read.names": names and names.absolute(),
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in flags.items() if value]
    settings = screening_config(config, [*overrides, *set_], where)
    raise typer.Exit(screen_library(settings, run, json_))


@app.command()
def evaluate(
    files: Annotated[list[str], typer.Argument(help="Structure files.", show_default=False)],
    stages: Annotated[str, typer.Option(help="For instance read,pores.")] = "",
    potential: Annotated[str, typer.Option(help="sevennet-0, chgnet-0.3.0, uma.")] = "",
    weights: Annotated[Optional[Path], typer.Option(help="Checkpoint file of uma.")] = None,  # noqa: UP045
    config: ConfigOption = None,
    set_: SetOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Score a few files here and now, without a run directory."""
    from hpc.screening import evaluate_files, screening_config

    flags = {
        "evaluation.stages": stages,
        "evaluation.potential.name": potential,
        "evaluation.potential.weights": weights and weights.absolute(),
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value]
    raise typer.Exit(evaluate_files(files, screening_config(config, [*overrides, *set_], []), json_))


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
def resume(run: RunArgument, ranks: Annotated[int, typer.Option(help="MPI ranks on this machine.")] = 0) -> None:
    """Go on with a run: do exactly what is missing."""
    from hpc.screening import resume_run

    raise typer.Exit(resume_run(run, ranks))


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
    source: Annotated[str, typer.Argument(help="coremof:2019-ASR, coremof:2019-FSR or a folder of CIFs.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("prepared"),
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the conformers.")] = 0,
    conformers: Annotated[bool, typer.Option(help="Match generated conformers to every linker.")] = True,
    max_atoms: Annotated[int, typer.Option(help="Atoms in the primitive cell at most.")] = 300,
    max_blocks: Annotated[int, typer.Option(help="Blocks in the primitive cell at most.")] = 20,
) -> None:
    """Decompose MOFs into building blocks: training shards, vocabulary, metal and net libraries, splits."""
    from hpc.preparation import prepare_library

    raise typer.Exit(prepare_library(source, out, workers, seed, conformers, max_atoms, max_blocks))


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
    from hpc.screening import resume_run

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
