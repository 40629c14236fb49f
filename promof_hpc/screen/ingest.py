"""From a library to candidate shards: read or refuse every entry, drop exact duplicates, cut the batches.

The library is taken in chunks, one round a chunk. A round is published whole or not at all, so a killed ingest
goes on with the entries that no round covers; the entry list is fixed by the run's first look at the library.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from promof_hpc.config import EvaluationSettings, FarmSettings, ReadSettings, ScreenConfig
from promof_hpc.errors import Refused, UsageError
from promof_hpc.physics.evaluate import evaluation_id
from promof_hpc.physics.potential import Potential
from promof_hpc.processes import Pool
from promof_hpc.screen.library import Entry as LibraryEntry
from promof_hpc.screen.library import Library, scan
from promof_hpc.store.candidates import Entry, candidate_shard, cut_batches, read_entries
from promof_hpc.store.run_dir import RunDir, is_ingested, read_round
from promof_hpc.store.schema import Candidate
from promof_hpc.store.shard import publish_text, write_shard
from promof_hpc.structure import Structure

CHUNK = 2048  # entries a round
SLICE = 16  # entries that a reading process is given at a time
READ_S = 60.0  # seconds for an entry at most
Reading = tuple[str, Structure | None, str, str]  # name, structure or None, refusal, detail


def choose_entries(library: Library, settings: ReadSettings) -> list[LibraryEntry]:
    """The entries that a run takes: all, those named in a file, or so many drawn with the seed.

    Raises:
        UsageError: a name in the file is not in the library.
    """
    entries = list(library.entries)
    if settings.names is not None:
        wanted = [line.strip() for line in settings.names.read_text(encoding="utf-8").splitlines() if line.strip()]
        by_name = {e.name: e for e in entries}
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(wanted)} names in {settings.names} are not in {library.name}, "
                f"the first is '{missing[0]}'; names look like '{entries[0].name}'."
            )
        entries = [by_name[name] for name in dict.fromkeys(wanted)]
    if settings.limit is not None and settings.limit < len(entries):
        chosen = random.Random(settings.seed).sample(range(len(entries)), settings.limit)
        entries = [entries[k] for k in sorted(chosen)]
    return entries


def ingest(
    run: RunDir, config: ScreenConfig, potential: Potential, tick: Callable[[int, int], None], workers: int = 1
) -> None:
    """Publish candidate shards until every entry is covered by one.

    Args:
        tick: called with entries read and entries in all.
        workers: processes that read.

    Raises:
        UsageError: the library cannot be used, or is not the one that the run began with.
    """
    if is_ingested(run):
        return
    entries = choose_entries(scan(config.library), config.read)
    _same_library(run, [e.name for e in entries])
    seen, room = _already_taken(run), config.budget
    if room is not None:
        room -= len(seen)
    covered = {e.name for n in run.round_numbers() for e in read_entries(read_round(run, n))}
    todo = [e for e in entries if e.name not in covered]
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        done = len(entries) - len(todo) + start
        readings = _read_all(chunk, config.read, workers, partial(_tick_from, tick, done, len(entries)))
        candidates, rows = _take(readings, seen, room, potential, config.evaluation)
        batches = _cut(candidates, config.farm)
        number = max(run.round_numbers(), default=-1) + 1
        run.make_round(number)
        write_shard(run.candidates(number), candidate_shard(candidates, batches, rows, {"library": config.library}))
        room = None if room is None else room - len(candidates)
    publish_text(run.ingested, json.dumps({"entries": len(entries)}))


def _tick_from(tick: Callable[[int, int], None], start: int, total: int, done: int) -> None:
    tick(start + done, total)


def look_again(run: RunDir) -> None:
    """Let the next `ingest` take entries that were not there, or not wanted, at the first look."""
    run.entries.unlink(missing_ok=True)
    run.ingested.unlink(missing_ok=True)


def _same_library(run: RunDir, names: Sequence[str]) -> None:
    """Fix the list of names at the first look; later looks must find the same."""
    if publish_text(run.entries, json.dumps(list(names))):
        return
    before = json.loads(run.entries.read_text(encoding="utf-8"))
    if before != list(names):
        changed = set(before) ^ set(names)
        raise UsageError(
            f"The library has changed since {run.path} began ({len(changed)} entries differ, for instance "
            f"'{sorted(changed)[0] if changed else names[0]}'); put it back, or screen it under another --run."
        )


def _already_taken(run: RunDir) -> set[str]:
    return {str(e) for n in run.round_numbers() for e in read_round(run, n).arrays["evaluation_id"]}


def _read_all(
    chunk: Sequence[LibraryEntry], settings: ReadSettings, workers: int, tick: Callable[[int], None]
) -> list[Reading]:
    """Read entries, in order; one that takes its process down or never ends is refused like any other."""
    read: dict[int, Reading] = {}
    while len(read) < len(chunk):
        todo = [k for k in range(len(chunk)) if k not in read]
        try:
            _read_in_pool(chunk, todo, settings, workers, read, tick)
        except (BrokenProcessPool, TimeoutError):
            suspect = next(k for k in todo if k not in read)
            read[suspect] = _read_alone(chunk[suspect], settings)
    return [read[k] for k in range(len(chunk))]


def _read_in_pool(
    chunk: Sequence[LibraryEntry],
    todo: Sequence[int],
    settings: ReadSettings,
    workers: int,
    read: dict[int, Reading],
    tick: Callable[[int], None],
) -> None:
    pool = Pool(workers)
    processes = pool._processes  # kept, because a hanging reader has to be ended by force
    try:
        slices = [todo[a : a + SLICE] for a in range(0, len(todo), SLICE)]
        futures = [pool.submit(_read_some, [chunk[k] for k in part], settings) for part in slices]
        for part, future in zip(slices, futures, strict=True):
            read.update(zip(part, future.result(timeout=READ_S * len(part)), strict=True))
            tick(len(read))
    finally:
        for process in list((processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _read_alone(entry: LibraryEntry, settings: ReadSettings) -> Reading:
    """Read one entry in a process of its own."""
    read: dict[int, Reading] = {}
    try:
        _read_in_pool([entry], [0], settings, 1, read, lambda done: None)
        return read[0]
    except BrokenProcessPool:
        return entry.name, None, "unreadable", "reading it took the reader's process down"
    except TimeoutError:
        return entry.name, None, "unreadable", f"reading it did not end in {READ_S:.0f} s"


def _read_some(entries: Sequence[LibraryEntry], settings: ReadSettings) -> list[Reading]:
    return [_read_one(entry, settings) for entry in entries]


def _read_one(entry: LibraryEntry, settings: ReadSettings) -> Reading:
    """Read one entry; every failure is a typed refusal."""
    try:
        structure = entry.read(primitive=settings.primitive)
        if len(structure) > settings.max_atoms:
            detail = f"{len(structure)} atoms in the cell, read.max_atoms is {settings.max_atoms}"
            return entry.name, None, "too_large", detail
        return entry.name, structure, "", ""
    except Refused as refusal:
        return entry.name, None, str(refusal.reason), refusal.detail
    except Exception as error:
        return entry.name, None, "unreadable", f"{type(error).__name__}: {error}"


def _take(
    readings: Sequence[Reading],
    seen: set[str],
    room: int | None,
    potential: Potential,
    settings: EvaluationSettings,
) -> tuple[list[Candidate], list[Entry]]:
    """New structures as candidates and a row for every entry; exact duplicates share one evaluation."""
    candidates: list[Candidate] = []
    entries = []
    for name, structure, refusal, detail in readings:
        if structure is None:
            entries.append(Entry(name, "", refusal, detail))
            continue
        key = evaluation_id(structure, potential, settings)
        if key not in seen:
            if room is not None and len(candidates) >= room:
                entries.append(Entry(name, "", "over_budget", "the budget was used up before this entry"))
                continue
            seen.add(key)
            candidates.append(Candidate(key, structure))
        entries.append(Entry(name, key))
    return candidates, entries


def _cut(candidates: Sequence[Candidate], farm: FarmSettings) -> list[list[int]]:
    return cut_batches([len(c.structure) for c in candidates], farm.batch_structures, farm.batch_atoms)
