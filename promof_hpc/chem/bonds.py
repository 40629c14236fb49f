"""Bonds of a crystal from distances: which atoms are joined, across which cell border, and by what kind of bond."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from ase.data import covalent_radii
from matscipy.neighbours import neighbour_list

from promof_hpc.geometry.topology import Edge, Piece, pieces
from promof_hpc.structure import Structure

NONMETALS = np.array([1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54, 85, 86])
IS_METAL = np.ones(len(covalent_radii), bool)
IS_METAL[NONMETALS] = False
IS_METAL[0] = False

COVALENT_SLACK = 0.30  # Å beyond the sum of covalent radii (Cordero 2008), here and below
H_BOND_LENGTH = 1.30  # Å; an H is bonded to its nearest neighbour only, and not beyond this
DONOR_SLACK = 0.45
CARBON_DONOR_SLACK = 0.25  # carbon beside a metal is mostly a spectator of a bound N or O
METAL_FACTOR = 1.25  # metal-metal: times the sum of radii, and not beyond METAL_LIMIT
METAL_LIMIT = 3.2
NEVER_DONORS = (1, 5)  # agostic H and borohydride are not connection sites
BROKEN_STRETCH = 1.25  # a bond longer than this times its start length is broken
CROWDED_VOLUME = 1.0  # Å³/atom; denser cells have no meaningful neighbours and would fill the memory with pairs


def is_metal(number: int) -> bool:
    """True for the atomic number of a metal (metalloids B, Si, As, Te and the noble gases are not; Ge and Sb are)."""
    return bool(IS_METAL[number])


class BondKind(IntEnum):
    """What two atoms are joined by."""

    COVALENT = 0
    METAL_DONOR = 1
    METAL_METAL = 2


@dataclass(frozen=True)
class Bonds:
    """Every bond of a cell once: atom `i` of the home cell with atom `j` of the cell at `shift`.

    Attributes:
        i, j: atom indices, int32 [B], i <= j.
        shift: cell image of j, int32 [B, 3]; positive (lexicographic) where i == j.
        distance: length in Å, float64 [B].
        kind: `BondKind`, int8 [B].
        shortest: smallest distance in Å between any two atoms, bonded or not; inf where none is within reach.
    """

    i: np.ndarray
    j: np.ndarray
    shift: np.ndarray
    distance: np.ndarray
    kind: np.ndarray
    shortest: float

    def __len__(self) -> int:
        return len(self.i)

    def chosen(self, mask: np.ndarray) -> Bonds:
        """The bonds where `mask` [B] is true."""
        return Bonds(self.i[mask], self.j[mask], self.shift[mask], self.distance[mask], self.kind[mask], self.shortest)

    def of_kind(self, *kinds: BondKind) -> Bonds:
        """The bonds of the given kinds."""
        return self.chosen(np.isin(self.kind, kinds))

    def edges(self) -> list[Edge]:
        """The same as quotient-graph edges over atoms."""
        return [
            (i, j, (a, b, c))
            for i, j, (a, b, c) in zip(self.i.tolist(), self.j.tolist(), self.shift.tolist(), strict=True)
        ]

    def partners(self, count: int) -> list[list[int]]:
        """Bonded atoms of each of `count` atoms (an atom appears once for each bond with it)."""
        table: list[list[int]] = [[] for _ in range(count)]
        for i, j in zip(self.i.tolist(), self.j.tolist(), strict=True):
            table[i].append(j)
            table[j].append(i)
        return table


def bonds(structure: Structure) -> Bonds:
    """Bonds of a crystal.

    Non-metals bond within the sum of their covalent radii + 0.3 Å; H with its nearest neighbour only (< 1.3 Å),
    never with H; a metal and a donor within the sum + 0.45 Å (carbon + 0.25 Å; H and B never); two metals within
    1.25 times the sum and 3.2 Å. Rules in the manner of MOFid's metal-oxo split (Bucior et al., 2019).

    A cell with less than 1 Å³ per atom gets no bonds and `shortest` 0.
    """
    numbers = np.asarray(structure.numbers)
    if structure.volume < CROWDED_VOLUME * len(numbers):
        empty = np.zeros(0, np.int32)
        return Bonds(empty, empty, np.zeros((0, 3), np.int32), np.zeros(0), np.zeros(0, np.int8), 0.0)
    i, j, shift, distance = near_pairs(structure, _reach(numbers))
    radii = covalent_radii[numbers[i]] + covalent_radii[numbers[j]]
    metals = IS_METAL[numbers[i]].astype(int) + IS_METAL[numbers[j]]
    donor = np.where(IS_METAL[numbers[i]], numbers[j], numbers[i])
    donor_slack = np.where(donor == 6, CARBON_DONOR_SLACK, DONOR_SLACK)
    hydrogens = (numbers[i] == 1).astype(int) + (numbers[j] == 1)
    covalent = (metals == 0) & (distance < radii + COVALENT_SLACK)
    covalent &= (hydrogens == 0) | ((hydrogens == 1) & (distance < H_BOND_LENGTH))
    to_donor = (metals == 1) & ~np.isin(donor, NEVER_DONORS) & (distance < radii + donor_slack)
    between_metals = (metals == 2) & (distance < np.minimum(METAL_FACTOR * radii, METAL_LIMIT))
    covalent &= _nearest_of_hydrogen(numbers, i, j, distance, covalent & (hydrogens == 1))
    kind = np.select(
        [covalent, to_donor, between_metals], [BondKind.COVALENT, BondKind.METAL_DONOR, BondKind.METAL_METAL], -1
    )
    keep = kind >= 0
    shortest = float(distance.min()) if len(distance) else np.inf
    return Bonds(i[keep], j[keep], shift[keep], distance[keep], kind[keep].astype(np.int8), shortest)


def _reach(numbers: np.ndarray) -> float:
    """Largest distance in Å at which two of the elements present can bond."""
    present = np.unique(numbers)
    metal_radii = covalent_radii[present[IS_METAL[present]]]
    other_radii = covalent_radii[present[~IS_METAL[present]]]
    largest = other_radii.max(initial=0.3)
    reach = 2 * largest + COVALENT_SLACK
    if len(metal_radii):
        heaviest = metal_radii.max()
        reach = max(reach, heaviest + largest + DONOR_SLACK, min(METAL_LIMIT, 2 * METAL_FACTOR * heaviest))
    return float(reach)


def near_pairs(structure: Structure, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of atoms within `reach` Å once: i [P], j [P], shift of j [P, 3], distance [P]."""
    cell = np.ascontiguousarray(structure.cell, float)
    # matscipy counts images from the cell that an atom was wrapped into; wrapping here keeps the count ours
    inside = np.floor(structure.fractional).astype(np.int32)
    wrapped = structure.positions - inside @ cell
    i, j, distance, shift = neighbour_list("ijdS", positions=wrapped, cell=cell, pbc=np.ones(3, bool), cutoff=reach)
    shift = shift + inside[i] - inside[j]
    positive = (shift[:, 0] > 0) | ((shift[:, 0] == 0) & (shift[:, 1] > 0))
    positive |= (shift[:, 0] == 0) & (shift[:, 1] == 0) & (shift[:, 2] > 0)
    once = (i < j) | ((i == j) & positive)
    i, j, shift, distance = i[once], j[once], shift[once], distance[once]
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    return i[order].astype(np.int32), j[order].astype(np.int32), shift[order].astype(np.int32), distance[order]


