"""New pairs of nodes and linkers: drawn from what known MOFs are made of, and put together on their nets.

A pair is a training MOF, one of its linkers, and another linker with the same contacts and charge: the node's oxidation
is not known, but the charge that its linkers balanced stays. Only linkers that bite the node alike are tried.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data_prep.match import match_nodes
from data_prep.records import prepare_structure
from data_prep.settings import PrepSettings
from promof_hpc.assembly.assembler import Assembled, FinishSettings, assemble_by_net
from promof_hpc.assembly.components import BuildingBlock, Components, End, crystal_components
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import bite_ang
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.sites import FITTING_BITE_ANG
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import ComponentSet, component_set, sorted_set
from promof_hpc.errors import Refused
from promof_hpc.store.shard import list_names
from promof_hpc.structure import canonical, primitive

Profile = tuple[tuple[tuple[int, ...], ...], int]  # sorted contact patterns of a linker, and its charge


@dataclass(frozen=True)
class Stock:
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
class Pair:
    """A MOF, the linker that leaves it, and where the linker that comes is found."""

    mof: str
    leaves: str
    source: str
    block: int
    comes: str


@lru_cache(maxsize=1)
def stock_of(data: Path) -> Stock:
    """What a training set made by `promof prep` has to draw from."""
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
    return Stock(mofs, linkers, frozenset(known), NodeLibrary.read(data / "nodes.h5"), nets, prep)


def _profile(mof: PreparedMof, block: int) -> Profile:
    """What a linker must share with the one that it replaces."""
    contacts = [c for c in mof.decomposition.contacts if c.linker == block]
    patterns = tuple(sorted(tuple(sorted(c.elements.tolist())) for c in contacts))
    return patterns, mof.decomposition.blocks[block].charge


def draw(stock: Stock, generator: np.random.Generator) -> Pair | None:
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
    return Pair(name, leaves, *options[comes], comes)


def make_mof(pair: Pair, stock: Stock, name: str, seed: int, tries: int, most_energy_ang2: float) -> PreparedMof | str:
    """The synthetic MOF of a pair, or why there is none.

    Blocks have the geometry of the crystals that they come from, as in a real MOF; conformers and templates are matched
    to it afterwards.

    Args:
        seed: of all that is random, together with the pair.
        tries: assemblies at most.
        most_energy_ang2: of snap, above which contacts are strained.
    """
    host, source = (crystal_components(stock.mofs[mof])[0] for mof in (pair.mof, pair.source))
    components = exchanged(host, pair.leaves, source, pair.block)
    if len(components.numbers) > stock.prep.max_atoms:
        return "too large"
    if bite_ang(components) > FITTING_BITE_ANG:
        return "other bite"
    digest = hashlib.sha256(f"{seed} {pair.mof} {pair.leaves} {pair.comes}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, np.uint32))
    finish = FinishSettings(good_ang2=most_energy_ang2)
    assembled = assemble_by_net(components, stock.nets, tries, finish, generator, enough=1)
    if not assembled:
        return "no net"
    passed = [a for a in assembled if a.gate.passed]
    closed = [a for a in passed if a.snap_energy_ang2 <= most_energy_ang2]
    if not closed:
        return "contacts strained" if passed else "gate"
    return _prepared(name, min(closed, key=lambda a: a.snap_energy_ang2), stock)


def _prepared(name: str, assembled: Assembled, stock: Stock) -> PreparedMof | str:
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
