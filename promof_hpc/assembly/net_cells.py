"""A donor's net in another cell, for component sets with more or fewer formula units than the donor's own holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import gcd

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce

from promof_hpc.assembly.net_library import Donor

MOST_UNITS = 4  # cells in one, of either
SAME_PLACE = 1e-6  # of the cell, in the equilibrium placement


def in_cells_of(donor: Donor, blocks: int) -> list[Donor]:
    """The donor in every cell with so many blocks, the most compact cell first; none where there is no such cell."""
    own = len(donor.kinds)
    if blocks % own == 0 and blocks // own <= MOST_UNITS:
        return in_larger_cells(donor, blocks // own)
    if own % blocks == 0 and own // blocks <= MOST_UNITS:
        return in_smaller_cells(donor, own // blocks)
    return []


def in_larger_cells(donor: Donor, factor: int) -> list[Donor]:
    """The donor described in every cell of `factor` times the volume, the most compact cell first.

    Cells are the sublattices of that index, one by Hermite normal form each, with reduced vectors.
    """
    if factor == 1:
        return [donor]
    made = [_in_cell(donor, np.rint(_reduced(basis, donor.cell)).astype(int)) for basis in _sublattices(factor)]
    return sorted(made, key=lambda d: float((d.cell**2).sum()))


def _sublattices(index: int) -> list[np.ndarray]:
    """Bases (rows, in the old vectors) of all sublattices of an index: Hermite normal forms, int [3, 3]."""
    return [
        np.array([[a, 0, 0], [d, b, 0], [e, f, c]])
        for a in range(1, index + 1)
        for b in range(1, index + 1)
        for c in range(1, index + 1)
        if a * b * c == index
        for d in range(a)
        for e in range(a)
        for f in range(b)
    ]


def _reduced(basis: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The same sublattice with the shortest vectors, right-handed."""
    _, change = minkowski_reduce(basis @ cell)
    basis = np.rint(change) @ basis
    reduced: np.ndarray = basis if np.linalg.det(basis) > 0 else -basis
    return reduced


def _in_cell(donor: Donor, basis: np.ndarray) -> Donor:
    """The donor in the cell whose vectors are `basis` (rows, in the old vectors), int [3, 3]."""
    inverse, blocks = np.linalg.inv(basis), len(donor.kinds)
    images = _coset_images(basis, inverse)
    index = {_home(image, basis, inverse)[0]: k for k, image in enumerate(images)}
    edges = []
    for number, image in enumerate(images):
        for node, linker, *shift in donor.edges.tolist():
            home, moved = _home(image + np.array(shift), basis, inverse)
            edges.append((number * blocks + node, index[home] * blocks + linker, *moved))
    count = len(images)
    return replace(
        donor,
        cell=basis @ donor.cell,
        kinds=np.tile(donor.kinds, count),
        centroids=np.concatenate([donor.centroids + image @ donor.cell for image in images]),
        edges=np.array(edges, np.int32),
        elements=donor.elements * count,
        directions=np.tile(donor.directions, (count, 1, 1, 1)),
        lengths=np.tile(donor.lengths, (count, 1)),
    )


def _coset_images(basis: np.ndarray, inverse: np.ndarray) -> list[np.ndarray]:
    """One old cell of each kind in the new cell, in home position, int [3] each."""
    reach = range(int(np.abs(basis).sum()) + 1)
    found: dict[tuple[int, int, int], np.ndarray] = {}
    wanted = round(abs(np.linalg.det(basis)))
    for image in (np.array([a, b, c]) for a in reach for b in reach for c in reach):
        home, _ = _home(image, basis, inverse)
        found.setdefault(home, np.array(home))
        if len(found) == wanted:
            break
    return list(found.values())


def _home(image: np.ndarray, basis: np.ndarray, inverse: np.ndarray) -> tuple[tuple[int, int, int], list[int]]:
    """An old cell brought into the new home cell, and the new cell that it lay in."""
    moved = np.floor(image @ inverse + 1e-6).astype(int)
    a, b, c = (image - moved @ basis).tolist()
    return (int(a), int(b), int(c)), moved.tolist()


