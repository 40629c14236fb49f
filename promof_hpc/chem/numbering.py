"""Numberings of one molecule by another: which atom of a conformer stands for which atom of a crystal's linker.

Like atoms at the end of one branch (the O of a sulfonate, the methyls of a tert-butyl) are left out of the search:
they multiply the symmetric numberings without end, and coordinates settle at once which is which.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations

import numpy as np
from rdkit import Chem

MAX_NUMBERINGS = 64  # rings that can flip multiply the symmetric numberings as well


def numberings(reference: Chem.Mol, other: Chem.Mol) -> list[np.ndarray]:
    """Arrays `order` [n]: atom order[k] of `other` stands for atom k of `reference`; one per symmetry of the graph.

    Bond orders and charges are not looked at, since they differ between resonance forms of one linker. Empty where
    the two are different molecules. At most `MAX_NUMBERINGS`, in a fixed order.
    """
    if reference.GetNumAtoms() != other.GetNumAtoms():
        return []
    query, query_atoms = _core(reference)
    target, target_atoms = _core(other)
    if query.GetNumAtoms() != target.GetNumAtoms() or query.GetNumBonds() != target.GetNumBonds():
        return []
    if not query.GetNumAtoms():
        return [np.arange(reference.GetNumAtoms())]
    orders = []
    for hit in target.GetSubstructMatches(query, uniquify=False, maxMatches=MAX_NUMBERINGS):
        order = np.full(reference.GetNumAtoms(), -1)
        order[query_atoms] = target_atoms[list(hit)]
        if _complete(order, query_atoms, reference, other):
            orders.append(order)
    return orders


def siblings(mol: Chem.Mol) -> list[list[int]]:
    """Groups of two or more like heavy atoms at the end of one branch, with equal numbers of H."""
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for atom in mol.GetAtoms():
        heavy = _heavy_neighbours(atom)
        if atom.GetAtomicNum() > 1 and len(heavy) == 1 and len(_heavy_neighbours(mol.GetAtomWithIdx(heavy[0]))) > 1:
            groups[heavy[0], atom.GetAtomicNum(), len(_hydrogens(atom))].append(atom.GetIdx())
    return [group for group in groups.values() if len(group) > 1]


def settle_siblings(order: np.ndarray, reference: Chem.Mol, other: Chem.Mol, squares: np.ndarray) -> np.ndarray:
    """The numbering with the atoms of each sibling group exchanged so that the squared distances are least.

    Args:
        order: a numbering, [n].
        squares: squared distance in Å² of reference atom k from the atom that stands for l, [n, n].
    """
    settled = order.copy()
    for group in siblings(reference):
        best = min(permutations(group), key=lambda p: sum(squares[k, m] for k, m in zip(group, p, strict=True)))
        settled[group] = order[list(best)]
        for k in group:
            _follow(settled, k, reference, other)
    return settled


def _core(mol: Chem.Mol) -> tuple[Chem.Mol, np.ndarray]:
    """The graph of the heavy atoms without siblings, and their indices in `mol`.

    An isotope stands for what is left out of each atom's surroundings: H and siblings.
    """
    dropped = {k for group in siblings(mol) for k in group}
    kept = [a for a in mol.GetAtoms() if a.GetAtomicNum() > 1 and a.GetIdx() not in dropped]
    place = {atom.GetIdx(): k for k, atom in enumerate(kept)}
    graph = Chem.RWMol()
    for atom in kept:
        plain = Chem.Atom(atom.GetAtomicNum())
        plain.SetNoImplicit(True)
        ends = sum(mol.GetAtomWithIdx(n).GetAtomicNum() for n in _heavy_neighbours(atom) if n in dropped)
        plain.SetIsotope(1 + len(_hydrogens(atom)) + 8 * ends)
        graph.AddAtom(plain)
    for bond in mol.GetBonds():
        a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if a in place and b in place:
            graph.AddBond(place[a], place[b], Chem.BondType.SINGLE)
    return graph.GetMol(), np.array(sorted(place), int)


def _complete(order: np.ndarray, core: np.ndarray, reference: Chem.Mol, other: Chem.Mol) -> bool:
    """Fill in siblings and H; False if some atom finds no partner."""
    theirs: dict[tuple[int, int, int], list[int]] = {_branch(other, group[0]): group for group in siblings(other)}
    for group in siblings(reference):
        parent, number, hydrogens = _branch(reference, group[0])
        partners = theirs.get((int(order[parent]), number, hydrogens), [])
        if len(partners) != len(group):
            return False
        order[group] = partners
    for k in [*core.tolist(), *(k for group in siblings(reference) for k in group)]:
        if not _follow(order, k, reference, other):
            return False
    return bool((order >= 0).all())


def _branch(mol: Chem.Mol, atom: int) -> tuple[int, int, int]:
    """Parent, atomic number and number of H of an atom at the end of a branch."""
    end = mol.GetAtomWithIdx(atom)
    return _heavy_neighbours(end)[0], end.GetAtomicNum(), len(_hydrogens(end))


def _follow(order: np.ndarray, atom: int, reference: Chem.Mol, other: Chem.Mol) -> bool:
    """Let the H of a heavy atom follow it; False if its partner has another number of them."""
    mine = _hydrogens(reference.GetAtomWithIdx(atom))
    theirs = _hydrogens(other.GetAtomWithIdx(int(order[atom])))
    if len(mine) != len(theirs):
        return False
    order[mine] = theirs
    return True


def _hydrogens(atom: Chem.Atom) -> list[int]:
    return [n.GetIdx() for n in atom.GetNeighbors() if n.GetAtomicNum() == 1]


def _heavy_neighbours(atom: Chem.Atom) -> list[int]:
    return [n.GetIdx() for n in atom.GetNeighbors() if n.GetAtomicNum() > 1]
