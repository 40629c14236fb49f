"""Synthetic MOFs to pretrain on: nodes and linkers never seen together, put together on known nets, gated.

    OUT/ plan.json                  data, count, seed and settings, fixed by the first run
         train/00000.h5 ...         prepared MOFs as those of `promof prep`, published whole
         nodes.h5 ...               the libraries and the vocabulary of the data, which the shards refer to

A chunk draws from its own seed and from its own share of all pairs (`data_prep.pairing`), so a killed and repeated run
publishes the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import promof_hpc
from data_prep.build import incomplete, not_in, read_plan
from data_prep.pairing import Pair, draw, make_mof, stock_of
from data_prep.parallel import Progress, run_jobs
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared, write_prepared
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import publish, publish_text

LIBRARIES = ("nodes.h5", "nets.h5", "vocabulary.json")


@dataclass(frozen=True)
class SyntheticSettings:
    """A synthetic set. Two runs into one folder must agree on it.

    Attributes:
        count: MOFs wanted.
        seed: of every draw.
        chunk: MOFs that are made, and lost by a kill, together.
        tries: assemblies of one pair at most.
        most_energy_ang2: an assembly whose contacts stay further open is not kept.
        pairs_per_mof: pairs that a chunk may try for each MOF it should hold; it ends short where they do not suffice.
    """

    count: int
    seed: int = 0
    chunk: int = 32
    tries: int = 16
    most_energy_ang2: float = 0.1
    pairs_per_mof: int = 40


@dataclass(frozen=True)
class SyntheticSummary:
    """What became of the pairs.

    Attributes:
        made: MOFs in the folder.
        wanted: MOFs asked for; fewer are made where a chunk runs out of pairs.
        outcomes: pairs tried by this call, by outcome.
        cpu_s: CPU time of this call in s.
    """

    made: int
    wanted: int
    outcomes: dict[str, int]
    cpu_s: float

    def lines(self) -> list[str]:
        """The summary for people."""
        new = self.outcomes.get(MADE, 0)
        rate = f", {3600 * new / self.cpu_s:.0f} a CPU hour" if new else ""
        told = ", ".join(f"{name} {n}" for name, n in sorted(self.outcomes.items(), key=lambda item: -item[1]))
        return [f"{self.made} of {self.wanted} synthetic MOFs{rate}", *([f"  pairs: {told}"] if told else [])]


MADE = "made"
DRAWS_PER_PAIR = 10  # draws find old pairs and those of other chunks too


def synthesise(
    data: Path, out: Path, settings: SyntheticSettings, progress: Progress | None = None, workers: int = 1
) -> SyntheticSummary:
    """Make synthetic MOFs from a training set, or finish what was begun in `out`.

    Args:
        data: a folder made by `promof prep` with conformers.
        progress: called with the name of the step, how many chunks are done, and how many there are.
        workers: processes.

    Raises:
        UsageError: `data` is no training set, or `out` holds a synthetic set of other data or settings.
    """
    report = progress or (lambda step, done, total: None)
    whole = Synthesis.begin(data, out, settings)
    outcomes, cpu_s = whole.make(whole.chunks, workers, report)
    return replace(whole.finish(workers, report), outcomes=outcomes, cpu_s=cpu_s)


@dataclass(frozen=True)
class Synthesis:
    """A synthetic set in the making; `data` lends the parts, `folder` holds what is made."""

    data: Path
    folder: Path
    settings: SyntheticSettings

    @classmethod
    def begin(cls, data: Path, folder: Path, settings: SyntheticSettings) -> Synthesis:
        """Write down what is made, or make sure that it is what this folder was begun with; see `synthesise`."""
        check_data(data, settings)
        _begin(data, folder, settings)
        return cls(data, folder, settings)

    @classmethod
    def read(cls, data: Path, folder: Path) -> Synthesis:
        """The one that was begun in a folder; raises UsageError where none was, or with other data."""
        return cls.begin(data, folder, SyntheticSettings(**read_plan(folder)["settings"]))

    @property
    def chunks(self) -> list[str]:
        """Names of all chunks; each draws from a seed and a share of the pairs of its own."""
        return [f"{k:05d}.h5" for k in range(-(-self.settings.count // self.settings.chunk))]

    @property
    def is_finished(self) -> bool:
        """Everything is there."""
        return not self.missing()

    def missing(self) -> list[str]:
        """Chunks that have not been made."""
        return not_in(self.folder / "train", self.chunks)

    def make(self, names: Collection[str], workers: int, report: Progress) -> tuple[dict[str, int], float]:
        """Publish those of these chunks that are missing; outcomes of the pairs tried here, and CPU time in s.

        What `report` raises ends it after a chunk.
        """
        wanted, chunks = set(names), self.chunks
        jobs = [
            _Job(self.data.absolute(), self.folder / "train" / name, chunks.index(name), len(chunks), self.settings)
            for name in self.missing()
            if name in wanted
        ]
        outcomes: Counter[str] = Counter()
        state = {"done": len(wanted) - len(jobs), "cpu_s": 0.0}

        def finished(job: _Job, result: tuple[dict[str, int], float]) -> None:
            outcomes.update(result[0])
            state["done"] += 1
            state["cpu_s"] += result[1]
            report("synthetic", int(state["done"]), len(wanted))

        report("synthetic", int(state["done"]), len(wanted))
        for job in run_jobs(_make_chunk, jobs, workers, finished):
            report("synthetic", int(state["done"]), len(wanted))  # as in data_prep.build
            finished(job, _make_chunk(job))
        return dict(outcomes), state["cpu_s"]

    def finish(self, workers: int, report: Progress) -> SyntheticSummary:
        """Count what was made; raises PromofError where chunks are missing."""
        if missing := self.missing():
            what = incomplete(self.folder, missing, len(self.chunks))
            raise PromofError(f"{what}; `promof prep synthetic` makes them.")
        made = sum(len(read_prepared(self.folder / "train" / name, molecules=False)) for name in self.chunks)
        return SyntheticSummary(made, self.settings.count, {}, 0.0)


def check_data(data: Path, settings: SyntheticSettings) -> None:
    """Raises: UsageError: `data` is no training set, or no MOFs are asked for."""
    if settings.count < 1:
        raise UsageError(f"--count {settings.count} asks for no MOFs; give a positive number.")
    missing = [name for name in (*LIBRARIES, "train", "plan.json") if not (data / name).exists()]
    if missing:
        raise UsageError(f"{data} has no {', '.join(missing)}; make a training set with `promof prep` first.")


def _begin(data: Path, out: Path, settings: SyntheticSettings) -> None:
    """Fix the plan and copy the libraries.

    Raises:
        UsageError: the folder was begun with another plan, or cannot be made.
    """
    try:
        (out / "train").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot use {out} as output folder ({error.strerror}); choose another one.") from error
    digests = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in LIBRARIES}
    plan = {"source": "synthetic", "data": digests, "settings": asdict(settings), "version": promof_hpc.__version__}
    path = out / "plan.json"
    if not publish_text(path, json.dumps(plan, indent=1, sort_keys=True) + "\n"):
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in plan if before.get(key) != plan[key]]
        if differing:
            raise UsageError(
                f"{out} holds a set with another {' and '.join(differing)} ({path}); "
                "choose another folder, or repeat the command that began it."
            )
    for name in LIBRARIES:
        publish(out / name, lambda target, source=data / name: shutil.copyfile(source, target))  # type: ignore[misc]


@dataclass(frozen=True)
class _Job:
    """One chunk: which share of the pairs it draws from."""

    data: Path
    path: Path
    number: int
    chunks: int
    settings: SyntheticSettings


def _make_chunk(job: _Job) -> tuple[dict[str, int], float]:
    """Make the MOFs of a chunk and publish them; outcomes of its pairs, and CPU time in s."""
    start = time.process_time()
    stock, settings = stock_of(job.data), job.settings
    wanted = min(settings.chunk, settings.count - job.number * settings.chunk)
    made: dict[str, PreparedMof] = {}
    outcomes: Counter[str] = Counter()
    generator = np.random.default_rng([settings.seed, job.number])
    tried: set[Pair] = set()
    for _ in range(DRAWS_PER_PAIR * settings.pairs_per_mof * wanted * job.chunks):
        pair = draw(stock, generator)
        if pair is None or pair in tried or _share(pair, job.chunks) != job.number:
            continue
        tried.add(pair)
        name = f"synthetic-{settings.seed}-{job.number:05d}-{len(made):03d}"
        try:
            outcome = make_mof(pair, stock, name, settings.seed, settings.tries, settings.most_energy_ang2)
        except (ValueError, RuntimeError) as error:  # one odd pair must not stop thousands
            outcome = f"failed ({type(error).__name__})"
        if isinstance(outcome, PreparedMof):
            made[outcome.name] = outcome
        outcomes[MADE if isinstance(outcome, PreparedMof) else outcome] += 1
        if len(made) == wanted or len(tried) == settings.pairs_per_mof * wanted:
            break
    write_prepared(job.path, list(made.values()), {"source": "synthetic", "part": "train", "fully_matched": len(made)})
    return dict(outcomes), time.process_time() - start


def _share(pair: Pair, chunks: int) -> int:
    """The chunk that a pair belongs to."""
    digest = hashlib.sha256(f"{pair.mof} {pair.leaves} {pair.comes}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % chunks
