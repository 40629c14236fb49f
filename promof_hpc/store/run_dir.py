"""Every path of a run, in one place; nothing else in the product builds a path inside a run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import Shard, list_names, publish_text, read_shard, replace_text

RAISES = "budget_raised"


@dataclass(frozen=True)
class RunDir:
    """A run directory: the ledger of one campaign or screening."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """Make the folders of a new run; existing ones stay as they are.

        Raises:
            PromofError: the place cannot be written.
        """
        run = cls(path.absolute())
        try:
            folders = (run.rounds, run.claims, run.suspects, run.checkpoints, run.events, run.logs, run.report)
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PromofError(
                f"Cannot make the run directory {path}: {error.strerror}; choose another with --run."
            ) from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run.

        Raises:
            UsageError: there is none at `path`.
        """
        run = cls(path.absolute())
        if "config.yaml" not in list_names(run.path):
            raise UsageError(
                f"{path} is not a run directory (no config.yaml in it); `promof screen` or `promof design` makes one."
            )
        return run

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, potential, weights digest, library, command."""
        return self.path / "provenance.json"

    @property
    def names(self) -> Path:
        """Names of the entries that a reference set was drawn to have."""
        return self.path / "names.txt"

    @property
    def entries(self) -> Path:
        """Names of the library's entries, fixed at the first look."""
        return self.path / "entries.json"

    @property
    def ingested(self) -> Path:
        """There once every entry has been read."""
        return self.path / "ingested.json"

    @property
    def rounds(self) -> Path:
        """One folder a round."""
        return self.path / "rounds"

    @property
    def claims(self) -> Path:
        """Who is at work on which batch."""
        return self.path / "claims"

    @property
    def suspects(self) -> Path:
        """Batches that somebody died on."""
        return self.path / "suspects"

    @property
    def checkpoints(self) -> Path:
        """One folder a state of the policies, named by the number of rounds that it has learned from."""
        return self.path / "checkpoints"

    @property
    def ended(self) -> Path:
        """There once a campaign has ended, with the reason; nobody waits for another round then."""
        return self.path / "ended.json"

    @property
    def opinions(self) -> Path:
        """What a second potential says of a campaign's successes, one shard a success; no part of the ledger."""
        return self.path / "opinions"

    @property
    def events(self) -> Path:
        """One JSON-lines file a writer."""
        return self.path / "events"

    @property
    def report(self) -> Path:
        """The HTML page and the tables."""
        return self.path / "report"

    @property
    def logs(self) -> Path:
        """What the processes of the run printed."""
        return self.path / "logs"

    @property
    def site(self) -> Path:
        """Profile of the site that the run's jobs were submitted to last."""
        return self.path / "site.yaml"

    @property
    def code(self) -> Path:
        """Copies of this package, one a version that jobs were submitted with."""
        return self.path / "code"

    @property
    def submissions(self) -> Path:
        """What was submitted to a scheduler, a file a job."""
        return self.path / "submissions"

    @property
    def stop(self) -> Path:
        """While this file is there, nobody starts a batch."""
        return self.path / "STOP"

    @property
    def lease(self) -> Path:
        """Who leads the run."""
        return self.path / "lease.json"

    def round(self, number: int) -> Path:
        """Folder of one round."""
        return self.rounds / f"{number:05d}"

    def candidates(self, number: int) -> Path:
        """What the round proposes, with its batches."""
        return self.round(number) / "candidates.h5"

    def results(self, number: int) -> Path:
        """Folder of the round's result shards, one a batch."""
        return self.round(number) / "results"

    def sealed(self, number: int) -> Path:
        """The result shards that the round ended with."""
        return self.round(number) / "sealed.json"

    def learned(self, number: int) -> Path:
        """What was made of the round's results: judgements and learning signals."""
        return self.round(number) / "learned.json"

    def result(self, batch: str) -> Path:
        """Result shard of a batch named like `00017-00003` (round, place in the round)."""
        return self.results(int(batch.split("-")[0])) / f"{batch}.h5"

    def opinion(self, evaluation_id: str) -> Path:
        """Shard of the second opinion on an evaluation."""
        return self.opinions / f"{evaluation_id}.h5"

    def opinions_given(self) -> list[str]:
        """Evaluations that have a second opinion, sorted."""
        return [n.removesuffix(".h5") for n in list_names(self.opinions, ".h5")]

    def make_opinions(self) -> None:
        """Make the folder of the second opinions."""
        self.opinions.mkdir(exist_ok=True)

    def make_round(self, number: int) -> None:
        """Make the round's folders."""
        self.results(number).mkdir(parents=True, exist_ok=True)

    def round_numbers(self, beside: Container[int] = ()) -> list[int]:
        """Rounds that have candidates, ascending; those in `beside` are not looked at."""
        folders = [int(n) for n in list_names(self.rounds) if int(n) not in beside]
        return [n for n in folders if self.candidates(n).name in list_names(self.round(n))]

    def committed(self, number: int) -> list[str]:
        """Names of the batches of a round that have a result shard."""
        return [n.removesuffix(".h5") for n in list_names(self.results(number), ".h5")]

    def provenance_record(self) -> dict[str, Any]:
        """What `provenance.json` says."""
        record: dict[str, Any] = json.loads(self.provenance.read_text(encoding="utf-8"))
        return record


