"""Preparation of a training set: chunks of a source -> split -> libraries -> finished shards.

    FOLDER/ plan.json           source, settings and names, fixed by the first run
            chunks/00000.h5     prepared MOFs and rejections of so many entries, each published whole
            split.json  vocabulary.json  nodes.h5  nets.h5  linkers.h5
            train/00000.h5 ...  val/  test/  mixed/     finished shards with node templates
            rejections.parquet  rejections.csv  summary.json

Every file is published if absent, so a run that was killed goes on with what is missing. Chunks can be made anywhere
and in any order; the rest follows from all of them together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import promof_hpc
from data_prep.finish import Counts, finish
from data_prep.parallel import Progress, run_jobs
from data_prep.records import Chunk, EntryJob, prepare_chunk
from data_prep.settings import PrepSettings, SplitSettings
from data_prep.sources import Source, open_source
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import list_names, publish_text

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """What a preparation ended with.

    Attributes:
        entries: structures of the source.
        counts: MOFs, rejections, parts and libraries.
        cpu_s_per_entry: CPU time in s for each entry whose chunk was prepared by this call; None if all were there.
    """

    entries: int
    counts: Counts
    cpu_s_per_entry: float | None

    def lines(self) -> list[str]:
        """The summary for people."""
        share = f"{self.counts.accepted / max(self.entries, 1):.1%}"
        cost = "" if self.cpu_s_per_entry is None else f", {self.cpu_s_per_entry:.3f} CPU s an entry"
        return [f"{self.counts.accepted} of {self.entries} MOFs prepared ({share}){cost}", *self.counts.lines()]


def prepare(
    source: str, folder: Path, settings: PrepSettings, progress: Progress | None = None, workers: int = 1
) -> Summary:
    """Prepare a training set in `folder`, or finish one that was begun there.

    Args:
        source: `coremof:2019-ASR`, `coremof:2019-FSR`, or a folder (or file) of structures.
        progress: called with the name of the step, how much of it is done, and how much there is.
        workers: processes.

    Raises:
        UsageError: the source cannot be used, or the folder holds a preparation of another source or settings.
        PromofError: a file cannot be written or read.
    """
    report = progress or (lambda step, done, total: None)
    whole = Preparation.begin(source, folder, settings)
    cpu_s_per_entry = whole.make(whole.chunks, workers, report)
    return replace(whole.finish(workers, report), cpu_s_per_entry=cpu_s_per_entry)


@dataclass(frozen=True)
class Preparation:
    """A training set in the making."""

    source: Source
    folder: Path
    settings: PrepSettings

    @classmethod
    def begin(cls, source: str, folder: Path, settings: PrepSettings) -> Preparation:
        """Write down what is prepared, or make sure that it is what this folder was begun with; see `prepare`."""
        opened = open_source(source)
        _make_folder(folder)
        _fix_plan(folder, opened, settings)
        return cls(opened, folder, settings)

    @classmethod
    def read(cls, folder: Path) -> Preparation:
        """The one that was begun in a folder.

        Raises:
            UsageError: none was, or its source has changed.
        """
        plan = read_plan(folder)
        split = SplitSettings(**plan["settings"].pop("split"))
        return cls.begin(plan["source"], folder, PrepSettings(**plan["settings"], split=split))

    @property
    def chunks(self) -> list[str]:
        """Names of all chunks, in the order of their entries."""
        return [f"{number:05d}.h5" for number in range(-(-len(self.source.entries) // self.settings.chunk))]

    @property
    def is_finished(self) -> bool:
        """Everything is there."""
        return SUMMARY in list_names(self.folder)

    def missing(self) -> list[str]:
        """Chunks that have not been made."""
        return not_in(self.folder / "chunks", self.chunks)

    def make(self, names: Collection[str], workers: int, report: Progress) -> float | None:
        """Publish those of these chunks that are missing; what `report` raises ends it after a chunk.

        Returns:
            CPU time in s for each entry done here; None if all were there.
        """
        wanted, missing = set(names), set(self.missing())
        mine = [self._chunk(k, name) for k, name in enumerate(self.chunks) if name in wanted]
        chunks = [chunk for chunk in mine if chunk.path.name in missing]
        total, new = (sum(len(c.jobs) for c in some) for some in (mine, chunks))
        state = {"done": total - new, "cpu_s": 0.0}

        def finished(chunk: Chunk, cpu_s: float) -> None:
            state["done"] += len(chunk.jobs)
            state["cpu_s"] += cpu_s
            report("prepare", int(state["done"]), total)

        report("prepare", int(state["done"]), total)
        for chunk in run_jobs(prepare_chunk, chunks, workers, finished):
            report("prepare", int(state["done"]), total)  # whatever ended the workers may have been meant for all
            finished(chunk, prepare_chunk(replace(chunk, alone=True)))
        return state["cpu_s"] / new if new else None

    def finish(self, workers: int, report: Progress) -> Summary:
        """Publish all that follows from the chunks; what `report` raises ends it after a step.

        Raises:
            PromofError: chunks are missing; nothing has been written then.
        """
        if missing := self.missing():
            raise PromofError(f"{incomplete(self.folder, missing, len(self.chunks))}; `promof prep` makes them.")
        chunks = [self.folder / "chunks" / name for name in self.chunks]
        counts = finish(self.folder, chunks, self.settings, self.source.name, workers, report)
        content = {"entries": len(self.source.entries), **asdict(counts)}
        publish_text(self.folder / SUMMARY, json.dumps(content, indent=1) + "\n")
        return Summary(len(self.source.entries), counts, None)

    def _chunk(self, number: int, name: str) -> Chunk:
        start = number * self.settings.chunk
        jobs = tuple(
            EntryJob(e, self.source.properties.get(e.name, {}), e.name in self.source.disordered)
            for e in self.source.entries[start : start + self.settings.chunk]
        )
        return Chunk(self.folder / "chunks" / name, jobs, self.settings)


def not_in(folder: Path, names: list[str]) -> list[str]:
    """Those of these files that are not in a folder."""
    there = set(list_names(folder, ".h5"))
    return [name for name in names if name not in there]


def incomplete(folder: Path, missing: list[str], total: int, shown: int = 5) -> str:
    """What is missing, in words."""
    more = ", ..." if len(missing) > shown else ""
    return f"{len(missing)} of {total} chunks of {folder} are missing ({', '.join(missing[:shown])}{more})"


def _make_folder(folder: Path) -> None:
    """Raises: UsageError: the folder cannot be made."""
    try:
        (folder / "chunks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot use {folder} as output folder ({error.strerror}); choose another one.") from error


def read_plan(folder: Path) -> dict[str, Any]:
    """What a folder was begun with.

    Raises:
        UsageError: it was not begun.
    """
    try:
        plan: dict[str, Any] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no preparation; `promof prep` begins one.") from error
    return plan


def _fix_plan(folder: Path, source: Source, settings: PrepSettings) -> None:
    """Write down what is prepared, or make sure that it is what this folder was begun with.

    Raises:
        UsageError: it is something else.
    """
    names = hashlib.sha256("\n".join(e.name for e in source.entries).encode()).hexdigest()
    plan = {
        "source": source.name,
        "names_sha256": names,
        "settings": json.loads(settings.as_json()),
        "version": promof_hpc.__version__,
    }
    path = folder / "plan.json"
    if publish_text(path, json.dumps(plan, indent=1, sort_keys=True) + "\n"):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key in plan if before.get(key) != plan[key]]
    if differing:
        raise UsageError(
            f"{folder} holds a preparation with another {' and '.join(differing)} ({path}); "
            "choose another folder, or repeat the command that began it."
        )
