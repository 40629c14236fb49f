"""Check a run's shards: readable, content digest, completeness; and which evaluations must be redone.

Files are read in a child process with a time-out, because a damaged HDF5 file can crash or hang its reader.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from promof_hpc.store.results import content_digest
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import CorruptShard, list_names, read_shard

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file."""

    path: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        shards: files that were read.
        findings: damaged files and broken promises.
        missing: batches without a result shard.
        redo: evaluation ids whose result is missing or damaged.
    """

    shards: int
    findings: list[Finding] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is damaged (results may still be missing: the run is then only unfinished)."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"sound": self.sound}


def verify(run: RunDir, timeout_s: float = TIMEOUT_S) -> Verification:
    """Read every shard of `run` and compare it with what was proposed and sealed."""
    numbers = [int(n) for n in list_names(run.rounds)]
    paths = [run.candidates(n) for n in numbers if run.candidates(n).name in list_names(run.round(n))]
    paths += [run.result(batch) for n in numbers for batch in run.committed(n)]
    paths += [run.opinion(key) for key in run.opinions_given()]
    facts = dict(zip(paths, read_in_child(paths, timeout_s), strict=True))
    findings = [Finding(str(p), fact) for p, fact in facts.items() if isinstance(fact, str)]
    missing: list[str] = []
    redo: list[str] = []
    for number in numbers:
        fact = facts.get(run.candidates(number))
        if not isinstance(fact, _Facts):
            continue
        for batch, expected in _batches(number, fact):
            result = facts.get(run.result(batch))
            if result is None:
                missing.append(batch)
                redo += expected
            elif isinstance(result, str):
                redo += expected
            elif result.ids != expected:
                findings.append(Finding(str(run.result(batch)), "holds other evaluations than its batch proposes"))
                redo += expected
        findings += _broken_seals(run, number, facts)
    return Verification(len(paths), findings, missing, redo)


@dataclass(frozen=True)
class _Facts:
    """What is kept of a shard: its digest without timing, its ids in order, and for candidates where batches begin."""

    digest: str
    ids: list[str]
    batch_ptr: list[int]


def read_in_child(paths: Sequence[Path], timeout_s: float) -> Iterator[_Facts | str]:
    """Facts of each file, or what is wrong with it; a reader that dies or hangs is replaced."""
    context = multiprocessing.get_context("spawn")
    process, ours = None, None
    try:
        for path in paths:
            if process is None or ours is None:
                ours, theirs = context.Pipe()
                process = context.Process(target=_reader, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
            try:
                ours.send(str(path))
                # the first answer includes the start of the child
                answer = ours.recv() if ours.poll(timeout_s) else "reading it did not end in time"
            except (EOFError, OSError):
                answer = "reading it killed the reader"
            yield answer
            if answer in ("reading it did not end in time", "reading it killed the reader"):
                process.kill()
                process = None
    finally:
        if process is not None:
            process.kill()


def _reader(pipe: Connection) -> None:
    while True:
        try:
            path = Path(pipe.recv())
        except EOFError:
            return
        pipe.send(_read(path))


def _read(path: Path) -> _Facts | str:
    try:
        shard = read_shard(path)
    except FileNotFoundError:
        return "is gone"
    except CorruptShard as error:
        return str(error)
    batch_ptr = shard.arrays.get("batch_ptr", [])
    return _Facts(content_digest(shard), [str(e) for e in shard.arrays["evaluation_id"]], [int(x) for x in batch_ptr])


def _batches(number: int, fact: _Facts) -> Iterator[tuple[str, list[str]]]:
    for k, (a, b) in enumerate(zip(fact.batch_ptr[:-1], fact.batch_ptr[1:], strict=True)):
        yield f"{number:05d}-{k:05d}", fact.ids[a:b]


def _broken_seals(run: RunDir, number: int, facts: dict[Path, _Facts | str]) -> Iterator[Finding]:
    """Shards that are not what a finished round was learned from."""
    if run.sealed(number).name not in list_names(run.round(number)):
        return
    for batch, digest in json.loads(run.sealed(number).read_text(encoding="utf-8")).items():
        fact = facts.get(run.result(batch))
        if not isinstance(fact, _Facts) or fact.digest != digest:
            yield Finding(str(run.result(batch)), f"is not the shard that round {number} was sealed with")
