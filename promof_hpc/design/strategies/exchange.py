"""New component sets from known ones: a block is exchanged for another that offers the same contacts and charge.

Equal contacts keep the signature, so nets of known MOFs stay possible; equal charge keeps the cell neutral. Whether
the geometry of the contacts fits as well is known only once the set is realised: `bites_fit`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property, lru_cache

import numpy as np

from promof_hpc.assembly.components import Components
from promof_hpc.assembly.net_start import bite_ang
from promof_hpc.assembly.sites import FITTING_BITE_ANG
from promof_hpc.chem.donors import smiles_molecule
from promof_hpc.chem.sequence import ComponentSet, parse_sequence, sorted_set
from promof_hpc.design.libraries import Libraries

Offers = tuple[tuple[int, ...], ...]


class Exchange:
    """Replacements for the blocks of component sets, from the libraries of a training set."""

    def __init__(self, libraries: Libraries):
        self._libraries = libraries

    def known_set(self, generator: np.random.Generator) -> ComponentSet:
        """The component set of a training MOF."""
        return self._sets[int(generator.integers(len(self._sets)))]

    def other_linker(self, given: ComponentSet, generator: np.random.Generator) -> ComponentSet | None:
        """The set with one of its linkers, all copies of it, exchanged; None where there is no other."""
        key = _draw(sorted(set(given.linkers)), generator)
        return self.with_linker(given, key, self.linkers_like(key), generator)

    def with_linker(
        self, given: ComponentSet, key: str, others: list[str], generator: np.random.Generator
    ) -> ComponentSet | None:
        """The set with all copies of linker `key` exchanged for one of `others`; None where there is no other."""
        choice = [k for k in others if k != key]
        if not choice:
            return None
        new = _draw(choice, generator)
        return sorted_set(given.nodes, [new if k == key else k for k in given.linkers])

    def other_node(self, given: ComponentSet, generator: np.random.Generator) -> ComponentSet | None:
        """The set with one of its nodes, or all copies of it, exchanged; None where there is no other."""
        key = _draw(sorted(set(given.nodes)), generator)
        choice = [k for k in self.nodes_like(key) if k != key]
        if not choice:
            return None
        new, every = _draw(choice, generator), bool(generator.random() < 0.5)
        place = given.nodes.index(key)
        nodes = [new if k == key and (every or n == place) else k for n, k in enumerate(given.nodes)]
        return sorted_set(nodes, given.linkers)

    def neighbour(self, given: ComponentSet, generator: np.random.Generator) -> ComponentSet | None:
        """The set with a linker or a node exchanged."""
        exchange = self.other_linker if generator.random() < 0.5 else self.other_node
        return exchange(given, generator)

    def linkers_like(self, key: str) -> list[str]:
        """Linkers of the library with the likeliest contacts and the charge of `key`, itself among them if known."""
        kind = self._linker_kind(key)
        return [] if kind is None else self._linkers_of_kind.get(kind, [])

    def nodes_like(self, key: str) -> list[str]:
        """Nodes with a template of equal contacts, and a charge that `key` has been seen with."""
        charges = self._node_charges.get(key, frozenset())
        patterns = {self._libraries.nodes.templates[k].pattern for k in self._libraries.nodes.by_key.get(key, ())}
        alike = {other for p in patterns for other in self._nodes_of_pattern[p]}
        return sorted(k for k in alike if charges & self._node_charges.get(k, frozenset()))

    @cached_property
    def _sets(self) -> list[ComponentSet]:
        return [parse_sequence(text) for text in self._libraries.sequences]

    @cached_property
    def _linkers_of_kind(self) -> dict[tuple[Offers, int], list[str]]:
        table: dict[tuple[Offers, int], list[str]] = defaultdict(list)
        for key in sorted(self._libraries.linkers.linkers):
            kind = self._linker_kind(key)
            if kind is not None:
                table[kind].append(key)
        return dict(table)

    def _linker_kind(self, key: str) -> tuple[Offers, int] | None:
        options = self._libraries.linkers.options(key)
        return (options[0].offers, linker_charge(key)) if options else None

    @cached_property
    def _nodes_of_pattern(self) -> dict[Offers, set[str]]:
        table: dict[Offers, set[str]] = defaultdict(set)
        for template in self._libraries.nodes.templates:
            table[template.pattern].add(template.key)
        return table

    @cached_property
    def _node_charges(self) -> dict[str, frozenset[float]]:
        """Charges of each node key in training, from the linkers that balance it; of sets with one kind of node."""
        table: dict[str, set[float]] = defaultdict(set)
        for known in self._sets:
            if len(set(known.nodes)) == 1:
                table[known.nodes[0]].add(-sum(map(linker_charge, known.linkers)) / len(known.nodes))
        return {key: frozenset(charges) for key, charges in table.items()}


def bites_fit(components: Components) -> bool:
    """Whether every contact of the linkers has a node end of its shape; without, hardly any assembly closes."""
    return bite_ang(components) <= FITTING_BITE_ANG


@lru_cache(maxsize=4096)
def linker_charge(key: str) -> int:
    """Formal charge of a linker in e; 0 for what is no molecule."""
    mol = smiles_molecule(key)
    return 0 if mol is None else sum(atom.GetFormalCharge() for atom in mol.GetAtoms())


def _draw(choice: list[str], generator: np.random.Generator) -> str:
    return choice[int(generator.integers(len(choice)))]
