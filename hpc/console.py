"""What a person sees in the terminal: live bars where there is one, plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hpc.exit_codes import INCOMPLETE, STOPPED
from promof_hpc.config import EvaluationSettings, Stage
from promof_hpc.report.status import Snapshot, snapshot
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.schema import TEXT_COLUMNS, TIMING_COLUMNS, Row

LINE_EVERY_S = 15.0
LOOK_EVERY_S = 2.0


class Progress:
    """Live progress of a run: entries read, then evaluations done, outcome mix, time left."""

    def __init__(self, run: RunDir, budget: int | None, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._run, self._budget, self._quiet = run, budget, quiet
        self._printed = self._looked = 0.0
        live = not quiet and sys.stderr.isatty()
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True) if live else None
        self._task = self._bar.add_task("starting", total=None) if self._bar else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def reading(self, done: int, total: int) -> None:
        """Entries read so far."""
        self._show(done, total, f"reading {done}/{total}", force=done == total)

    def evaluating(self) -> None:
        """Look at the run directory, at most once in two seconds."""
        if self._quiet or time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        now = snapshot(self._run, self._budget)
        self._show(now.done, now.budget.issued, describe(now))

    def _show(self, done: int, total: int, text: str, force: bool = False) -> None:
        if self._quiet:
            return
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
        elif force or time.monotonic() - self._printed > LINE_EVERY_S:
            self._printed = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def describe(s: Snapshot) -> str:
    """A snapshot in one line."""
    mix = ", ".join(f"{n} {outcome}" for outcome, n in s.budget.outcomes.items()) or "nothing yet"
    left = "" if s.seconds_left is None or s.state == "done" else f"; {duration(s.seconds_left)} left"
    refused = sum(s.refused.values())
    return f"{s.state}: {s.done}/{s.budget.issued} evaluated ({mix}{left}); {s.ranks} rank{'s' * (s.ranks != 1)}" + (
        f"; {refused} of {s.entries} entries refused" if refused else ""
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(run: RunDir, code: int, page: Path) -> None:
    """How a run ended and what to do next."""
    print(describe(snapshot(run, None)))
    if code == STOPPED:
        print(f"Stopped; go on with: promof resume {run.path}")
    elif code == INCOMPLETE:
        print(
            f"Incomplete: too many evaluations failed in a row (see {run.logs}); go on with: promof resume {run.path}"
        )
    print(f"Table:  {run.report / 'table.csv'}\nReport: {page}")


def print_rows(rows: Sequence[tuple[str, Row]], as_json: bool, potential: str, settings: EvaluationSettings) -> None:
    """Rows of `promof evaluate`, as JSON or as a short table with units."""
    if as_json:
        print(json.dumps([{"name": name, "potential": potential, **_plain(row)} for name, row in rows], indent=1))
        return
    relaxed = Stage.RELAX in settings.stages
    for name, row in rows:
        print(f"{name}: {row.outcome}" + (f" ({row.reason})" if row.reason else ""))
        for column, value in _plain(row).items():
            if value not in (None, "") and column not in ("outcome", "reason", *TIMING_COLUMNS):
                print(f"  {column:30s} {value:.6g}" if isinstance(value, float) else f"  {column:30s} {value}")
    converged = f"forces <= {settings.relax.fmax_ev_per_ang:g} eV/Å" + (
        f" and stress <= {settings.relax.stress_gpa:g} GPa" if settings.relax.cell == "relaxed" else ", cell fixed"
    )
    print(f"potential {potential}" + (f"; converged means {converged}" if relaxed else ""))


def _plain(row: Row) -> dict[str, object]:
    """A row with None for what was not computed."""
    plain: dict[str, object] = {}
    for name, value in dataclasses.asdict(row).items():
        missing = (isinstance(value, float) and math.isnan(value)) or (value == -1 and not isinstance(value, bool))
        plain[name] = str(value) if name in TEXT_COLUMNS else None if missing else value
    return plain
