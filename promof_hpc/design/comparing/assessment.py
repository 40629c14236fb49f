"""How well held-out component sets are put together: gate passes and matches within so many tries, method by method.

Methods share component sets, finisher and gate; they differ in where the poses come from (`Method`). A match is
pymatgen's StructureMatcher (stol 0.5, ltol 0.3, angle 10); a metal match compares the metals alone (0.3, 0.2, 8) at a
volume within 0.75 to 1.33 of the crystal's. A raw assembly can match without one closed contact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure as PymatgenStructure

from promof_hpc.assembly.assembler import Assembled, FinishSettings, finish
from promof_hpc.assembly.components import Components, crystal_components, matched_components
from promof_hpc.assembly.net_start import NetStart, net_starts
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.snap import MODEL_BLOCK_ERROR_ANG, SnapSettings
from promof_hpc.assembly.stack import poses_of, stack
from promof_hpc.chem.blocks import Decomposition
from promof_hpc.chem.bonds import is_metal
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.starts import launch
from promof_hpc.errors import Refused, UsageError
from promof_hpc.policy.contact_head import preference
from promof_hpc.policy.flow import prior, solve
from promof_hpc.policy.weights import load_engineer
from promof_hpc.store.shard import list_names
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    from promof_hpc.assembly.prepared import PreparedMof
    from promof_hpc.policy.engineer import Engineer

WITHIN = (1, 4, 16, 64)
MOST_MATCHED = 16  # comparisons for one method and set: a StructureMatcher can take seconds
VOLUME_RATIOS = (0.75, 1.33)
CHUNK = 16
CYCLE_RANKS = ((0, 5), (6, 8), (9, 11), (12, 10_000))


class _Named(StrEnum):
    """A choice whose unknown names are refused in one sentence."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        raise UsageError(f"unknown {cls.__name__.lower()} '{value}'; known: {', '.join(cls)}")


class Geometry(_Named):
    """What blocks look like before they are put together."""

    CRYSTAL = "crystal"  # as in the crystal
    MATCHED = "matched"  # conformers and templates that come nearest to the crystal's
    REALISED = "realised"  # conformers and templates as in a campaign, which knows the component set alone


class Method(_Named):
    """Where poses come from."""

    RANDOM = "random"  # the prior, snap
    RAW_FLOW = "raw_flow"  # the prior, flow, no snap: the paper's assembly
    FLOW = "flow"  # the prior, flow, snap
    NET = "net"  # nets of known MOFs, snap; no policy
    NET_FLOW = "net_flow"  # nets ranked by the contact head, noised, flow, snap on the net's contacts


TOGETHER = ((Method.RANDOM,), (Method.RAW_FLOW, Method.FLOW), (Method.NET,), (Method.NET_FLOW,))
"""Methods that finish the same poses are assessed together."""


@dataclass(frozen=True)
class AssessSettings:
    """What is tried.

    Attributes:
        geometry: of the blocks.
        tries: assemblies of each set and method.
        seed: of everything random.
        max_atoms, max_blocks: larger sets are left out.
        volume_per_atom_ang3: sets whose crystal lies outside are left out (as in the measured baseline).
        flow_steps: of the solver from noise; a start at time t takes its share.
        snap_tries: starts that snap may use for one assembly.
        contact_weight: of the contact head's logits in snap's cost of who meets whom (flow), in Å².
        start_time: flow time to which net starts are noised.
    """

    geometry: Geometry = Geometry.CRYSTAL
    tries: int = 64
    seed: int = 0
    max_atoms: int = 120
    max_blocks: int = 12
    volume_per_atom_ang3: tuple[float, float] = (11.0, 30.0)
    flow_steps: int = 25
    snap_tries: int = 1
    contact_weight: float = 5.0
    start_time: float = 0.6


@dataclass(frozen=True)
class Tools:
    """What assembling needs; the same for every set."""

    libraries: Libraries
    engineer: Engineer | None

    @classmethod
    def load(cls, data: str, weights: str) -> Tools:
        """The libraries of a prepared folder and the engineer of a weights folder (`none`: no engineer)."""
        return cls(Libraries.read(data), None if weights == "none" else load_engineer(weights).network)


