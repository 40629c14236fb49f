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
from hpc.kinds import config_of
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
        self._doing = ""
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

    def evaluating(self, force: bool = False) -> None:
        """Look at the run directory, at most once in two seconds."""
        if self._quiet or (time.monotonic() - self._looked < LOOK_EVERY_S and not force):
            return
        self._looked = time.monotonic()
        now = snapshot(self._run, self._budget)
        self._show(now.done, total_of(now), f"{self._doing}{describe(now)}", force)

    def asking(self, done: int, total: int) -> None:
        """Successes that a second potential has been asked about so far."""
        self._show(done, total, f"second opinion: {done}/{total} successes asked about", force=done == total)

    def phase(self, what: str, number: int) -> None:
        """A campaign begins something with a round."""
        self._doing = f"round {number}, {what}; "
        self.evaluating(force=True)

    def note(self, text: str) -> None:
        """Something that must be seen."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _show(self, done: int, total: int, text: str, force: bool = False) -> None:
        if self._quiet:
            return
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
        elif force or time.monotonic() - self._printed > LINE_EVERY_S:
            self._printed = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def total_of(s: Snapshot) -> int:
    """Evaluations that there will be: a campaign's budget, or what was issued."""
    return (s.budget.budget if s.campaign else None) or s.budget.issued


def describe(s: Snapshot) -> str:
    """A snapshot in one line."""
    mix = ", ".join(f"{n} {outcome}" for outcome, n in s.budget.outcomes.items()) or "nothing yet"
    left = "" if s.seconds_left is None or s.state == "done" else f"; {duration(s.seconds_left)} left"
    ranks = f"{s.ranks} rank{'s' * (s.ranks != 1)}"
    line = f"{s.state}: {s.done}/{total_of(s)} evaluated ({mix}{left}); {ranks}"
    if s.campaign:
        gate = f"{100 * (s.gate_pass_share or 0.0):.0f} % of {s.entries} proposals passed the gate"
        return f"{line}; {len(s.rounds)} round{'s' * (len(s.rounds) != 1)}; {gate}{_best_of(s)}{_second_opinion_of(s)}"
    refused = sum(s.refused.values())
    return line + (f"; {refused} of {s.entries} entries refused" if refused else "")


def _best_of(s: Snapshot) -> str:
    if s.best is None:
        return ""
    pore = "" if s.best["pld_ang"] is None else f", PLD {s.best['pld_ang']:.2f} Å"
    successes = sum(facts.get("successes", 0) for facts in s.rounds)
    return f"; best reward {s.best['reward']:.2f}{pore}; {successes} success{'es' * (successes != 1)}"


def _second_opinion_of(s: Snapshot) -> str:
    """What the second potential says; it is asked when a campaign has ended."""
    return f"; {s.second_opinion.in_words()}" if s.second_opinion and (s.ending or s.second_opinion.asked) else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(run: RunDir, code: int, page: Path) -> None:
    """How a run ended and what to do next."""
    now = snapshot(run, config_of(run).budget)
    print(describe(now))
    if code == STOPPED:
        print(f"Stopped; go on with: promof resume {run.path}")
    elif now.ending:
        print(f"Ended: {now.ending}.")
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
