"""Preparation of a training set: `prepare(source, folder)` -> chunks -> split -> libraries -> finished shards.

    FOLDER/ plan.json           source, settings and names, fixed by the first run
            chunks/00000.h5     prepared MOFs and rejections of so many entries, each published whole
            split.json  vocabulary.json  nodes.h5  nets.h5  linkers.h5
            train/00000.h5 ...  val/  test/  mixed/     finished shards with node templates
            rejections.parquet  rejections.csv  summary.json

Every file is published if absent, so a run that was killed goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import promof_hpc
from data_prep.finish import Counts, finish
from data_prep.parallel import Progress, run_jobs
from data_prep.records import Chunk, EntryJob, prepare_chunk
from data_prep.settings import PrepSettings
from data_prep.sources import Source, open_source
from promof_hpc.errors import UsageError
from promof_hpc.store.shard import list_names, publish_text


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
    opened = open_source(source)
    _make_folder(folder)
    _fix_plan(folder, opened, settings)
    cpu_s_per_entry = _prepare_chunks(folder, opened, settings, workers, report)
    chunks = [folder / "chunks" / name for name in list_names(folder / "chunks", ".h5")]
    counts = finish(folder, chunks, settings, source, workers, report)
    content = {"entries": len(opened.entries), **asdict(counts)}
    publish_text(folder / "summary.json", json.dumps(content, indent=1) + "\n")
    return Summary(len(opened.entries), counts, cpu_s_per_entry)


def _make_folder(folder: Path) -> None:
    """Raises: UsageError: the folder cannot be made."""
    try:
        (folder / "chunks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot use {folder} as output folder ({error.strerror}); choose another one.") from error


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


def _prepare_chunks(
    folder: Path, source: Source, settings: PrepSettings, workers: int, report: Progress
) -> float | None:
    """Publish the chunks that are missing; CPU time in s for each entry done here."""
    there = set(list_names(folder / "chunks", ".h5"))
    chunks = []
    for number, start in enumerate(range(0, len(source.entries), settings.chunk)):
        name = f"{number:05d}.h5"
        if name in there:
            continue
        jobs = tuple(
            EntryJob(e, source.properties.get(e.name, {}), e.name in source.disordered)
            for e in source.entries[start : start + settings.chunk]
        )
        chunks.append(Chunk(folder / "chunks" / name, jobs, settings))
    total = len(source.entries)
    state = {"done": total - sum(len(c.jobs) for c in chunks), "cpu_s": 0.0}
    new = total - state["done"]

    def finished(chunk: Chunk, cpu_s: float) -> None:
        state["done"] += len(chunk.jobs)
        state["cpu_s"] += cpu_s
        report("prepare", int(state["done"]), total)

    report("prepare", int(state["done"]), total)
    for chunk in run_jobs(prepare_chunk, chunks, workers, finished):
        finished(chunk, prepare_chunk(replace(chunk, alone=True)))
    return state["cpu_s"] / new if new else None
