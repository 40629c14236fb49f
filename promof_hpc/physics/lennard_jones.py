"""Lennard-Jones with one radius an element: a cheap, smooth, deterministic stand-in for a potential in tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii, vdw_radii

from promof_hpc.physics.neighbours import directed_pairs
from promof_hpc.physics.potential import Prediction
from promof_hpc.structure import Structure

WELL_EV = 0.02
SWITCH_ON, SWITCH_OFF = 1.5, 2.2  # in units of the distance of the minimum; smooth to zero in between
NOBLE_GASES = (2, 10, 18, 36, 54)  # they do not bond, so their distance is that of van der Waals
LAST_ELEMENT = 96  # Cm, the last one with a covalent radius


class LennardJones:
    """E = Σ over pairs of ε [x⁻¹² − 2 x⁻⁶] s(x), x = distance / (sum of the two radii).

    Not a model of any material: bonds have the right length and nothing else is right.
    """

    id = "lennard-jones"
    elements = frozenset(range(1, LAST_ELEMENT + 1))
    max_atoms: int | None = None
    batched = False
    notes = "Lennard-Jones is for tests: its energies mean nothing"

    def __init__(self) -> None:
        self._radii = np.array(covalent_radii[: LAST_ELEMENT + 1])
        self._radii[list(NOBLE_GASES)] = vdw_radii[list(NOBLE_GASES)]
        parameters = (WELL_EV, SWITCH_ON, SWITCH_OFF, self._radii.round(6).tolist())
        self.weights_sha256 = hashlib.sha256(repr(parameters).encode()).hexdigest()

    def compute(self, structures: Sequence[Structure]) -> list[Prediction]:
        """Energy (eV), forces [N, 3] (eV/Å) and stress [3, 3] (eV/Å³) of each structure, one after the other."""
        return [self._compute(s) for s in structures]

    def _compute(self, s: Structure) -> Prediction:
        radii = self._radii[s.numbers]
        pairs = directed_pairs(s, 2.0 * SWITCH_OFF * float(radii.max()))
        minimum = radii[pairs.first] + radii[pairs.second]
        energies, slopes = _pair(pairs.distances / minimum)
        # every pair stands in the list twice, once from each end
        pulls = (slopes / minimum / pairs.distances)[:, None] * pairs.vectors  # dE/d(vector) of the pair
        forces = np.stack([np.bincount(pairs.first, pulls[:, k], len(s)) for k in range(3)], axis=1)
        virial = 0.5 * pulls.T @ pairs.vectors
        return Prediction(float(0.5 * energies.sum()), forces, 0.5 * (virial + virial.T) / s.volume)


def _pair(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy in eV of pairs at the reduced distances x [P], and its derivative by x."""
    attraction = x**-6
    energy = WELL_EV * (attraction**2 - 2.0 * attraction)
    slope = -12.0 * WELL_EV * (attraction**2 - attraction) / x
    t = np.clip((x - SWITCH_ON) / (SWITCH_OFF - SWITCH_ON), 0.0, 1.0)
    switch = 1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t**2)  # first and second derivatives vanish at both ends
    switch_slope = -30.0 * (t * (1.0 - t)) ** 2 / (SWITCH_OFF - SWITCH_ON)
    return energy * switch, slope * switch + energy * switch_slope
