"""Component sets of known MOFs with linkers exchanged for others that bind alike: new combinations to learn from.

Two linkers bind alike where, in some known MOF each, they have the same charge and contacts of the same donors. Charge
and the ends of contacts therefore still balance; what the exchanged MOF measures is unknown but for its atoms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import component_set, sorted_set

# what all copies of a linker show in one MOF: charge, and the donors' elements of every contact
Binding = frozenset[tuple[int, tuple[tuple[int, ...], ...]]]


class LinkerSwap:
    """Exchanges linkers of the MOFs of a training set, by their place in it."""

    def __init__(self, mofs: Sequence[PreparedMof]):
        self._sets = [component_set(m.decomposition) for m in mofs]
        self._bindings = [bindings_of(m) for m in mofs]
        self._atoms: dict[str, int] = {b.key: len(b.numbers) for m in mofs for b in m.decomposition.blocks}
        alike: defaultdict[Binding, set[str]] = defaultdict(set)
        for bindings in self._bindings:
            for key, binding in bindings.items():
                alike[binding].add(key)
        self._alike = {binding: sorted(keys) for binding, keys in alike.items()}

    def __call__(self, place: int, generator: torch.Generator) -> tuple[str, int]:
        """A sequence with every linker drawn anew among those that bind like it, itself included; and its atoms."""
        new = {}
        for key, binding in self._bindings[place].items():
            offered = self._alike[binding]
            new[key] = offered[int(torch.randint(len(offered), (), generator=generator))]
        given = self._sets[place]
        swapped = sorted_set(given.nodes, [new[key] for key in given.linkers])
        return swapped.sequence, sum(self._atoms[key] for key in (*swapped.nodes, *swapped.linkers))


def bindings_of(mof: PreparedMof) -> dict[str, Binding]:
    """How each linker of a MOF is bound, by key."""
    found = mof.decomposition
    contacts: defaultdict[int, list[tuple[int, ...]]] = defaultdict(list)
    for contact in found.contacts:
        contacts[contact.linker].append(tuple(sorted(contact.elements.tolist())))
    bindings: defaultdict[str, set[tuple[int, tuple[tuple[int, ...], ...]]]] = defaultdict(set)
    for k, block in enumerate(found.blocks):
        if block.kind is Kind.ORGANIC:
            bindings[block.key].add((block.charge, tuple(sorted(contacts[k]))))
    return {key: frozenset(binding) for key, binding in bindings.items()}
