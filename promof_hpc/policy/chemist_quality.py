"""How good a chemist writes: the share of its sequences that is valid, unique and new, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.chem.sequence import ATOM, ComponentSet, Vocabulary, parse_sequence
from promof_hpc.errors import Refused
from promof_hpc.policy.chemist import Chemist
from promof_hpc.policy.conditions import Conditions
from promof_hpc.policy.sampling import sample

CHUNK = 100  # sequences sampled at once
SMALL_CELL, SMALL_CAP = 40, 50  # atoms wanted of a chemist, and the cap that they are to keep below


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

    @property
    def vnu(self) -> float:
        """Distinct valid sets that are new, as a share of all samples."""
        return self.valid * self.unique * self.novel

    def numbers(self) -> dict[str, float]:
        """The shares, for a model card."""
        names = ("samples", "valid", "unique", "novel", "new_linkers", "vnu")
        return {name: round(float(getattr(self, name)), 4) for name in names}


@dataclass(frozen=True)
class Known:
    """What a chemist has seen.

    Attributes:
        nodes: node keys that have a template.
        sequences: component sets of the training set.
        linkers: their linkers.
    """

    nodes: Collection[str]
    sequences: Collection[str]
    linkers: Collection[str]

    @classmethod
    def of(cls, nodes: Collection[str], sequences: Collection[str]) -> Known:
        """With the linkers of the sequences."""
        linkers = {key for text in sequences for key in parse_sequence(text).linkers}
        return cls(frozenset(nodes), frozenset(sequences), frozenset(linkers))


def judge(texts: Sequence[str], known: Known) -> WritingQuality:
    """Judge sequences as text."""
    sets: list[ComponentSet] = []
    refused: Counter[str] = Counter()
    for text in texts:
        try:
            sets.append(parse_sequence(text, known.nodes))
        except Refused as reason:
            refused[str(reason.reason)] += 1
    distinct = {s.sequence: s for s in sets}
    novel = sum(text not in known.sequences for text in distinct)
    new_linkers = sum(any(key not in known.linkers for key in s.linkers) for s in distinct.values())
    return WritingQuality(
        samples=len(texts),
        valid=_share(len(sets), len(texts)),
        unique=_share(len(distinct), len(sets)),
        novel=_share(novel, len(distinct)),
        new_linkers=_share(new_linkers, len(distinct)),
        refused=dict(refused),
        sets=tuple(sets),
    )


def written(chemist: Chemist, vocabulary: Vocabulary, conditions: Tensor, generator: torch.Generator) -> list[str]:
    """One sequence for each row of conditions [B, P], as text."""
    texts: list[str] = []
    for part in conditions.split(CHUNK):
        texts += sample(chemist, vocabulary, part, generator).texts(vocabulary)
    return texts


def card_quality(
    chemist: Chemist, vocabulary: Vocabulary, conditions: Conditions, known: Known, count: int
) -> dict[str, dict[str, float | Mapping[str, int]]]:
    """Quality of `count` sequences, seed 0, unconditional and where a small cell is wanted, for the model card."""
    found: dict[str, dict[str, float | Mapping[str, int]]] = {}
    for name, wanted in (("unconditional", {}), (f"atoms_{SMALL_CELL}", {"atoms": float(SMALL_CELL)})):
        rows = conditions.encode([wanted] * count)
        quality = judge(written(chemist, vocabulary, rows, torch.Generator().manual_seed(0)), known)
        small = sum(atoms_of(s) <= SMALL_CAP for s in quality.sets)
        cap = {f"at_most_{SMALL_CAP}_atoms": round(_share(small, len(quality.sets)), 4)}
        found[name] = {**quality.numbers(), **cap, "refused": quality.refused}
    return found


def atoms_of(components: ComponentSet) -> int:
    """Atoms of a component set, hydrogen included."""
    from rdkit import Chem

    linkers = Counter(components.linkers)
    atoms = sum(Chem.AddHs(Chem.MolFromSmiles(key)).GetNumAtoms() * n for key, n in linkers.items())
    return atoms + sum(len(ATOM.findall(key)) for key in components.nodes)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
