"""Plausibility of atoms in a cell: finite, a real volume, a possible density, no two atoms in one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadLimits, ReadReason
from promof_hpc.structure import Structure

THINNEST_ANG = 0.3  # cells with lattice planes closer than this are flat: no crystal needs them


def check_physical(
    structure: Structure, labels: Sequence[str] | None = None, limits: ReadLimits = DEFAULT_LIMITS
) -> None:
    """Refuse arrays that cannot be a crystal.

    Args:
        labels: name of each atom for the message; element and number (from 1) where left out.

    Raises:
        Refused: no atoms, too many, an unknown element, not finite, a flat cell, an impossible density, overlap.
    """
    if len(structure) == 0:
        raise Refused(ReadReason.NO_ATOMS, "there are no atoms; write at least one atom site")
    if len(structure) > limits.atoms:
        raise too_many(len(structure), limits)
    names = labels or [f"atom {k + 1}" for k in range(len(structure))]
    unknown = np.flatnonzero((structure.numbers < 1) | (structure.numbers > 118))
    if len(unknown):
        raise Refused(ReadReason.UNKNOWN_ELEMENT, f"{names[unknown[0]]} is no element; name its element")
    bad = np.flatnonzero(~np.isfinite(structure.positions).all(axis=1))
    if len(bad):
        raise Refused(ReadReason.NOT_FINITE, f"{names[bad[0]]} has a coordinate that is no finite number; correct it")
    check_cell(structure.cell)
    density = structure.density
    if not limits.lightest_g_per_cm3 <= density <= limits.heaviest_g_per_cm3:
        raise Refused(
            ReadReason.CONTRADICTION,
            f"{structure.formula} in {structure.volume:.1f} Å³ is {density:.3g} g/cm³, outside "
            f"{limits.lightest_g_per_cm3} to {limits.heaviest_g_per_cm3:.0f}; check the cell and the symmetry",
        )
    closest = closest_pair(structure, limits.shortest_ang)
    if closest is not None:
        i, j, distance = closest
        raise Refused(
            ReadReason.OVERLAP,
            f"{names[i]} and {names[j] if i != j else 'its own image'} are {distance:.2f} Å apart, less than "
            f"{limits.shortest_ang} Å; remove duplicates and keep one configuration of a disorder",
        )


def check_cell(cell: np.ndarray) -> None:
    """Refuse a cell [3, 3] in Å that is not finite, or flat.

    Raises:
        Refused: as said.
    """
    if not np.isfinite(cell).all():
        raise Refused(ReadReason.NOT_FINITE, "the cell has an entry that is not a finite number; correct it")
    volume = abs(float(np.linalg.det(cell)))
    areas = [float(np.linalg.norm(np.cross(cell[(k + 1) % 3], cell[(k + 2) % 3]))) for k in range(3)]
    if min(areas) <= 0 or volume / max(areas) < THINNEST_ANG:
        raise Refused(
            ReadReason.CONTRADICTION,
            f"the cell is flat ({volume:.3g} Å³): its three vectors span no volume; correct lengths and angles",
        )


def too_many(atoms: int, limits: ReadLimits) -> Refused:
    """The refusal of a cell with so many `atoms`."""
    return Refused(
        ReadReason.TOO_BIG, f"{atoms:,} atoms in the cell, more than {limits.atoms:,}; use a smaller or primitive cell"
    )


def closest_pair(structure: Structure, cutoff_ang: float) -> tuple[int, int, float] | None:
    """The closest two atoms (i, j, distance in Å) nearer than the cutoff, images counted; None where there are none."""
    from matscipy.neighbours import neighbour_list

    first, second, distance = neighbour_list(
        "ijd", positions=structure.positions, cell=structure.cell, pbc=np.ones(3, bool), cutoff=cutoff_ang
    )
    if len(distance) == 0:
        return None
    k = int(np.argmin(distance))
    i, j = sorted((int(first[k]), int(second[k])))
    return i, j, float(distance[k])


def same_atoms(a: Structure, b: Structure, tolerance_ang: float) -> bool:
    """Whether both list the same atoms in the same cell, in any order, each within the tolerance (Å)."""
    from scipy.spatial import cKDTree

    if len(a) != len(b) or not np.allclose(a.cell, b.cell, atol=1e-3):
        return False
    for z in np.unique(a.numbers):
        ours, theirs = a.fractional[a.numbers == z], b.fractional[b.numbers == z]
        if len(ours) != len(theirs):
            return False
        _, nearest = cKDTree(_wrap(theirs), boxsize=1.0).query(_wrap(ours))
        if len(np.unique(nearest)) != len(ours):
            return False
        step = ours - theirs[nearest]
        if np.linalg.norm((step - np.round(step)) @ a.cell, axis=1).max() > tolerance_ang:
            return False
    return True


def _wrap(fractional: np.ndarray) -> np.ndarray:
    """Wrap to [0, 1); the tree refuses 1.0 itself, which a remainder of -1e-17 rounds to."""
    wrapped = fractional % 1.0
    return np.where(wrapped >= 1.0, 0.0, wrapped)