def _nearest_of_hydrogen(
    numbers: np.ndarray, i: np.ndarray, j: np.ndarray, distance: np.ndarray, candidate: np.ndarray
) -> np.ndarray:
    """Mask [P] that leaves each H one pair, its shortest; pairs outside `candidate` are untouched."""
    keep = np.ones(len(i), bool)
    rows = np.nonzero(candidate)[0]
    hydrogen = np.where(numbers[i[rows]] == 1, i[rows], j[rows])
    order = np.lexsort((distance[rows], hydrogen))
    rows, hydrogen = rows[order], hydrogen[order]
    keep[rows[1:][hydrogen[1:] == hydrogen[:-1]]] = False
    return keep


def atom_pieces(count: int, chosen: Bonds, members: np.ndarray | None = None) -> list[Piece]:
    """Connected periodic components of `count` atoms under the `chosen` bonds.

    Args:
        members: atoms to look at, bool [count]; bonds with others are ignored. All by default.

    Returns:
        Components with their atoms (`vertices`), images and dimensionality.
    """
    if members is None:
        return pieces(range(count), chosen.edges())
    inside = chosen.chosen(members[chosen.i] & members[chosen.j])
    return pieces(np.nonzero(members)[0].tolist(), inside.edges())


def free_pieces(structure: Structure, found: Bonds) -> list[Piece]:
    """Finite components that are not bonded to any metal: solvent, counter-ions, stray atoms."""
    metal = IS_METAL[structure.numbers]
    parts = atom_pieces(len(structure), found)
    return [p for p in parts if p.dimensionality == 0 and not metal[p.vertices].any()]


