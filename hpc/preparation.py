"""The preparation journey: MOFs in, training shards and libraries out, with progress on the terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.exit_codes import DONE, INCOMPLETE

if TYPE_CHECKING:
    from data_prep.settings import PrepSettings

LINE_EVERY_S = 15.0


def prepare_library(
    source: str, out: Path, workers: int, seed: int, conformers: bool, max_atoms: int, max_blocks: int
) -> int:
    """Prepare a training set in `out`, or go on with one; returns the exit code.

    Raises:
        UsageError: the source cannot be used, or `out` holds another preparation.
    """
    from data_prep.build import prepare

    settings = preparation_settings(seed, conformers, max_atoms, max_blocks)
    summary = prepare(source, out, settings, Lines(), workers)
    print("\n".join([*summary.lines(), f"Training set: {out}"]))
    return DONE


def preparation_settings(seed: int, conformers: bool, max_atoms: int, max_blocks: int) -> PrepSettings:
    """The settings of a preparation; one seed draws the split and the conformers."""
    from data_prep.settings import PrepSettings

    settings = PrepSettings(conformers=conformers, seed=seed, max_atoms=max_atoms, max_blocks=max_blocks)
    return replace(settings, split=replace(settings.split, seed=seed))


def prepare_synthetic(data: Path | None, out: Path, count: int, seed: int, workers: int) -> int:
    """Make synthetic MOFs from the training set `data` in `out`, or go on with that; returns the exit code.

    Raises:
        UsageError: no training set is given, or `out` holds something else.
    """
    from data_prep.synthetic import SyntheticSettings, synthesise
    from promof_hpc.errors import UsageError

    if data is None:
        raise UsageError("`promof prep synthetic` needs --data, a folder made by `promof prep`.")
    summary = synthesise(data, out, SyntheticSettings(count=count, seed=seed), Lines(), workers)
    print("\n".join([*summary.lines(), f"Synthetic set: {out}"]))
    return DONE if summary.made == count else INCOMPLETE


class Lines:
    """Progress as plain lines, one at the end of each step and every so often in between."""

    def __init__(self) -> None:
        self._printed = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """Say how much of a step is done."""
        if done == total or time.monotonic() - self._printed > LINE_EVERY_S:
            self._printed = time.monotonic()
            print(f"{step}: {done}/{total}", file=sys.stderr, flush=True)
