"""A donor's net in a larger cell: for component sets with more formula units than the donor's own cell holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce

from promof_hpc.assembly.net_library import Donor


def in_larger_cells(donor: Donor, factor: int) -> list[Donor]:
    """The donor described in every cell of `factor` times the volume, the most compact cell first.

    Cells are the sublattices of that index, one by Hermite normal form each, with reduced vectors.
    """
    if factor == 1:
        return [donor]
    made = [_in_cell(donor, _reduced(basis, donor.cell)) for basis in _sublattices(factor)]
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
    basis = np.asarray(change, int) @ basis
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
