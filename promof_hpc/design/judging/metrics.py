"""What a set of structures is worth beside its rewards: how diverse it is, how many materials, which is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import binomtest

from promof_hpc.chem.decompose import decompose
from promof_hpc.chem.fingerprint import Fingerprint, distances
from promof_hpc.errors import Refused
from promof_hpc.geometry.minimum_distances import average_minimum_distances
from promof_hpc.geometry.topology import labelled_net, net_key
from promof_hpc.structure import Structure

SAME_AMD_ANG = 0.25  # largest difference of average minimum distances up to which structures are compared atom by atom
CERTAIN_AMD_ANG = 0.005  # and up to which they are not, being the same but for the last digits
MATCH_LENGTHS, MATCH_SITES, MATCH_ANGLE_DEG = 0.2, 0.3, 5.0


@dataclass(frozen=True)
class Share:
    """A share of independent items with its 95 % interval (Wilson's); NaN without items."""

    value: float
    low: float
    high: float


def diversity(fingerprints: Sequence[Fingerprint]) -> float:
    """Mean distance (1 - Tanimoto) between all pairs, 0 to 1; NaN for fewer than two."""
    n = len(fingerprints)
    return float(distances(fingerprints).sum() / (n * (n - 1))) if n > 1 else float("nan")


def amd_diversity(structures: Sequence[Structure]) -> float:
    """Mean Chebyshev distance in Å between the average minimum distances of all pairs; NaN for fewer than two."""
    if len(structures) < 2:
        return float("nan")
    return float(pdist([average_minimum_distances(s) for s in structures], "chebyshev").mean())


def distinct_nets(structures: Iterable[Structure]) -> int:
    """Different nets (`geometry.topology.net_key`) of structures; those that cannot be taken apart count for none."""
    nets = set()
    for structure in structures:
        try:
            nets.add(net_key(labelled_net(decompose(structure))))
        except Refused:
            continue
    return len(nets)


@dataclass
class Materials:
    """Different materials met so far, numbered as they came.

    Structures are one material if they agree in composition, in average minimum distances within `SAME_AMD_ANG`, and,
    H aside, to pymatgen's StructureMatcher with its default tolerances after scaling to one volume.
    """

    _by_composition: dict[tuple[tuple[str, int], ...], list[tuple[int, np.ndarray, Structure]]] = field(
        default_factory=dict
    )
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def number(self, structure: Structure) -> int:
        """The number of a structure's material, a new one if it is new."""
        alike = self._by_composition.setdefault(_composition(structure), [])
        own = average_minimum_distances(structure)
        near = sorted(((float(np.abs(own - amd).max()), k, other) for k, amd, other in alike), key=lambda x: x[:2])
        for gap, known, other in near:
            if gap <= CERTAIN_AMD_ANG or (gap <= SAME_AMD_ANG and _atoms_match(structure, other)):
                return known
        alike.append((self._count, own, structure))
        self._count += 1
        return self._count - 1


def materials(structures: Iterable[Structure]) -> list[int]:
    """For each structure the number of its material, from 0 in the order in which they appear."""
    known = Materials()
    return [known.number(s) for s in structures]


def same_material(a: Structure, b: Structure) -> bool:
    """Whether two structures are one material, as `Materials` understands it."""
    return materials([a, b]) == [0, 0]


def top_k(values: Sequence[float], k: int, target: float | None = None) -> list[int]:
    """Indices of the k best values, the best first; NaN is left out, the earlier of equals comes first.

    Args:
        target: the best are nearest to it; the highest are where None.
    """
    array = np.asarray(values, float)
    badness = -array if target is None else np.abs(array - target)
    order = np.argsort(badness, kind="stable")
    return [int(i) for i in order if not np.isnan(badness[i])][:k]


def share(successes: int, of: int) -> Share:
    """A share of independent items, such as component sets with a valid assembly, with its 95 % interval."""
    if not of:
        return Share(float("nan"), float("nan"), float("nan"))
    interval = binomtest(successes, of).proportion_ci(method="wilson")
    return Share(successes / of, float(interval.low), float(interval.high))


def _composition(structure: Structure) -> tuple[tuple[str, int], ...]:
    """Elements and their numbers in the smallest formula unit: a supercell is the same material."""
    counts = structure.counts
    unit = int(np.gcd.reduce(list(counts.values())))
    return tuple(sorted((symbol, count // unit) for symbol, count in counts.items()))


def _atoms_match(a: Structure, b: Structure) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure as PymatgenStructure

    def heavy(structure: Structure) -> PymatgenStructure:
        keep = structure.numbers > 1
        if not keep.any():
            keep = ~keep
        return PymatgenStructure(
            structure.cell, structure.numbers[keep].tolist(), structure.positions[keep], coords_are_cartesian=True
        )

    matcher = StructureMatcher(ltol=MATCH_LENGTHS, stol=MATCH_SITES, angle_tol=MATCH_ANGLE_DEG)
    return bool(matcher.fit(heavy(a), heavy(b)))
