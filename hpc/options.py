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


def one_thread() -> None:
    """Trainer and ranks share the cores, and sums in a fixed order need a fixed number of threads.

    Must come before anything that counts the cores is imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