@dataclass(frozen=True)
class Record:
    """What one method did with one component set.

    Attributes:
        name: the MOF; `method` as in `Method`.
        cycle_rank: contacts - blocks + 1.
        gate: of every try, in order.
        match, metal_match: tries that match the crystal, of those compared (the first `MOST_MATCHED` that passed the
            gate; for raw assemblies the first tries whatever the gate said).
        refused: why nothing could be tried; empty otherwise.
    """

    name: str
    method: str
    cycle_rank: int
    gate: tuple[bool, ...] = ()
    match: tuple[int, ...] = ()
    metal_match: tuple[int, ...] = ()
    refused: str = ""

    def first(self, what: str) -> int | None:
        """Number of the first try with `what` (gate, match or metal_match)."""
        if what == "gate":
            return next((k for k, passed in enumerate(self.gate) if passed), None)
        return min(getattr(self, what), default=None)

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of `to_json`."""
        values = json.loads(text)
        for name in ("gate", "match", "metal_match"):
            values[name] = tuple(values[name])
        return cls(**values)


def held_out(data: str, settings: AssessSettings) -> list[PreparedMof]:
    """The held-out sets of a prepared folder that are assessed: small enough, one net, of usual density.

    They share no linker skeleton with the training part, from which all libraries come.
    """
    low, high = settings.volume_per_atom_ang3
    folder = Libraries.read(data).folder / "test"
    kept = []
    for mof in (m for name in list_names(folder, ".h5") for m in read_prepared(folder / name)):
        found = mof.decomposition
        per_atom = found.structure.volume / len(found.structure)
        small = len(found.structure) <= settings.max_atoms and len(found.blocks) <= settings.max_blocks
        if small and found.components == 1 and found.dimensionality == 3 and low < per_atom < high:
            kept.append(mof)
    return kept


def cycle_rank(found: Decomposition) -> int:
    """Independent cycles of the net: contacts - blocks + 1; the hard class has 9 and more."""
    return len(found.contacts) - len(found.blocks) + 1


def assess_set(mof: PreparedMof, methods: Sequence[Method], settings: AssessSettings, tools: Tools) -> list[Record]:
    """Put one component set together `tries` times and compare with the crystal.

    Args:
        methods: one entry of `TOGETHER`; a record each is returned.
    """
    records = [Record(mof.name, str(m), cycle_rank(mof.decomposition)) for m in methods]
    # a seed of the set's own, so that its record depends neither on other sets nor on other methods
    generator = np.random.default_rng(np.random.SeedSequence([settings.seed, *mof.name.encode()]))
    try:
        components = _components(mof, settings, tools, generator)
        starts = _starts(components, methods[0], settings, tools, generator)
    except (ValueError, Refused) as error:
        return [replace(r, refused=str(error)) for r in records]
    results: list[list[Assembled]] = [[] for _ in methods]
    total = len(starts) if starts else settings.tries
    for first in range(0, total, CHUNK):
        some = starts[first : first + CHUNK]
        seed = int(generator.integers(2**62))
        tried = _tried(components, methods, settings, tools, some, min(CHUNK, total - first), seed)
        results = [[*before, *now] for before, now in zip(results, tried, strict=True)]
    return [
        _compared(replace(r, gate=tuple(a.gate.passed for a in done)), done, mof.decomposition.structure)
        for r, done in zip(records, results, strict=True)
    ]


def ranked(components: Components, starts: Sequence[NetStart], engineer: Engineer) -> list[NetStart]:
    """Net starts in the order of what the contact head thinks of the pairs that they propose."""
    scores = preference(engineer, components, starts)
    return [starts[k] for k in sorted(range(len(starts)), key=lambda k: (-scores[k], k))]


def table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Shares of sets with a gate pass, a match and a metal match within so many tries, by method and cycle rank."""
    rows = []
    for method in Method:
        mine = [r for r in records if r.method == method]
        for low, high in ((0, CYCLE_RANKS[-1][1]), *CYCLE_RANKS):
            group = [r for r in mine if low <= r.cycle_rank <= high]
            if not group:
                continue
            row: dict[str, Any] = {"method": str(method), "cycle_rank": (low, high), "sets": len(group)}
            row["tried"] = sum(not r.refused for r in group) / len(group)
            for name in ("gate", "match", "metal_match"):
                firsts = [r.first(name) for r in group]
                row |= {f"{name}@{n}": sum(f is not None and f < n for f in firsts) / len(group) for n in WITHIN}
            row["passing_tries"] = float(np.mean([np.mean(r.gate) if r.gate else 0.0 for r in group]))
            rows.append(row)
    return rows


def as_markdown(rows: Sequence[dict[str, Any]], settings: AssessSettings) -> str:
    """The table for people: all sets of every method first, then by cycle rank."""
    heads = [f"{what}@{n}" for what in ("gate", "match", "metal_match") for n in WITHIN]
    lines = [
        f"Held-out component sets, {settings.geometry} block geometry, at most {settings.max_atoms} atoms and "
        f"{settings.max_blocks} blocks, {settings.tries} tries each. Share of sets with at least one assembly that",
        "passes the gate, matches the crystal, or whose metals match, within so many tries. Sets that were not tried",
        "(no geometry of that kind, no known net of their signature) count as failures.",
        "",
        "| method | cycle rank | sets | tried | "
        + " | ".join(h.replace("_", " ") for h in heads)
        + " | tries that pass |",
        "|---" * (len(heads) + 5) + "|",
    ]
    everything = (0, CYCLE_RANKS[-1][1])
    for row in sorted(rows, key=lambda r: r["cycle_rank"] != everything):
        low, high = row["cycle_rank"]
        ranks = "all" if (low, high) == everything else f"{low}-{high}" if high < everything[1] else f">= {low}"
        shares = " | ".join(f"{row[h]:.2f}" for h in ("tried", *heads))
        lines.append(f"| {row['method']} | {ranks} | {row['sets']} | {shares} | {row['passing_tries']:.3f} |")
    return "\n".join(lines) + "\n"