def raise_budget(run: RunDir, before: int, budget: int, when: str) -> None:
    """Record in the provenance that a campaign may spend more; `raised_budget` says what holds."""
    record = run.provenance_record()
    act = {"from": before, "to": budget, "time": when, "rounds": len(run.round_numbers())}
    record[RAISES] = [*record.get(RAISES, []), act]
    replace_text(run.provenance, json.dumps(record, indent=1))


def raised_budget(run: RunDir) -> int | None:
    """The budget that was given to a campaign after its beginning; None if that of its configuration holds."""
    raises = run.provenance_record().get(RAISES, [])
    return int(raises[-1]["to"]) if raises else None


def rounds_before_the_raise(run: RunDir) -> int:
    """Rounds that a campaign had when its budget was last raised; 0 if it never was."""
    raises = run.provenance_record().get(RAISES, [])
    return int(raises[-1].get("rounds", 0)) if raises else 0


@dataclass(frozen=True)
class Ended:
    """How a campaign has ended: a name, and why in words."""

    ending: str
    why: str


def end(run: RunDir, ended: Ended) -> None:
    """Note that a campaign has ended, for everybody who waits for its next round."""
    publish_text(run.ended, json.dumps(asdict(ended), indent=1))


def how_ended(run: RunDir) -> Ended | None:
    """How a campaign has ended; None while it goes on."""
    return Ended(**json.loads(run.ended.read_text(encoding="utf-8"))) if has_ended(run) else None


def go_on(run: RunDir) -> None:
    """Take back the note that a campaign has ended."""
    run.ended.unlink(missing_ok=True)


def is_ingested(run: RunDir) -> bool:
    """Whether every entry of the library has been read."""
    return run.ingested.name in list_names(run.path)


def has_ended(run: RunDir) -> bool:
    """Whether a campaign has ended."""
    return run.ended.name in list_names(run.path)


def read_round(run: RunDir, number: int) -> Shard:
    """The candidates of a round."""
    return read_shard(run.candidates(number))


def request_stop(run: RunDir, why: str) -> None:
    """Ask every job of the run to stop at the next safe point."""
    run.stop.write_text(why + "\n", encoding="utf-8")


def clear_stop(run: RunDir) -> None:
    """Take back a request to stop."""
    run.stop.unlink(missing_ok=True)


def stop_requested(run: RunDir) -> bool:
    """Whether somebody asked the run to stop."""
    return os.path.basename(run.stop) in list_names(run.path)
