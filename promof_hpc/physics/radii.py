"""Hard-sphere radii of the elements for pore geometry, those of Zeo++."""

from __future__ import annotations

import numpy as np

from promof_hpc.structure import Structure

UNLISTED_ANG = 2.0
"""Radius in Å that Zeo++ gives an element up to Lr without a tabulated one (Fe, Co, Zr, Al, Ti, ... are such)."""

LAST_ELEMENT = 103
"""Atomic number of the heaviest element Zeo++ has a radius for (Lr)."""

RADII_ANG: dict[int, float] = {
    1: 1.09,
    2: 1.40,
    3: 1.82,
    6: 1.70,
    7: 1.55,
    8: 1.52,
    9: 1.47,
    10: 1.54,
    11: 2.27,
    12: 1.73,
    14: 2.10,
    15: 1.80,
    16: 1.80,
    17: 1.75,
    18: 1.88,
    19: 2.75,
    28: 1.63,
    29: 1.40,
    30: 1.39,
    31: 1.87,
    33: 1.85,
    34: 1.90,
    35: 1.85,
    36: 2.02,
    46: 1.63,
    47: 1.72,
    48: 1.58,
    49: 1.93,
    50: 2.17,
    52: 2.06,
    53: 1.98,
    54: 2.16,
    78: 1.72,
    79: 1.66,
    80: 1.55,
    81: 1.96,
    82: 2.02,
    92: 1.86,
}
"""Radius in Å by atomic number where it differs from `UNLISTED_ANG`.

Source: the table of Zeo++ 0.3 (`initializeRadTable`, van der Waals radii of the Cambridge Crystallographic Data
Centre), which the pore columns of CoRE MOF 2019 were computed with.
"""


def radii(structure: Structure) -> np.ndarray:
    """Radius of each atom in Å, float64 [N]; atomic numbers outside 1 to `LAST_ELEMENT` give NaN."""
    table = np.full(LAST_ELEMENT + 2, UNLISTED_ANG)
    table[[0, -1]] = np.nan
    for number, radius in RADII_ANG.items():
        table[number] = radius
    return table[np.clip(structure.numbers, 0, LAST_ELEMENT + 1)]
