"""How good a chemist writes: the share of its sequences that is valid, unique and new, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from promof_hpc.chem.sequence import ATOM, ComponentSet, parse_sequence
from promof_hpc.errors import Refused
from promof_hpc.policy.sampling import sample
from promof_hpc.policy.weights import LoadedChemist

CHUNK = 100  # sequences sampled at once


@dataclass(frozen=True)
class WritingQuality:
    """What became of sampled sequences.

    Attributes:
        samples: sequences.
        valid: share that names known nodes and readable linkers in order.
        unique: distinct valid component sets, as a share of the valid ones.
        novel: distinct valid sets that are not among the known ones, as a share of the distinct ones.
        new_linkers: distinct valid sets with a linker that no known set has, as a share of the distinct ones.
        refused: invalid sequences by reason.
        sets: the valid component sets in the order of sampling.
    """

    samples: int
    valid: float
    unique: float
    novel: float
    new_linkers: float
    refused: Mapping[str, int]
    sets: tuple[ComponentSet, ...]

    def numbers(self) -> dict[str, float]:
        """The shares, for a model card."""
        names = ("samples", "valid", "unique", "novel", "new_linkers")
        return {name: round(float(getattr(self, name)), 4) for name in names}


def judge(texts: Sequence[str], known_nodes: Collection[str], known_sequences: Collection[str]) -> WritingQuality:
    """Judge sequences as text.

    Args:
        known_nodes: node keys that have a template.
        known_sequences: the component sets of the training set.
    """
    sets: list[ComponentSet] = []
    refused: Counter[str] = Counter()
    for text in texts:
        try:
            sets.append(parse_sequence(text, known_nodes))
        except Refused as reason:
            refused[str(reason.reason)] += 1
    distinct = {s.sequence: s for s in sets}
    known_linkers = {key for text in known_sequences for key in parse_sequence(text).linkers}
    novel = sum(text not in known_sequences for text in distinct)
    new_linkers = sum(any(key not in known_linkers for key in s.linkers) for s in distinct.values())
    return WritingQuality(
        samples=len(texts),
        valid=_share(len(sets), len(texts)),
        unique=_share(len(distinct), len(sets)),
        novel=_share(novel, len(distinct)),
        new_linkers=_share(new_linkers, len(distinct)),
        refused=dict(refused),
        sets=tuple(sets),
    )


def written(chemist: LoadedChemist, wanted: Sequence[Mapping[str, float]], generator: torch.Generator) -> list[str]:
    """One sequence for each wanted mapping (empty: unconditional), as text."""
    conditions = chemist.conditions.encode(wanted)
    texts: list[str] = []
    for part in conditions.split(CHUNK):
        texts += sample(chemist.network, chemist.vocabulary, part, generator).texts(chemist.vocabulary)
    return texts


def atoms_of(components: ComponentSet) -> int:
    """Atoms of a component set, hydrogen included."""
    from rdkit import Chem

    linkers = Counter(components.linkers)
    atoms = sum(Chem.AddHs(Chem.MolFromSmiles(key)).GetNumAtoms() * n for key, n in linkers.items())
    return atoms + sum(len(ATOM.findall(key)) for key in components.nodes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
