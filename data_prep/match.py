"""Matched geometry: what a sampler would have in its hands (conformer, node template), laid on the crystal's blocks."""

from __future__ import annotations

import numpy as np

from promof_hpc.assembly.node_library import NodeLibrary, NodeTemplate, pattern_of
from promof_hpc.assembly.prepared import NO_TEMPLATE, MatchedBlock
from promof_hpc.chem.blocks import Block, Contact, Decomposition, Kind
from promof_hpc.chem.conformer import heavy_mask, match
from promof_hpc.geometry.point_match import PointMatch, match_points
from promof_hpc.geometry.rotation import Superposition, superpose

SAME_COPY_ANG = 0.02  # copies of a linker this alike (symmetry) share one conformer
SITE_WEIGHT = 0.1  # sites orient a node whose atoms do not (one or two metals), and hardly move one whose atoms do
TEMPLATES_TRIED = 4


def match_linkers(decomposition: Decomposition, seed: int) -> tuple[MatchedBlock | None, ...]:
    """A matched conformer for every linker; None for nodes.

    Raises:
        Refused: a linker has no conformer.
    """
    done: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    fitted: list[MatchedBlock | None] = []
    for block in decomposition.blocks:
        if block.mol is None:
            fitted.append(None)
            continue
        crystal, heavy = block.positions, heavy_mask(block.mol)
        copies = done.setdefault(block.key, [])
        local = next(
            (own for seen, own in copies if superpose(seen[heavy], crystal[heavy]).rmsd_ang < SAME_COPY_ANG), None
        )
        if local is None:
            local = match(block.mol, crystal, block.torsions, seed).local
            copies.append((crystal, local))
        fitted.append(_placed(local, superpose(local[heavy], crystal[heavy])))
    return tuple(fitted)


def match_nodes(decomposition: Decomposition, library: NodeLibrary) -> tuple[MatchedBlock | None, ...]:
    """The library template nearest to every node; None for linkers and for nodes without a template of their key."""
    return tuple(
        _match_node(block, contacts_of(decomposition, k), library) if block.kind is Kind.METAL else None
        for k, block in enumerate(decomposition.blocks)
    )


def contacts_of(decomposition: Decomposition, block: int) -> tuple[Contact, ...]:
    """The contacts of one node."""
    return tuple(c for c in decomposition.contacts if c.node == block)


def node_points(
    numbers: np.ndarray, local: np.ndarray, elements: list[np.ndarray], sites: list[np.ndarray]
) -> tuple[np.ndarray, list[str]]:
    """Atoms and sites of a node as labelled points [p, 3]: sites are told apart by element and size of the contact."""
    labels = [f"atom {z}" for z in numbers.tolist()]
    labels += [f"site {len(e)} {z}" for e in elements for z in e.tolist()]
    return np.concatenate([local, *sites]), labels


def fingerprint(points: np.ndarray) -> np.ndarray:
    """Sorted distances between all points: alike for alike sets, without any pairing."""
    upper = np.triu_indices(len(points), 1)
    distances: np.ndarray = np.linalg.norm(points[upper[0]] - points[upper[1]], axis=1)
    return np.sort(distances)


def nearest(fingerprints: list[np.ndarray], wanted: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` fingerprints closest to `wanted`."""
    gaps = [float(np.sqrt(np.mean((f - wanted) ** 2))) if len(wanted) else 0.0 for f in fingerprints]
    return sorted(range(len(gaps)), key=lambda k: gaps[k])[:count]


def _match_node(block: Block, contacts: tuple[Contact, ...], library: NodeLibrary) -> MatchedBlock | None:
    indices = library.by_key.get(block.key, ())
    same = [k for k in indices if library.templates[k].pattern == pattern_of(contacts)]
    # without a template of the same contacts the atoms alone decide
    with_sites = bool(same)
    chosen = same or list(indices)
    mine = _points(block.numbers, block.local, contacts, with_sites)
    theirs = [_template_points(library.templates[k], with_sites) for k in chosen]
    order = nearest([fingerprint(points) for points, _ in theirs], fingerprint(mine[0]), TEMPLATES_TRIED)
    best: MatchedBlock | None = None
    for k in order:
        found = _lay(theirs[k], mine, len(block.numbers))
        if found is None:
            continue
        rmsd = _atom_rmsd(library.templates[chosen[k]].local, found, block.local)
        if best is None or rmsd < best.rmsd_ang - 1e-6:
            local = library.templates[chosen[k]].local[found.order[: len(block.numbers)]]
            offset = found.fit.apply(np.zeros(3))
            best = MatchedBlock(
                local=local,
                rotation=block.rotation @ found.fit.rotation,
                centroid=block.centroid + block.rotation @ offset,
                rmsd_ang=rmsd,
                template=chosen[k],
            )
    return best


def _points(
    numbers: np.ndarray, local: np.ndarray, contacts: tuple[Contact, ...], with_sites: bool
) -> tuple[np.ndarray, list[str]]:
    used = contacts if with_sites else ()
    return node_points(numbers, local, [c.elements for c in used], [c.sites for c in used])


def _template_points(template: NodeTemplate, with_sites: bool) -> tuple[np.ndarray, list[str]]:
    used = template.contacts if with_sites else ()
    return node_points(template.numbers, template.local, [c.elements for c in used], [c.sites for c in used])


def _lay(moving: tuple[np.ndarray, list[str]], fixed: tuple[np.ndarray, list[str]], atoms: int) -> PointMatch | None:
    """Lay template points on those of a node; the first `atoms` points weigh more than the sites."""
    weights = np.where(np.arange(len(fixed[1])) < atoms, 1.0, SITE_WEIGHT)
    return match_points(moving[0], moving[1], fixed[0], fixed[1], weights)


def _atom_rmsd(template: np.ndarray, found: PointMatch, crystal: np.ndarray) -> float:
    moved = found.fit.apply(template[found.order[: len(crystal)]])
    return float(np.sqrt(((moved - crystal) ** 2).sum(1).mean()))


def _placed(local: np.ndarray, fit: Superposition) -> MatchedBlock:
    return MatchedBlock(local, fit.rotation, fit.apply(np.zeros(3)), fit.rmsd_ang, NO_TEMPLATE)
