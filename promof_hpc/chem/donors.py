"""Where a linker can be bound: its donor groups, described so that equal groups of different linkers are found equal.

Everything is a function of the molecular graph with H counts; bond orders and charges are not looked at, since they
differ between resonance forms (the two O of a carboxylate are alike).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from rdkit import Chem, rdBase

Split = tuple[tuple[int, ...], ...]

REACHES = (3, 2, 0)  # bonds within which donors belong together: chelating groups, functional groups, single atoms
HYDROGEN, CARBON, OXYGEN = 1, 6, 8
NEVER_DONOR = frozenset({5, 14})  # B and Si carry ligands, they are none
MEMBER = 50  # added to the mark of an atom that is one of the donors
CONTACT = 0  # atomic number of the atom that stands for a contact


@lru_cache(maxsize=4096)
def smiles_molecule(key: str) -> Chem.Mol | None:
    """The molecule of a linker's key with explicit H, atoms in the order of `chem.conformer.embed`; None if none."""
    with rdBase.BlockLogs():
        bare = Chem.MolFromSmiles(key) if key else None
        return None if bare is None else Chem.AddHs(bare)


@dataclass(frozen=True)
class DonorGroup:
    """Possible donors that belong together.

    Attributes:
        environment: text that equal groups share; SMILES of the group and its surroundings with isotopes as marks.
        atoms: the possible donors in the order in which they stand in `environment`.
    """

    environment: str
    atoms: tuple[int, ...]


class DonorGraph:
    """The heavy atoms of a molecule, and which of them could be donors.

    Args:
        mol: molecule with explicit H.
    """

    def __init__(self, mol: Chem.Mol):
        atoms = list(mol.GetAtoms())
        self.numbers = [a.GetAtomicNum() for a in atoms]
        bonded = [[n.GetIdx() for n in a.GetNeighbors()] for a in atoms]
        self.heavy = [k for k, z in enumerate(self.numbers) if z != HYDROGEN]
        self.neighbours = {k: [n for n in bonded[k] if self.numbers[n] != HYDROGEN] for k in self.heavy}
        self.hydrogens = {k: len(bonded[k]) - len(self.neighbours[k]) for k in self.heavy}
        self.in_ring = {k: atoms[k].IsInRing() for k in self.heavy}

    @cached_property
    def donors(self) -> tuple[int, ...]:
        """Atoms that a metal could bind: heteroatoms, a bare C at the end of a chain (cyanide), a carboxylate's C.

        The last counts as bound where a large cation is chelated by both O.
        """
        return tuple(k for k in self.heavy if self._possible(k))

    def groups(self, reach: int, among: Iterable[int] | None = None) -> list[DonorGroup]:
        """Possible donors joined where they are at most `reach` bonds apart.

        Args:
            among: only these donors; all of them where None.
        """
        chosen = list(self.donors if among is None else among)
        left, found = set(chosen), []
        for first in chosen:
            if first not in left:
                continue
            left.discard(first)
            members = [first]
            for k in members:  # grows while it is read
                near = [n for n in self._within(k, reach) if n in left]
                left.difference_update(near)
                members += near
            found.append(self._group(members, reach))
        return found

    def split_key(self, split: Split) -> str:
        """Text that is equal for splits that a symmetry of the molecule carries into each other."""
        graph = Chem.RWMol()
        place = {k: self._add(graph, k, 1 + self.hydrogens[k]) for k in self.heavy}
        self._join(graph, place)
        _mark(graph, [[place[k] for k in group] for group in split])
        return str(Chem.MolToSmiles(graph.GetMol()))

    def _possible(self, atom: int) -> bool:
        number = self.numbers[atom]
        if number == CARBON:
            ends = sum(self.numbers[n] == OXYGEN and len(self.neighbours[n]) == 1 for n in self.neighbours[atom])
            return ends > 1 or (len(self.neighbours[atom]) <= 1 and not self.hydrogens[atom])
        return number not in NEVER_DONOR

    def _within(self, start: int, reach: int) -> dict[int, int]:
        """Atoms at most `reach` bonds away, with the atom that each was reached from; the nearest first."""
        before, edge = {start: start}, [start]
        for _ in range(reach):
            edge = [(before.setdefault(n, k), n)[1] for k in edge for n in self.neighbours[k] if n not in before]
        return before

    def _group(self, members: list[int], reach: int) -> DonorGroup:
        inside = set(members)
        for k in members:
            before = self._within(k, reach)
            for other in members:
                while other in before and other != k:
                    inside.add(other)
                    other = before[other]
        inside.update(n for k in members for n in self.neighbours[k])
        graph = Chem.RWMol()
        place = {k: self._add(graph, k, self._mark_of(k, k in members)) for k in sorted(inside)}
        self._join(graph, place)
        mol = graph.GetMol()
        text = str(Chem.MolToSmiles(mol))
        order = [int(k) for k in mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]]
        atom_at = {p: k for k, p in place.items()}
        return DonorGroup(text, tuple(atom_at[p] for p in order if atom_at[p] in members))

    def _mark_of(self, atom: int, member: bool) -> int:
        """One number for what is not drawn: H, neighbours, ring or not, and whether it is one of the donors."""
        degree = min(len(self.neighbours[atom]), 4)
        return 1 + min(self.hydrogens[atom], 4) + 5 * degree + 25 * self.in_ring[atom] + MEMBER * member

    def _add(self, graph: Chem.RWMol, atom: int, mark: int) -> int:
        plain = Chem.Atom(self.numbers[atom])
        plain.SetNoImplicit(True)
        plain.SetIsotope(mark)
        return int(graph.AddAtom(plain))

    def _join(self, graph: Chem.RWMol, place: dict[int, int]) -> None:
        for a in place:
            for b in self.neighbours[a]:
                if a < b and b in place:
                    graph.AddBond(place[a], place[b], Chem.BondType.SINGLE)


