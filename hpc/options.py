"""Arguments and options that several commands share, and what each that computes does first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

RunArgument = Annotated[Path, typer.Argument(help="A run directory, for instance runs/demo.", show_default=False)]
SiteOption = Annotated[str, typer.Option("--site", help="Site profile: a name or a YAML file.", show_default=False)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the batch scripts, submit nothing.")]
ChainOption = Annotated[int, typer.Option("--chain", help="Jobs of each kind that go on after the first has ended.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[list[str], typer.Option("--set", help="key=value, for instance evaluation.relax.max_steps=100.")]
ConfigOption = Annotated[Optional[Path], typer.Option("--config", help="YAML file; `promof init` writes one.")]  # noqa: UP045
StagesOption = Annotated[str, typer.Option("--stages", help="For instance read,validity,pores.")]
WhereOption = Annotated[list[str], typer.Option("--where", help="Gate, for instance 'pld_ang > 3.3'; repeatable.")]
PotentialOption = Annotated[str, typer.Option("--potential", help="sevennet-0, chgnet-0.3.0, uma.")]
WeightsOption = Annotated[Optional[Path], typer.Option("--weights", help="Checkpoint file of uma.")]  # noqa: UP045
LimitOption = Annotated[int, typer.Option("--limit", help="Take only so many entries, drawn with read.seed.")]
NamesOption = Annotated[Optional[Path], typer.Option("--names", help="Take only the entries named in this file.")]  # noqa: UP045


def one_thread() -> None:
    """Trainer and ranks share the cores, and sums in a fixed order need a fixed number of threads.

    Must come before anything that counts the cores is imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def overrides_of(
    library: str = "", ranks: int = 0, stages: str = "", potential: str = "", weights: Path | None = None,
    limit: int = 0, names: Path | None = None,
) -> list[str]:  # fmt: skip
    """What flags say, as `--set` would; empty ones and 0 say nothing."""
    flags = {
        "library": library, "farm.ranks": ranks, "evaluation.stages": stages, "evaluation.potential.name": potential,
        "evaluation.potential.weights": weights and weights.absolute(), "read.limit": limit,
        "read.names": names and names.absolute(),
    }  # fmt: skip
    return [f"{key}={value}" for key, value in flags.items() if value]
