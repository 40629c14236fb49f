"""Synthetic MOFs to pretrain on: nodes and linkers never seen together, put together on known nets, gated.

    OUT/ plan.json                  data, count, seed and settings, fixed by the first run
         train/00000.h5 ...         prepared MOFs as those of `promof prep`, published whole
         nodes.h5 ...               the libraries and the vocabulary of the data, which the shards refer to

A pair is a training MOF, one of its linkers, and another linker with the same contacts and charge: the node's oxidation
is not known, but the charge that its linkers balanced stays. Only linkers that bite the node alike are tried. A chunk
draws from its own seed and from its own share of all pairs, so a killed and repeated run publishes the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

import promof_hpc
from data_prep.build import incomplete, not_in, read_plan
from data_prep.match import match_nodes
from data_prep.parallel import Progress, run_jobs
from data_prep.records import prepare_structure
from data_prep.settings import PrepSettings
from promof_hpc.assembly.assembler import Assembled, FinishSettings, assemble_by_net
from promof_hpc.assembly.components import BuildingBlock, Components, End, crystal_components
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import bite_ang
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared, write_prepared
from promof_hpc.assembly.sites import FITTING_BITE_ANG
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import ComponentSet, component_set, sorted_set
from promof_hpc.errors import PromofError, Refused, UsageError
from promof_hpc.store.shard import list_names, publish, publish_text
from promof_hpc.structure import canonical, primitive

LIBRARIES = ("nodes.h5", "nets.h5", "vocabulary.json")
Profile = tuple[tuple[tuple[int, ...], ...], int]  # sorted contact patterns of a linker, and its charge


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


@dataclass(frozen=True)
class _Stock:
    """What pairs are drawn from.

    Attributes:
        mofs: training MOFs with matched geometry, one of each family, by name.
        linkers: MOF and block where a linker with this profile is found, by profile and key.
        known: node keys and linkers that were seen together.
        nodes: the node library; `nets` the net library.
        prep: settings of the preparation, which the new MOFs must meet too.
    """

    mofs: dict[str, PreparedMof]
    linkers: dict[Profile, dict[str, tuple[str, int]]]
    known: frozenset[tuple[str, str]]
    nodes: NodeLibrary
    nets: NetLibrary
    prep: PrepSettings

    @cached_property
    def names(self) -> list[str]:
        """Names of the MOFs, sorted."""
        return sorted(self.mofs)


@dataclass(frozen=True)
class _Pair:
    """A MOF, the linker that leaves it, and where the linker that comes is found."""

    mof: str
    leaves: str
    source: str
    block: int
    comes: str


def _make_chunk(job: _Job) -> tuple[dict[str, int], float]:
    """Make the MOFs of a chunk and publish them; outcomes of its pairs, and CPU time in s."""
    start = time.process_time()
    stock, settings = _stock(job.data), job.settings
    wanted = min(settings.chunk, settings.count - job.number * settings.chunk)
    made: dict[str, PreparedMof] = {}
    outcomes: Counter[str] = Counter()
    generator = np.random.default_rng([settings.seed, job.number])
    tried: set[_Pair] = set()
    for _ in range(DRAWS_PER_PAIR * settings.pairs_per_mof * wanted * job.chunks):
        pair = _draw(stock, generator)
        if pair is None or pair in tried or _share(pair, job.chunks) != job.number:
            continue
        tried.add(pair)
        name = f"synthetic-{settings.seed}-{job.number:05d}-{len(made):03d}"
        try:
            outcome = _make(pair, stock, settings, name)
        except (ValueError, RuntimeError) as error:  # one odd pair must not stop thousands
            outcome = f"failed ({type(error).__name__})"
        if isinstance(outcome, PreparedMof):
            made[outcome.name] = outcome
        outcomes[MADE if isinstance(outcome, PreparedMof) else outcome] += 1
        if len(made) == wanted or len(tried) == settings.pairs_per_mof * wanted:
            break
    write_prepared(job.path, list(made.values()), {"source": "synthetic", "part": "train", "fully_matched": len(made)})
    return dict(outcomes), time.process_time() - start


def _share(pair: _Pair, chunks: int) -> int:
    """The chunk that a pair belongs to."""
    digest = hashlib.sha256(f"{pair.mof} {pair.leaves} {pair.comes}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % chunks


@lru_cache(maxsize=1)
def _stock(data: Path) -> _Stock:
    plan = json.loads((data / "plan.json").read_text(encoding="utf-8"))
    names = {f.name for f in fields(PrepSettings)} - {"split"}
    prep = PrepSettings(**{k: v for k, v in plan["settings"].items() if k in names})
    nets = NetLibrary.read(data / "nets.h5")
    families = {d.name for d in nets.donors}
    mofs: dict[str, PreparedMof] = {}
    linkers: dict[Profile, dict[str, tuple[str, int]]] = {}
    known: set[tuple[str, str]] = set()
    for shard in list_names(data / "train", ".h5"):
        for mof in read_prepared(data / "train" / shard):
            pair = component_set(mof.decomposition)
            known.update((n, q) for n in set(pair.nodes) for q in set(pair.linkers))
            if mof.name not in families or not mof.fully_matched:
                continue
            mofs[mof.name] = mof
            for k, block in enumerate(mof.decomposition.blocks):
                if block.kind is Kind.ORGANIC:
                    linkers.setdefault(_profile(mof, k), {}).setdefault(block.key, (mof.name, k))
    return _Stock(mofs, linkers, frozenset(known), NodeLibrary.read(data / "nodes.h5"), nets, prep)


def _profile(mof: PreparedMof, block: int) -> Profile:
    """What a linker must share with the one that it replaces."""
    contacts = [c for c in mof.decomposition.contacts if c.linker == block]
    patterns = tuple(sorted(tuple(sorted(c.elements.tolist())) for c in contacts))
    return patterns, mof.decomposition.blocks[block].charge


def _draw(stock: _Stock, generator: np.random.Generator) -> _Pair | None:
    """A random pair that was never seen together; None where the draw finds none."""
    name = stock.names[int(generator.integers(len(stock.names)))]
    mof = stock.mofs[name]
    parts = component_set(mof.decomposition)
    leaves = sorted(set(parts.linkers))[int(generator.integers(len(set(parts.linkers))))]
    copies = [k for k, b in enumerate(mof.decomposition.blocks) if b.key == leaves]
    profiles = {_profile(mof, k) for k in copies}
    if len(profiles) != 1:
        return None
    options = stock.linkers.get(profiles.pop(), {})
    new = sorted(k for k in options if k not in parts.linkers and all((n, k) not in stock.known for n in parts.nodes))
    if not new:
        return None
    comes = new[int(generator.integers(len(new)))]
    return _Pair(name, leaves, *options[comes], comes)


def _make(pair: _Pair, stock: _Stock, settings: SyntheticSettings, name: str) -> PreparedMof | str:
    """The synthetic MOF of a pair, or why there is none.

    Blocks have the geometry of the crystals that they come from, as in a real MOF; conformers and templates are matched
    to it afterwards.
    """
    host, source = (crystal_components(stock.mofs[mof])[0] for mof in (pair.mof, pair.source))
    components = exchanged(host, pair.leaves, source, pair.block)
    if len(components.numbers) > stock.prep.max_atoms:
        return "too large"
    if bite_ang(components) > FITTING_BITE_ANG:
        return "other bite"
    seed = hashlib.sha256(f"{settings.seed} {pair.mof} {pair.leaves} {pair.comes}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(seed, np.uint32))
    finish = FinishSettings(good_ang2=settings.most_energy_ang2)
    assembled = assemble_by_net(components, stock.nets, settings.tries, finish, generator, enough=1)
    if not assembled:
        return "no net"
    passed = [a for a in assembled if a.gate.passed]
    closed = [a for a in passed if a.snap_energy_ang2 <= settings.most_energy_ang2]
    if not closed:
        return "contacts strained" if passed else "gate"
    return _prepared(name, min(closed, key=lambda a: a.snap_energy_ang2), stock)


def _prepared(name: str, assembled: Assembled, stock: _Stock) -> PreparedMof | str:
    """An assembly as a prepared MOF with matched geometry, or why it is none."""
    try:
        cell = canonical(primitive(assembled.structure))
        mof = prepare_structure(name, cell, {}, replace(stock.prep, conformers=True))
    except Refused as refusal:
        return str(refusal.reason)
    nodes = match_nodes(mof.decomposition, stock.nodes)
    matched = tuple(a or b for a, b in zip(nodes, mof.matched, strict=True))
    return replace(mof, matched=matched) if None not in matched else "no template"


def exchanged(components: Components, leaves: str, source: Components, block: int) -> Components:
    """Components with every linker `leaves` replaced by a block of another set.

    Args:
        leaves: key of the linker that goes.
        block: the linker in `source` that comes; it must have as many contacts of every pattern.
    """
    new = source.blocks[block]
    new_ends = [e for e in source.linker_ends if e.block == block]
    built: list[tuple[BuildingBlock, list[End]]] = []
    for k, old in enumerate(components.blocks):
        if old.kind is Kind.METAL:
            built.append((old, [e for e in components.node_ends if e.block == k]))
        elif old.key == leaves:
            built.append((new, new_ends))
        else:
            built.append((old, [e for e in components.linker_ends if e.block == k]))
    nodes = [b for b in built if b[0].kind is Kind.METAL]
    order = sorted_set([b.key for b, _ in nodes], {b.key for b, _ in built if b.kind is Kind.ORGANIC}).linkers
    linkers = sorted((b for b in built if b[0].kind is Kind.ORGANIC), key=lambda b: order.index(b[0].key))
    ends = [[replace(e, block=k) for e in mine] for k, (_, mine) in enumerate([*nodes, *linkers])]
    text = ComponentSet(tuple(b.key for b, _ in nodes), tuple(b.key for b, _ in linkers)).sequence
    return Components(
        blocks=tuple(b for b, _ in [*nodes, *linkers]),
        node_ends=tuple(e for mine in ends[: len(nodes)] for e in mine),
        linker_ends=tuple(e for mine in ends[len(nodes) :] for e in mine),
        sequence=text,
    )
