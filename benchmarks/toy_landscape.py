"""A potential with a known optimum: energies by chemistry and packing alone, no forces, for the toy world."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence

import numpy as np

from promof_hpc.physics.potential import Prediction
from promof_hpc.structure import Structure

HYDROGEN, CARBON, NITROGEN, OXYGEN = 1, 6, 7, 8
ORGANIC = (HYDROGEN, CARBON, NITROGEN, OXYGEN, 15, 16)
POOR_EV, FAIR_EV, GOOD_EV = 0.7, 0.11, 0.0  # eV/atom; what counts as met lies between FAIR and GOOD
SPREAD_EV = 0.04  # between the good sets
GRAIN_ANG3 = 0.1  # packings whose volume per atom differs by more have nothing in common
GOOD_SHARE = 0.5  # of the packings of a good set
GOOD_SETS = 3  # one in so many sets of a kind that can be good


class Landscape:
    """Sets of oxalate are fair in every packing; of the others one in `GOOD_SETS` is good in every other packing.

    Whoever takes the mean settles for oxalates; the best is found only by who looks at the best of several packings,
    and then in more than one chemistry.
    """

    id = "toy-landscape"
    elements = frozenset(range(1, 97))
    max_atoms: int | None = None
    batched = False
    notes = "toy world: energies mean nothing"

    def __init__(self, device: str = "cpu"):
        self.weights_sha256 = hashlib.sha256(inspect.getsource(inspect.getmodule(Landscape)).encode()).hexdigest()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energies; every structure is at rest."""
        return [
            Prediction(len(s) * energy_ev_per_atom(s.numbers, s.volume / len(s)), np.zeros((len(s), 3)), np.zeros((3, 3)))
            for s in structures
        ]


def energy_ev_per_atom(numbers: np.ndarray, volume_per_atom_ang3: float) -> float:
    """Energy of a composition in one packing."""
    chance = chances(numbers)
    if is_fair(numbers):
        return FAIR_EV + 0.01 * chance[0]
    grain = int(volume_per_atom_ang3 / GRAIN_ANG3)
    if is_good(numbers) and _chance("packing", *_counts(numbers), grain) < GOOD_SHARE:
        return GOOD_EV + SPREAD_EV * chance[1]
    return POOR_EV + 0.1 * chance[2]


def is_fair(numbers: np.ndarray) -> bool:
    """Oxalates: carbon and oxygen as 1:2, no hydrogen, no nitrogen."""
    n = dict(zip(*np.unique(numbers, return_counts=True), strict=True))
    return HYDROGEN not in n and NITROGEN not in n and 2 * n.get(CARBON, 0) == n.get(OXYGEN, 0)


def is_good(numbers: np.ndarray) -> bool:
    """Sets that have good packings."""
    return not is_fair(numbers) and _chance("set", *_counts(numbers)) < 1.0 / GOOD_SETS


def chances(numbers: np.ndarray) -> list[float]:
    """Numbers in [0, 1) that every composition has for itself."""
    return [_chance(k, *_counts(numbers)) for k in range(3)]


def _counts(numbers: np.ndarray) -> list[int]:
    kinds, counts = np.unique(numbers, return_counts=True)
    return [int(x) for pair in zip(kinds, counts // np.gcd.reduce(counts), strict=True) for x in pair]


def _chance(*words: object) -> float:
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:8], 16) / 2**32
