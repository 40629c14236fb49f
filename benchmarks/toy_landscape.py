"""A potential with a known optimum: energies by chemistry and packing alone, no forces, for the toy world."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from promof_hpc.chem.bonds import is_metal
from promof_hpc.physics.potential import Prediction
from promof_hpc.structure import Structure

BOLD_SHARE, STEADY_SHARE = 0.3, 0.2  # of the compositions with two metals
GOOD_EV, STEADY_EV, POOR_EV = 0.0, 0.12, 0.7  # eV/atom; what counts as met lies between GOOD and STEADY
SPREAD_EV = 0.04  # between the good compositions; the best has the lowest energy of all
GRAIN_ANG3 = 0.1  # packings whose volume per atom differs by more have nothing in common
GOOD_PACKINGS = 0.5  # share of the packings of a bold composition
SALT = 1618  # chosen so that every chemistry of the world has bold and steady compositions


class Landscape:
    """Bold compositions are good in half of their packings and poor in the others, steady ones fair in every packing.

    In the mean over packings steady is as good as bold; the best is found by who looks at the best of several
    packings, and it is found in several chemistries. Every structure is at rest, so relaxation costs one call.
    """

    id = "toy-landscape"
    elements = frozenset(range(1, 97))
    max_atoms: int | None = None
    batched = False
    notes = "toy world: energies mean nothing"

    def __init__(self, device: str = "cpu"):
        parameters = (BOLD_SHARE, STEADY_SHARE, GOOD_EV, STEADY_EV, POOR_EV, SPREAD_EV, GRAIN_ANG3, GOOD_PACKINGS, SALT)
        self.weights_sha256 = hashlib.sha256(repr(parameters).encode()).hexdigest()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energies, and forces and stress of zero."""
        still = [(np.zeros((len(s), 3)), np.zeros((3, 3))) for s in structures]
        energies = [len(s) * energy_ev_per_atom(s.numbers, s.volume / len(s)) for s in structures]
        return [Prediction(e, *rest) for e, rest in zip(energies, still, strict=True)]


def energy_ev_per_atom(numbers: np.ndarray, volume_per_atom_ang3: float) -> float:
    """Energy of a composition in one packing."""
    kind, formula = kind_of(numbers), _formula(numbers)
    if kind == "steady":
        return STEADY_EV
    grain = int(volume_per_atom_ang3 / GRAIN_ANG3)
    if kind == "bold" and _chance("packing", formula, grain) < GOOD_PACKINGS:
        return GOOD_EV + SPREAD_EV * _chance("depth", formula)
    return POOR_EV


def kind_of(numbers: np.ndarray) -> str:
    """What a composition is like: bold, steady or poor; only those with two metals are anything but poor."""
    if sum(is_metal(int(z)) for z in np.unique(numbers)) < 2:
        return "poor"
    drawn = _chance("kind", _formula(numbers))
    return "bold" if drawn < BOLD_SHARE else "steady" if drawn < BOLD_SHARE + STEADY_SHARE else "poor"


def _formula(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    kinds, counts = np.unique(numbers, return_counts=True)
    return tuple(zip(kinds.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True))


def _chance(*words: object) -> float:
    """A number in [0, 1) that follows from the words."""
    return int(hashlib.sha256(repr((SALT, *words)).encode()).hexdigest()[:8], 16) / 2**32