def _starts(
    components: Components, method: Method, settings: AssessSettings, tools: Tools, generator: np.random.Generator
) -> list[NetStart]:
    """Net starts of a method that begins with nets, in its order; none of another.

    Raises:
        ValueError: no known net has the signature.
    """
    if method not in (Method.NET, Method.NET_FLOW):
        return []
    starts = net_starts(components, tools.libraries.nets, settings.tries, generator)
    if not starts:
        raise ValueError("no net of this signature")
    return ranked(components, starts, _engineer(tools)) if method is Method.NET_FLOW else starts


def _tried(
    components: Components,
    methods: Sequence[Method],
    settings: AssessSettings,
    tools: Tools,
    starts: Sequence[NetStart],
    count: int,
    seed: int,
) -> list[list[Assembled]]:
    """`count` assemblies by each method, from the same poses."""
    fixed = stack([components] * count)
    generator = torch.Generator().manual_seed(seed)
    nets: Sequence[NetStart | None] = starts
    logits = None
    if methods[0] is Method.NET:
        poses = poses_of([s.solution for s in starts], fixed)
    elif methods[0] is Method.RANDOM:
        poses = prior(fixed, generator).poses()
    elif methods[0] is Method.NET_FLOW:
        begin = launch(fixed, starts, settings.start_time, generator)
        steps = max(2, round(settings.flow_steps * (1.0 - settings.start_time)))
        nets, poses = begin.nets, solve(_engineer(tools), fixed, begin.x0, begin.times, steps).poses()
    else:
        engineer = _engineer(tools)
        end = solve(engineer, fixed, prior(fixed, generator), 0.0, settings.flow_steps)
        poses = end.poses()
        if engineer.contact_head is not None:
            with torch.no_grad():
                logits = engineer.contact_logits(engineer.prepare(fixed), end, torch.ones(count))
    return [
        finish(fixed, poses, _finishing(m, settings), starts=nets or None, logits=logits, seed=seed % 2**31)
        for m in methods
    ]


def _finishing(method: Method, settings: AssessSettings) -> FinishSettings:
    if method is Method.RAW_FLOW:
        return FinishSettings(snap=None)
    error = 0.0 if settings.geometry is Geometry.CRYSTAL else MODEL_BLOCK_ERROR_ANG
    snap = SnapSettings(tries=settings.snap_tries, contact_weight=settings.contact_weight, block_error_ang=error)
    return FinishSettings(snap=snap)


def _engineer(tools: Tools) -> Engineer:
    if tools.engineer is None:
        raise ValueError("this method needs an engineer")
    return tools.engineer


def _components(mof: PreparedMof, settings: AssessSettings, tools: Tools, generator: np.random.Generator) -> Components:
    """The blocks of a set with the geometry that is wanted.

    Raises:
        ValueError: no matched geometry.
        Refused: the set cannot be realised.
    """
    nodes = tools.libraries.nodes
    if settings.geometry is Geometry.CRYSTAL:
        return crystal_components(mof)[0]
    if settings.geometry is Geometry.MATCHED:
        return matched_components(mof, nodes, same_place_ang=math.inf)[0]
    asked = parse_sequence(mof.sequence, nodes.by_key)
    return tools.libraries.realiser(settings.max_atoms).realise(asked, generator)


def _compared(record: Record, results: Sequence[Assembled], crystal: Structure) -> Record:
    """The record with matches: of those that passed the gate, of raw assemblies whatever the gate said."""
    raw = record.method == Method.RAW_FLOW
    compared = [k for k, r in enumerate(results) if raw or r.gate.passed][:MOST_MATCHED]
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    metal_matcher = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=8, primitive_cell=False)
    ours, metals = _pymatgen(crystal), _pymatgen(_metals(crystal))
    match, metal_match = [], []
    for k in compared:
        structure = results[k].structure
        if not np.isfinite(structure.positions).all() or structure.volume < len(structure):
            continue
        if matcher.fit(_pymatgen(structure), ours):
            match.append(k)
        like = VOLUME_RATIOS[0] < structure.volume / crystal.volume < VOLUME_RATIOS[1]
        if like and metal_matcher.fit(_pymatgen(_metals(structure)), metals):
            metal_match.append(k)
    return replace(record, match=tuple(match), metal_match=tuple(metal_match))


def _metals(structure: Structure) -> Structure:
    chosen = np.array([is_metal(int(z)) for z in structure.numbers])
    return Structure(structure.numbers[chosen], structure.positions[chosen], structure.cell)


def _pymatgen(structure: Structure) -> PymatgenStructure:
    return PymatgenStructure(structure.cell, structure.numbers, structure.positions, coords_are_cartesian=True)
