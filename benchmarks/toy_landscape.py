"""A potential with a known optimum: energies by chemistry and packing alone, no forces, for the toy world."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from promof_hpc.chem.bonds import IS_METAL
from promof_hpc.physics.potential import Prediction
from promof_hpc.structure import Structure

CHEMISTRY_EV, PACKING_EV = (0.5, 0.7), (0.4, 0.6)  # eV/atom of what is hardly wrong, and of what is as wrong as can be
TOLERATED_MISMATCH = 0.25  # of metals and linkers, 0 to 1; up to here it costs nothing
WAVELENGTH_ANG3 = 1.5  # packings cost along a wave in the volume per atom, each composition with a phase of its own
CALM = 0.45  # height of the wave, 0 to 1, up to which it costs nothing
SALT = 0


class Landscape:
    """The least energy, 0 eV/atom, is that of every matching set of metals and linkers in a packing that suits it.

    Every metal has a mismatch with every linker; the mean over a structure's metals counts. Every composition has
    ranges of volume that suit it, a wavelength apart. Every structure is at rest, so relaxation costs one call.
    """

    id = "toy-landscape"
    elements = frozenset(range(1, 97))
    max_atoms: int | None = None
    batched = False
    notes = "toy world: energies mean nothing"

    def __init__(self, device: str = "cpu"):
        parameters = (CHEMISTRY_EV, PACKING_EV, TOLERATED_MISMATCH, WAVELENGTH_ANG3, CALM, SALT)
        self.weights_sha256 = hashlib.sha256(repr(parameters).encode()).hexdigest()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energies, and forces and stress of zero."""
        return [Prediction(len(s) * energy_ev_per_atom(s), np.zeros((len(s), 3)), np.zeros((3, 3))) for s in structures]


def energy_ev_per_atom(structure: Structure) -> float:
    """What chemistry and packing cost."""
    packing = packing_ev(structure.numbers, structure.volume / len(structure))
    return chemistry_ev(structure.numbers) + packing


def chemistry_ev(numbers: np.ndarray) -> float:
    """What the mean mismatch of the metals with the rest of the composition costs in eV/atom."""
    metal = IS_METAL[numbers]
    rest = _formula(numbers[~metal])
    mismatch = np.mean([_chance("mismatch", int(z), rest) for z in numbers[metal]])
    return _cost(float(mismatch), TOLERATED_MISMATCH, *CHEMISTRY_EV)


def packing_ev(numbers: np.ndarray, volume_per_atom_ang3: float) -> float:
    """What a volume costs in eV/atom."""
    turns = volume_per_atom_ang3 / WAVELENGTH_ANG3 + _chance("phase", _formula(numbers))
    return _cost(0.5 - 0.5 * math.cos(2 * math.pi * turns), CALM, *PACKING_EV)


def _cost(value: float, free: float, least: float, most: float) -> float:
    """Nothing up to `free`, beyond from `least` to `most` at a value of 1."""
    return 0.0 if value <= free else least + (most - least) * (value - free) / (1.0 - free)


def _formula(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    kinds, counts = np.unique(numbers, return_counts=True)
    return tuple(zip(kinds.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True))


def _chance(*words: object) -> float:
    """A number in [0, 1) that follows from the words."""
    return int(hashlib.sha256(repr((SALT, *words)).encode()).hexdigest()[:8], 16) / 2**32
