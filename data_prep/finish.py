"""From prepared chunks to a training set: split, libraries of the training part, shards with node templates, tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_prep.libraries import net_library, node_library, observed_nodes
from data_prep.match import match_nodes
from data_prep.parallel import Progress, run_jobs
from data_prep.records import Rejection, read_records
from data_prep.settings import PrepSettings
from data_prep.split import Part, Split, linker_skeleton, split_by_skeleton
from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import MatchedBlock, PreparedMof
from promof_hpc.assembly.prepared_shard import write_prepared
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import build_vocabulary
from promof_hpc.store.shard import list_names, publish, publish_text, read_shard

SMALL_ATOMS, SMALL_BLOCKS = 120, 12  # what a first policy assembles; the test part must hold enough of them


@dataclass(frozen=True)
class Fact:
    """One prepared MOF, without its geometry."""

    name: str
    chunk: Path
    linkers: frozenset[str]
    atoms: int
    blocks: int

    @property
    def small(self) -> bool:
        """Within what a first policy assembles."""
        return self.atoms <= SMALL_ATOMS and self.blocks <= SMALL_BLOCKS


@dataclass(frozen=True)
class Counts:
    """What a training set holds.

    Attributes:
        accepted: prepared MOFs.
        rejected: rejections by reason, the commonest first.
        parts: MOFs of each part.
        small: those of at most 120 atoms and 12 blocks.
        matched: MOFs of each part of which every block has a matched geometry.
        linkers: distinct linkers; `skeletons` their bare graphs, `held_out` those kept from training.
        node_keys: distinct node keys in the library; `templates` their geometries.
        nets: distinct nets in the library; `donors` the MOFs that lend them.
        tokens: size of the vocabulary.
    """

    accepted: int
    rejected: dict[str, int]
    parts: dict[str, int]
    small: dict[str, int]
    matched: dict[str, int]
    linkers: int
    skeletons: int
    held_out: int
    node_keys: int
    templates: int
    nets: int
    donors: int
    tokens: int

    def lines(self) -> list[str]:
        """The counts for people."""
        return [
            *(
                f"  {part:<6}{self.parts[part]:>6} MOFs, {self.small[part]} of them with at most {SMALL_ATOMS} atoms "
                f"and {SMALL_BLOCKS} blocks; {self.matched[part]} fully matched"
                for part in self.parts
            ),
            f"  {self.linkers} linkers of {self.skeletons} skeletons ({self.held_out} held out), "
            f"{self.templates} templates of {self.node_keys} nodes, {self.donors} donors of {self.nets} nets, "
            f"{self.tokens} tokens",
            "  left out: " + (", ".join(f"{reason} {n}" for reason, n in self.rejected.items()) or "none"),
        ]


def finish(
    folder: Path, chunks: Sequence[Path], settings: PrepSettings, source: str, workers: int, report: Progress
) -> Counts:
    """Write everything that follows from the chunks and is not there yet.

    Args:
        chunks: every chunk of the source, in order.
        source: its name, for the attributes of the shards.
    """
    facts, rejections = _survey(chunks, report)
    split = split_by_skeleton({f.name: _skeletons(f) for f in facts}, settings.split)
    _publish_split(folder, split, settings)
    _publish_rejections(folder, rejections)
    _publish_libraries(folder, chunks, split, report)
    _publish_shards(folder, facts, split, {"source": source, "settings": settings.as_json()}, settings, workers, report)
    return _count(folder, facts, rejections, split)


def _survey(chunks: Sequence[Path], report: Progress) -> tuple[list[Fact], list[Rejection]]:
    """What the chunks hold, in order."""
    facts, rejections = [], []
    for number, path in enumerate(chunks):
        records = read_records(path, molecules=False)
        rejections += records.rejections
        for mof in records.mofs:
            blocks = mof.decomposition.blocks
            linkers = frozenset(b.key for b in blocks if b.kind is Kind.ORGANIC)
            facts.append(Fact(mof.name, path, linkers, sum(len(b.numbers) for b in blocks), len(blocks)))
        report("survey", number + 1, len(chunks))
    return facts, rejections


def _skeletons(fact: Fact) -> frozenset[str]:
    return frozenset(linker_skeleton(key) for key in fact.linkers)


def _publish_split(folder: Path, split: Split, settings: PrepSettings) -> None:
    content = {
        "settings": asdict(settings.split),
        "parts": {str(p): split.names(p) for p in Part},
        "held_out_skeletons": {s: str(p) for s, p in sorted(split.held_out.items())},
    }
    publish_text(folder / "split.json", json.dumps(content, indent=1) + "\n")


def _publish_rejections(folder: Path, rejections: Sequence[Rejection]) -> None:
    """The table of rejections, as Parquet and as CSV."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    columns = {name: [str(getattr(r, name)) for r in rejections] for name in ("name", "reason", "detail")}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    publish(folder / "rejections.parquet", lambda path: pyarrow.parquet.write_table(table, path))
    publish(folder / "rejections.csv", lambda path: pyarrow.csv.write_csv(table, path))