def in_smaller_cells(donor: Donor, factor: int) -> list[Donor]:
    """The donor's net described in cells of a `factor` smaller volume, as far as its net repeats there.

    A crystal may repeat only after twice the distance after which its net does, since copies of a block differ. Such
    translations are found in the equilibrium placement of the net, where equivalent vertices lie a translation apart.
    Positions and directions are those of the first copy.
    """
    if factor == 4:  # two steps, as not every such translation group is cyclic
        twice = [d for half in in_smaller_cells(donor, 2) for d in in_smaller_cells(half, 2)]
        return list({tuple(np.round(d.cell, 3).ravel().tolist()): d for d in twice}.values())
    places = _equilibrium(donor)
    found = []
    for numerators in np.ndindex(factor, factor, factor):
        translation = np.array(numerators) / factor
        generates = any(gcd(n, factor) == 1 for n in numerators)
        if not generates or not _first_of_its_line(numerators, factor):
            continue
        moved = _automorphism(donor, places, translation)
        if moved is not None:
            found.append(_quotient(donor, translation, moved, factor))
    return [d for d in found if d is not None]


def _first_of_its_line(numerators: tuple[int, ...], factor: int) -> bool:
    """Whether a translation is the smallest of those that generate the same finer lattice."""
    multiples = [tuple(k * n % factor for n in numerators) for k in range(1, factor) if gcd(k, factor) == 1]
    return tuple(numerators) == min(multiples)


def _equilibrium(donor: Donor) -> np.ndarray:
    """Fractional coordinates [K, 3] at which every vertex is the mean of its neighbours, the first at the origin."""
    count = len(donor.kinds)
    laplacian, right = np.zeros((count, count)), np.zeros((count, 3))
    for p, q, *shift in donor.edges.tolist():
        laplacian[[p, q], [p, q]] += 1.0
        laplacian[[p, q], [q, p]] -= 1.0
        right[p] += shift
        right[q] -= shift
    places = np.linalg.lstsq(laplacian, right, rcond=None)[0]
    return places - places[0]


def _automorphism(donor: Donor, places: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where a translation takes every vertex: (vertex [K], cell [K, 3]); None where the net does not repeat by it."""
    offset = places[:, None] + translation - places[None]
    cell = np.round(offset).astype(int)
    meets = (np.abs(offset - cell).max(-1) < SAME_PLACE) & (donor.kinds[:, None] == donor.kinds[None])
    if not (meets.sum(1) == 1).all() or not (meets.sum(0) == 1).all():  # vertices that collide cannot be told apart
        return None
    vertex = meets.argmax(1)
    cell = cell[np.arange(len(vertex)), vertex]
    sizes = [len(e) for e in donor.elements]
    before = Counter((p, q, *s, m) for (p, q, *s), m in zip(donor.edges.tolist(), sizes, strict=True))
    after: Counter[tuple[int, ...]] = Counter()
    for (p, q, *shift), size in zip(donor.edges.tolist(), sizes, strict=True):
        image = np.array(shift) + cell[q] - cell[p]
        after[int(vertex[p]), int(vertex[q]), *image.tolist(), size] += 1
    return (vertex, cell) if before == after else None


def _quotient(donor: Donor, translation: np.ndarray, moved: tuple[np.ndarray, np.ndarray], factor: int) -> Donor | None:
    """The donor with the vertices that a translation joins made one; None where it fixes a vertex."""
    vertex, cell = moved
    owner, cells = np.full(len(vertex), -1), np.zeros((len(vertex), 3))  # first copy, and the way from it
    for start in range(len(vertex)):
        if owner[start] >= 0:
            continue
        at, way = start, np.zeros(3)
        for _ in range(factor):
            if owner[at] >= 0:
                return None
            owner[at], cells[at] = start, way
            way = way + translation - cell[at]
            at = int(vertex[at])
    kept = np.unique(owner)
    number = {int(v): k for k, v in enumerate(kept)}
    basis = _reduced(_finer_basis(translation, factor), donor.cell)
    inverse = np.linalg.inv(basis)
    edges, chosen = [], []
    for k, (p, q, *shift) in enumerate(donor.edges.tolist()):
        if owner[p] == p:
            image = np.rint((np.array(shift) + cells[q]) @ inverse).astype(int)
            edges.append((number[p], number[int(owner[q])], *image.tolist()))
            chosen.append(k)
    return replace(
        donor,
        cell=basis @ donor.cell,
        kinds=donor.kinds[kept],
        centroids=donor.centroids[kept],
        edges=np.array(edges, np.int32),
        elements=tuple(donor.elements[k] for k in chosen),
        directions=donor.directions[chosen],
        lengths=donor.lengths[chosen],
    )


def _finer_basis(translation: np.ndarray, factor: int) -> np.ndarray:
    """Basis (rows, in the old vectors) of the old lattice and a translation of that order, [3, 3]."""
    numerators = np.rint(translation * factor).astype(int)
    axis = int(np.argmax([gcd(int(n), factor) == 1 for n in numerators]))
    times = pow(int(numerators[axis]), -1, factor)
    basis = np.eye(3)
    basis[axis] = (times * numerators % factor) / factor
    return basis
