"""Cheap geometric checks of a crystal, in the spirit of MOFChecker, on this project's own bonds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from ase.data import covalent_radii

from promof_hpc.chem.bonds import IS_METAL, BondKind, Bonds, atom_pieces, bonds, formulas, near_pairs
from promof_hpc.structure import Structure

OVERLAP_FACTOR = 0.6  # of the sum of covalent radii; and never below OVERLAP_ANG
OVERLAP_ANG = 0.6
SHARED_HYDROGEN_SLACK = 0.15  # Å beyond the sum of radii within which an H counts as bonded to a second atom
LINEAR_DEG = 150.0  # two-connected carbon: sp above, sp2 that lacks an H below
FLAT_DEG = 345.0  # three-connected carbon: sp2 above this sum of angles, sp3 that lacks an H below
TRIPLE_ANG = {6: 1.28, 7: 1.24, 8: 1.20}  # C with a single neighbour is complete where this bond is a triple one
SINGLE_CN_ANG = 1.42  # two-connected N with both bonds longer is an amine that lacks an H
SINGLE_CO_ANG = 1.32  # a lone terminal O further from its C is a hydroxyl that lacks its H
AQUA_ANG = 1.9  # a bare O on one metal is an oxo ligand up to here, water or hydroxide without H beyond


@dataclass(frozen=True)
class Checks:
    """Outcome of `check`.

    Attributes:
        has_metal, has_carbon, has_hydrogen: the element is there.
        overlap: two atoms closer than 0.6 times the sum of their covalent radii, or than 0.6 Å.
        over_coordinated_c: a C with more than 4 covalent bonds.
        over_coordinated_n: an N with more than 4 bonds, metals included.
        over_coordinated_h: an H within bonding distance of two non-metal atoms.
        under_coordinated_c: a C whose neighbours leave room for a missing atom (see `h_complete`).
        under_coordinated_n: an N of which the same holds.
        lone_molecule: a finite piece that is not part of the framework (solvent, counter-ion).
        lone_formula: those pieces, for instance `3 × H2O`; empty where there are none.
        h_complete: no sign of missing hydrogen: no under-coordinated C or N, no hydroxyl O without H (C-O longer than
            1.32 Å), no bare O bonded to a single metal at more than 1.9 Å. Bridging O without H are not questioned.
    """

    has_metal: bool
    has_carbon: bool
    has_hydrogen: bool
    overlap: bool
    over_coordinated_c: bool
    over_coordinated_n: bool
    over_coordinated_h: bool
    under_coordinated_c: bool
    under_coordinated_n: bool
    lone_molecule: bool
    lone_formula: str
    h_complete: bool

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed, `h_complete` aside; a lone molecule comes with its formula."""
        names = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("has_") and not value:
                names.append("no_" + field.name.removeprefix("has_"))
            elif field.name == "lone_molecule" and value:
                names.append(f"lone_molecule ({self.lone_formula})")
            elif field.name.startswith(("over", "under")) and value:
                names.append(field.name)
        return tuple(names)


def check(structure: Structure) -> Checks:
    """Run every check; about 5 ms for 100 atoms."""
    numbers = np.asarray(structure.numbers)
    found = bonds(structure)
    near = _Surroundings(structure, found)
    lone = [p for p in atom_pieces(len(structure), found) if p.dimensionality == 0]
    carbons, nitrogens, oxygens = (np.nonzero(numbers == z)[0].tolist() for z in (6, 7, 8))
    under_c = any(near.carbon_lacks(k) for k in carbons)
    under_n = any(near.nitrogen_lacks(k) for k in nitrogens)
    under_o = any(near.oxygen_lacks(k) for k in oxygens)
    overlap, shared_h = _close_contacts(structure)
    return Checks(
        has_metal=bool(IS_METAL[numbers].any()),
        has_carbon=bool((numbers == 6).any()),
        has_hydrogen=bool((numbers == 1).any()),
        overlap=overlap,
        over_coordinated_c=any(len(near.covalent[k]) > 4 for k in carbons),
        over_coordinated_n=any(len(near.covalent[k]) + near.metals[k] > 4 for k in nitrogens),
        over_coordinated_h=shared_h,
        under_coordinated_c=under_c,
        under_coordinated_n=under_n,
        lone_molecule=bool(lone),
        lone_formula=formulas(structure, lone),
        h_complete=not (under_c or under_n or under_o),
    )