def formulas(structure: Structure, parts: list[Piece]) -> str:
    """Pieces as counted formulas, for instance `3 × H2O`, the most frequent first."""
    counts = Counter(Structure(structure.numbers[p.vertices], np.zeros((0, 3)), np.eye(3)).formula for p in parts)
    return ", ".join(f"{n} × {f}" for f, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class BondChange:
    """What became of the bonds of a structure when its atoms and cell moved.

    Attributes:
        broken: bonds now longer than 1.25 times their start length.
        formed: bonds of the end whose atoms were more than 1.25 times as far apart at the start.
        disconnected: True where the broken bonds left more separate nets, or nets periodic in fewer directions.
        reason: in words, where disconnected; empty otherwise.
    """

    broken: int
    formed: int
    disconnected: bool
    reason: str

    @property
    def kept(self) -> bool:
        """True where no bond broke and none was formed."""
        return self.broken == 0 and self.formed == 0


def compare_bonds(before: Structure, after: Structure) -> BondChange:
    """Compare the bonds of a structure before and after a relaxation.

    The atoms and the cell must have moved continuously: same order, no wrapping into the cell, so that a bond
    keeps its (i, j, shift).

    Raises:
        ValueError: the structures do not have the same atoms in the same order.
    """
    if not np.array_equal(before.numbers, after.numbers):
        raise ValueError("The two structures must list the same atoms in the same order.")
    start, end = bonds(before), bonds(after)
    stretched = _lengths(after, start) > BROKEN_STRETCH * start.distance
    formed = end.chosen(_lengths(before, end) > BROKEN_STRETCH * end.distance)
    known = set(start.edges())
    arrived = [edge for edge in formed.edges() if edge not in known]
    reason = ""
    if stretched.any():
        was = pieces(range(len(before)), start.edges())
        now = pieces(range(len(before)), start.chosen(~stretched).edges() + arrived)
        reason = _falling_apart(was, now)
    return BondChange(int(stretched.sum()), len(arrived), bool(reason), reason)


def _falling_apart(was: list[Piece], now: list[Piece]) -> str:
    """What the pieces `now` lack against those that `was`, in words; empty where nothing fell apart."""
    nets = [sum(p.nets for p in parts) for parts in (was, now)]
    if nets[1] > nets[0]:
        return f"broken bonds leave {nets[1]} separate parts, {nets[0]} at the start"
    directions = [max(p.dimensionality for p in parts) for parts in (was, now)]
    if directions[1] < directions[0]:
        return f"broken bonds leave a {directions[1]}-periodic net, {directions[0]}-periodic at the start"
    return ""


def _lengths(structure: Structure, chosen: Bonds) -> np.ndarray:
    """Distances [B] in Å that the atoms of `chosen` have in `structure`."""
    vector = structure.positions[chosen.j] + chosen.shift @ structure.cell - structure.positions[chosen.i]
    return np.linalg.norm(vector, axis=1)
