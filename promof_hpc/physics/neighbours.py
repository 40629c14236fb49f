"""Pairs of atoms within a cutoff, images included, for cells of any shape, size and handedness."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from matscipy.neighbours import neighbour_list

from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms.

    Attributes:
        first: index of the atom a pair starts from, int64 [P].
        second: index of the atom of which it ends at the image, int64 [P].
        vectors: from the first to the second in Å, float64 [P, 3].
        distances: their lengths in Å, float64 [P].
    """

    first: np.ndarray
    second: np.ndarray
    vectors: np.ndarray
    distances: np.ndarray


def directed_pairs(structure: Structure, cutoff_ang: float) -> Pairs:
    """Every pair closer than the cutoff, once from each end, sorted by the first atom."""
    first, second, vectors, distances, _ = _search(structure, cutoff_ang)
    return Pairs(first, second, vectors, distances)


def undirected_pairs(structure: Structure, cutoff_ang: float) -> Pairs:
    """Every pair closer than the cutoff, once."""
    first, second, vectors, distances, shifts = _search(structure, cutoff_ang)
    # of an atom and its own image, the direction whose first nonzero shift is positive stands for both
    leading = shifts @ np.array([1 << 40, 1 << 20, 1])
    once = (first < second) | ((first == second) & (leading > 0))
    return Pairs(first[once], second[once], vectors[once], distances[once])


def right_handed(structure: Structure) -> Structure:
    """The same crystal with its lattice vectors negated if they are left-handed.

    Potentials and neighbour searches that take the determinant for the volume go wrong on left-handed cells.
    """
    return replace(structure, cell=structure.cell * np.sign(np.linalg.det(structure.cell)))


def _search(structure: Structure, cutoff_ang: float) -> tuple[np.ndarray, ...]:
    s = right_handed(structure)
    first, second, vectors, distances, shifts = neighbour_list(
        "ijDdS", positions=s.positions, cell=s.cell, pbc=[True] * 3, cutoff=cutoff_ang
    )
    return first.astype(np.int64), second.astype(np.int64), vectors, distances, shifts.astype(np.int64)