def _publish_libraries(folder: Path, chunks: Sequence[Path], split: Split, report: Progress) -> None:
    """Node, net and linker library and vocabulary, all from the training part alone; what is there already stays."""
    there = set(list_names(folder))
    missing = [name for name in LIBRARIES if name not in there]
    if not missing:
        return
    report("libraries", 0, len(missing))
    training = [m for m in _mofs(chunks) if split.part[m.name] is Part.TRAIN]
    for number, name in enumerate(missing):
        LIBRARIES[name](training, folder / name)
        report("libraries", number + 1, len(missing))


def _write_vocabulary(training: Sequence[PreparedMof], path: Path) -> None:
    publish_text(path, json.dumps(list(build_vocabulary(m.sequence for m in training).tokens)) + "\n")


OF_TRAINING: dict[str, str | int | float | bool] = {"split": str(Part.TRAIN)}
LIBRARIES: Mapping[str, Callable[[Sequence[PreparedMof], Path], object]] = {
    "nodes.h5": lambda training, path: node_library(observed_nodes(training)).write(path, OF_TRAINING),
    "nets.h5": lambda training, path: net_library(training).write(path, OF_TRAINING),
    "linkers.h5": lambda training, path: LinkerLibrary.of(training).write(path, OF_TRAINING),
    "vocabulary.json": _write_vocabulary,
}


def _mofs(chunks: Sequence[Path]) -> Iterator[PreparedMof]:
    for path in chunks:
        yield from read_records(path).mofs


@dataclass(frozen=True)
class _ShardJob:
    """A finished shard: which MOFs of which chunks go into it."""

    path: Path
    members: tuple[tuple[Path, frozenset[str]], ...]
    nodes: Path
    attrs: Mapping[str, str]


def _publish_shards(
    folder: Path,
    facts: Sequence[Fact],
    split: Split,
    attrs: Mapping[str, str],
    settings: PrepSettings,
    workers: int,
    report: Progress,
) -> None:
    """The finished shards of every part."""
    chunk_of = {f.name: f.chunk for f in facts}
    jobs = []
    for part in Part:
        target = folder / str(part)
        target.mkdir(exist_ok=True)
        there, names = set(list_names(target, ".h5")), split.names(part)
        for number, start in enumerate(range(0, len(names), settings.shard)):
            chosen = names[start : start + settings.shard]
            members = tuple(
                (path, frozenset(n for n in chosen if chunk_of[n] == path))
                for path in sorted({chunk_of[n] for n in chosen})
            )
            path = target / f"{number:05d}.h5"
            if path.name not in there:
                jobs.append(_ShardJob(path, members, folder / "nodes.h5", {**attrs, "part": str(part)}))
    done = 0

    def finished(job: _ShardJob, mofs: int) -> None:
        nonlocal done
        done += 1
        report("shards", done, len(jobs))

    for job in run_jobs(_write_shard, jobs, workers, finished):
        finished(job, _write_shard(job))


def _write_shard(job: _ShardJob) -> int:
    """Add node templates to the MOFs of a shard and publish it."""
    library = NodeLibrary.read(job.nodes)
    mofs = [
        _with_nodes(mof, library) for path, names in job.members for mof in read_records(path).mofs if mof.name in names
    ]
    attrs: dict[str, str | int | float | bool] = {**job.attrs, "fully_matched": sum(m.fully_matched for m in mofs)}
    write_prepared(job.path, sorted(mofs, key=lambda m: m.name), attrs)
    return len(mofs)


def _with_nodes(mof: PreparedMof, library: NodeLibrary) -> PreparedMof:
    nodes = match_nodes(mof.decomposition, library)
    linkers: tuple[MatchedBlock | None, ...] = mof.matched or (None,) * len(nodes)
    return replace(mof, matched=tuple(a or b for a, b in zip(nodes, linkers, strict=True)))


def _count(folder: Path, facts: Sequence[Fact], rejections: Sequence[Rejection], split: Split) -> Counts:
    nodes, nets = NodeLibrary.read(folder / "nodes.h5"), NetLibrary.read(folder / "nets.h5")
    matched = {
        str(part): sum(
            int(read_shard(folder / str(part) / name).attrs["fully_matched"])
            for name in list_names(folder / str(part), ".h5")
        )
        for part in Part
    }
    return Counts(
        accepted=len(facts),
        rejected=dict(Counter(r.reason for r in rejections).most_common()),
        parts={str(p): sum(split.part[f.name] is p for f in facts) for p in Part},
        small={str(p): sum(split.part[f.name] is p and f.small for f in facts) for p in Part},
        matched=matched,
        linkers=len({key for f in facts for key in f.linkers}),
        skeletons=len({s for f in facts for s in _skeletons(f)}),
        held_out=len(split.held_out),
        node_keys=len(nodes.by_key),
        templates=len(nodes),
        nets=len({d.net_key for d in nets.donors}),
        donors=len(nets.donors),
        tokens=len(json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))),
    )