def _close_contacts(structure: Structure) -> tuple[bool, bool]:
    """Whether any two atoms overlap, and whether an H is bonded to two non-metals."""
    numbers = np.asarray(structure.numbers)
    if structure.volume < len(numbers):
        return True, False
    i, j, _, distance = near_pairs(structure, max(OVERLAP_ANG, 2 * OVERLAP_FACTOR * covalent_radii[numbers].max(), 1.8))
    radii = covalent_radii[numbers[i]] + covalent_radii[numbers[j]]
    overlap = bool((distance < np.maximum(OVERLAP_ANG, OVERLAP_FACTOR * radii)).any())
    touching = (distance < radii + SHARED_HYDROGEN_SLACK) & ~IS_METAL[numbers[i]] & ~IS_METAL[numbers[j]]
    neighbours = np.bincount(np.concatenate([i[touching], j[touching]]), minlength=len(numbers))
    return overlap, bool((neighbours[numbers == 1] > 1).any())


class _Surroundings:
    """Bond vectors around every atom, for the tests of missing hydrogen."""

    def __init__(self, structure: Structure, found: Bonds):
        count = len(structure)
        self.numbers = structure.numbers
        self.covalent: list[list[tuple[int, np.ndarray, float]]] = [[] for _ in range(count)]
        self.metals = [0] * count
        self.nearest_metal = [np.inf] * count
        vectors = structure.positions[found.j] + found.shift @ structure.cell - structure.positions[found.i]
        rows = zip(found.i.tolist(), found.j.tolist(), vectors, found.distance.tolist(), found.kind, strict=True)
        for i, j, vector, distance, kind in rows:
            if kind == BondKind.COVALENT:
                self.covalent[i].append((j, vector, distance))
                self.covalent[j].append((i, -vector, distance))
            elif kind == BondKind.METAL_DONOR:
                donor = j if IS_METAL[self.numbers[i]] else i
                self.metals[donor] += 1
                self.nearest_metal[donor] = min(self.nearest_metal[donor], distance)

    def carbon_lacks(self, k: int) -> bool:
        """True where the neighbours of carbon `k` leave room for an H."""
        around = self.covalent[k]
        total = len(around) + self.metals[k]
        if total >= 4 or (len(around) >= 2 and self.metals[k]):
            return False
        if len(around) == 3:
            return sum(_angles(around)) < FLAT_DEG
        if len(around) == 2:
            return _angles(around)[0] < LINEAR_DEG
        if len(around) == 1:
            partner, _, distance = around[0]
            return distance > TRIPLE_ANG.get(int(self.numbers[partner]), 0.0)
        return True

    def nitrogen_lacks(self, k: int) -> bool:
        """True where the neighbours of nitrogen `k` leave room for an H."""
        around = self.covalent[k]
        if self.metals[k] or len(around) >= 3:
            return not around
        if len(around) == 2:
            return all(d > SINGLE_CN_ANG for *_, d in around)
        if len(around) == 1:
            partner, _, distance = around[0]
            return self.numbers[partner] != 7 and distance > TRIPLE_ANG[7]
        return True

    def oxygen_lacks(self, k: int) -> bool:
        """True where oxygen `k` is a hydroxyl or a water without H."""
        around = self.covalent[k]
        if not around:
            return self.metals[k] == 0 or (self.metals[k] == 1 and self.nearest_metal[k] > AQUA_ANG)
        if len(around) > 1 or self.metals[k]:
            return False
        partner, _, distance = around[0]
        if self.numbers[partner] != 6:
            return False
        oxygens = sum(self.numbers[j] == 8 for j, *_ in self.covalent[partner])
        return bool(oxygens < 2 and distance > SINGLE_CO_ANG)


def _angles(around: list[tuple[int, np.ndarray, float]]) -> list[float]:
    """Angles in degrees between the bonds of one atom, every pair once."""
    unit = [vector / distance for _, vector, distance in around]
    pairs = [(a, b) for a in range(len(unit)) for b in range(a + 1, len(unit))]
    return [float(np.degrees(np.arccos(np.clip(unit[a] @ unit[b], -1, 1)))) for a, b in pairs]
