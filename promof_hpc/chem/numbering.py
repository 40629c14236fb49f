"""Numberings of one molecule by another: which atom of a conformer stands for which atom of a crystal's linker.

Like atoms at the end of one branch (the O of a sulfonate, the methyls of a tert-butyl) are left out of the search:
they multiply the symmetric numberings without end, and coordinates settle at once which is which.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from rdkit import Chem

MAX_NUMBERINGS = 64  # rings that can flip multiply the symmetric numberings as well


@dataclass(frozen=True)
class Graph:
    """A molecule as its heavy atoms, the H on them, and groups of like branch ends.

    Attributes:
        atoms: number of atoms, H included.
        hydrogens: H atoms of each heavy atom.
        siblings: groups of two or more like heavy atoms (with equal numbers of H) at the end of one branch, by
            (parent, atomic number, number of H).
        core: indices of the heavy atoms without siblings, int [c].
        pattern: their graph with single bonds; an isotope stands for the H and siblings left out around an atom.
    """

    atoms: int
    hydrogens: dict[int, list[int]]
    siblings: dict[tuple[int, int, int], list[int]]
    core: np.ndarray
    pattern: Chem.Mol

    @classmethod
    def of(cls, mol: Chem.Mol) -> Graph:
        """The graph of a molecule with explicit H."""
        number = {atom.GetIdx(): atom.GetAtomicNum() for atom in mol.GetAtoms()}
        bonded = {a.GetIdx(): [n.GetIdx() for n in a.GetNeighbors()] for a in mol.GetAtoms()}
        heavy = {k: [n for n in bonded[k] if number[n] > 1] for k in number if number[k] > 1}
        hydrogens = {k: [n for n in bonded[k] if number[n] == 1] for k in heavy}
        ends: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for k, partners in heavy.items():
            if len(partners) == 1 and len(heavy[partners[0]]) > 1:
                ends[partners[0], number[k], len(hydrogens[k])].append(k)
        groups = {branch: group for branch, group in ends.items() if len(group) > 1}
        dropped = {k for group in groups.values() for k in group}
        place = {k: n for n, k in enumerate(k for k in heavy if k not in dropped)}
        pattern = Chem.RWMol()
        for k in place:
            atom = Chem.Atom(number[k])
            atom.SetNoImplicit(True)
            atom.SetIsotope(1 + len(hydrogens[k]) + 8 * sum(number[n] for n in heavy[k] if n in dropped))
            pattern.AddAtom(atom)
        for a in place:
            for b in heavy[a]:
                if b in place and a < b:
                    pattern.AddBond(place[a], place[b], Chem.BondType.SINGLE)
        return cls(len(number), hydrogens, groups, np.array(list(place), int), pattern.GetMol())


def numberings(reference: Graph, other: Graph) -> list[np.ndarray]:
    """Arrays `order` [n]: atom order[k] of `other` stands for atom k of `reference`; one per symmetry of the core.

    Bond orders and charges are not looked at, since they differ between resonance forms of one linker. Empty where
    the two are different molecules. At most `MAX_NUMBERINGS`, in a fixed order.
    """
    if reference.atoms != other.atoms or reference.pattern.GetNumBonds() != other.pattern.GetNumBonds():
        return []
    if not len(reference.core):
        return [np.arange(reference.atoms)] if not len(other.core) else []
    if len(reference.core) != len(other.core):
        return []
    orders = []
    for hit in other.pattern.GetSubstructMatches(reference.pattern, uniquify=False, maxMatches=MAX_NUMBERINGS):
        order = np.full(reference.atoms, -1)
        order[reference.core] = other.core[list(hit)]
        if _complete(order, reference, other):
            orders.append(order)
    return orders


def settle_siblings(graph: Graph, squares: np.ndarray) -> np.ndarray:
    """The order [n] of the molecule's own atoms in which like branch ends are exchanged to lie closest.

    Args:
        squares: squared distance in Å² of reference atom k from the present place of atom l, [n, n].
    """
    order = np.arange(graph.atoms)
    for group in graph.siblings.values():
        best = min(permutations(group), key=lambda p: sum(squares[k, m] for k, m in zip(group, p, strict=True)))
        for k, m in zip(group, best, strict=True):
            order[k] = m
            order[graph.hydrogens[k]] = graph.hydrogens[m]
    return order


def _complete(order: np.ndarray, reference: Graph, other: Graph) -> bool:
    """Fill in siblings and H; False if some atom finds no partner."""
    for (parent, number, hydrogens), group in reference.siblings.items():
        partners = other.siblings.get((int(order[parent]), number, hydrogens), [])
        if len(partners) != len(group):
            return False
        order[group] = partners
    for k, mine in reference.hydrogens.items():
        theirs = other.hydrogens[int(order[k])]
        if len(mine) != len(theirs):
            return False
        order[mine] = theirs
    return bool((order >= 0).all())