@lru_cache(maxsize=4096)
def donor_graph(key: str) -> DonorGraph | None:
    """The donor graph of a linker's key; None where it is no molecule."""
    mol = smiles_molecule(key)
    return None if mol is None else DonorGraph(mol)


def environment_split_key(environment: str, split: Split) -> str:
    """Text that is equal for splits of a donor group that a symmetry of its environment exchanges.

    Args:
        split: positions in `DonorGroup.atoms`.
    """
    graph = Chem.RWMol(Chem.MolFromSmiles(environment, sanitize=False))
    members = [a.GetIdx() for a in graph.GetAtoms() if a.GetIsotope() > MEMBER]
    _mark(graph, [[members[p] for p in contact] for contact in split])
    return str(Chem.MolToSmiles(graph.GetMol()))


def sorted_split(groups: Iterable[Iterable[int]]) -> Split:
    """Groups of donors in a fixed order; empty groups are dropped."""
    return tuple(sorted(g for g in (tuple(sorted(int(k) for k in group)) for group in groups) if g))


def restricted(split: Split, atoms: Iterable[int]) -> Split:
    """What a split does with some of the donors."""
    kept = set(atoms)
    return sorted_split([k for k in group if k in kept] for group in split)


def patterns(split: Split, numbers: Sequence[int] | np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Sorted donor elements of each contact, sorted; as `assembly.node_library.NodeTemplate.pattern`."""
    return tuple(sorted(tuple(sorted(int(numbers[k]) for k in group)) for group in split))


def _mark(graph: Chem.RWMol, contacts: Iterable[Iterable[int]]) -> None:
    """Add an atom for every contact, bonded to its donors."""
    for donors in contacts:
        contact = graph.AddAtom(Chem.Atom(CONTACT))
        for donor in donors:
            graph.AddBond(int(donor), contact, Chem.BondType.SINGLE)
