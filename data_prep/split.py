"""Training, validation and test by linker skeleton, so that a test linker was never seen in any disguise."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from data_prep.settings import SplitSettings


class Part(StrEnum):
    """Where a MOF goes. `mixed` has held-out linkers beside others (or linkers of both held-out parts): not used."""

    TRAIN = "train"
    VALIDATION = "val"
    TEST = "test"
    MIXED = "mixed"


@dataclass(frozen=True)
class Split:
    """The outcome of a division.

    Attributes:
        part: the part of each MOF.
        held_out: the part of each held-out skeleton (validation or test).
    """

    part: Mapping[str, Part]
    held_out: Mapping[str, Part]

    def names(self, part: Part) -> list[str]:
        """MOFs of a part, sorted."""
        return sorted(name for name, p in self.part.items() if p is part)


@lru_cache(maxsize=65536)
def linker_skeleton(key: str) -> str:
    """The bare graph of a linker: elements and connections, without stereo, charges, H and bond orders.

    Raises:
        ValueError: `key` is no SMILES.
    """
    from rdkit import Chem

    mol = Chem.MolFromSmiles(key)
    if mol is None:
        raise ValueError(f"'{key}' is no SMILES")
    graph = Chem.RWMol()
    for atom in mol.GetAtoms():
        plain = Chem.Atom(atom.GetAtomicNum())
        plain.SetNoImplicit(True)
        graph.AddAtom(plain)
    for bond in mol.GetBonds():
        graph.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    skeleton: str = Chem.MolToSmiles(graph.GetMol())
    return skeleton


def split_by_skeleton(skeletons: Mapping[str, frozenset[str]], settings: SplitSettings) -> Split:
    """Draw held-out skeletons until the MOFs that have no other reach the wanted shares.

    The test part is filled first. The result depends on the names, their skeletons and the settings, not on order.

    Args:
        skeletons: the linker skeletons of each MOF, at least one each.
    """
    commonness = Counter(s for found in skeletons.values() for s in found)
    ranked = sorted(commonness, key=lambda s: (-commonness[s], s))
    pool = sorted(ranked[settings.kept_skeletons :])
    random.Random(settings.seed).shuffle(pool)
    mofs_of: dict[str, list[str]] = {}
    for name, found in skeletons.items():
        for skeleton in found:
            mofs_of.setdefault(skeleton, []).append(name)
    held_out: dict[str, Part] = {}
    for part, share in ((Part.TEST, settings.test_share), (Part.VALIDATION, settings.validation_share)):
        wanted, covered = share * len(skeletons), 0
        while pool and covered < wanted:
            skeleton = pool.pop()
            held_out[skeleton] = part
            covered += sum(all(held_out.get(s) is part for s in skeletons[m]) for m in mofs_of[skeleton])
    return Split({name: _part(found, held_out) for name, found in skeletons.items()}, held_out)


def _part(found: frozenset[str], held_out: Mapping[str, Part]) -> Part:
    parts = {held_out.get(s, Part.TRAIN) for s in found}
    return parts.pop() if len(parts) == 1 else Part.MIXED
