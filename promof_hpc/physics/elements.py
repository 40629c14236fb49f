"""The elements in the states that formation energies are counted from, as starts for relaxation with any potential.

Metals and noble gases come from ASE's table of reference states (Ashcroft and Mermin; Kittel). Diatomic gases are one
molecule in a box, Br2 and I2 too. The other structures are typed in below from the literature as collected by
J. Donohue, The Structures of the Elements (Wiley, 1974), or the paper named beside them. All are only starts: the
potential's own relaxation sets the final cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from promof_hpc.structure import Structure, primitive

BOX_ANG = 12.0
BOND_LENGTHS_ANG = {"H": 0.741, "N": 1.098, "O": 1.208, "F": 1.412, "Cl": 1.988, "Br": 2.281, "I": 2.666}
"""Diatomic molecules (Huber and Herzberg, Constants of Diatomic Molecules, 1979)."""

MOLECULAR = frozenset(BOND_LENGTHS_ANG)
"""Elements whose reference is a molecule in a box: relax their positions, keep their cell."""

FROM_ASE = (
    "He", "Li", "Be", "Ne", "Na", "Mg", "Al", "Si", "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ge", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "Xe", "Cs", "Ba", "La",
    "Ce", "Pr", "Nd", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt",
    "Au", "Hg", "Tl", "Pb", "Ac", "Th",
)  # fmt: skip

WITHOUT = {
    "Pm": "no measured crystal structure is at hand",
    "Np": "its orthorhombic cell is not typed in",
    "Pu": "its monoclinic cell is not typed in",
}
"""Elements that potentials know and that have no reference here, with the reason: E_form is missing with them."""


@dataclass(frozen=True)
class _Crystal:
    """A structure by its symmetry-distinct sites.

    Attributes:
        group: space group number.
        cell: a, b, c in Å and α, β, γ in degrees.
        sites: fractional coordinates.
        setting: ASE's choice of origin or axes where a group has two.
    """

    group: int
    cell: tuple[float, float, float, float, float, float]
    sites: tuple[tuple[float, float, float], ...]
    setting: int = 1


_RIGHT = (90.0, 90.0, 90.0)
_HEXAGONAL = (90.0, 90.0, 120.0)
TYPED_IN = {
    # α-boron, B12 icosahedra (Decker and Kasper, Acta Cryst. 12, 503, 1959)
    "B": _Crystal(166, (4.908, 4.908, 12.567, *_HEXAGONAL), ((0.1187, 0.2374, 0.8913), (0.1963, 0.3926, 0.0242))),
    # graphite
    "C": _Crystal(194, (2.464, 2.464, 6.711, *_HEXAGONAL), ((0.0, 0.0, 0.25), (1 / 3, 2 / 3, 0.25))),
    # black phosphorus (Brown and Rundqvist, Acta Cryst. 19, 684, 1965)
    "P": _Crystal(64, (3.3136, 10.478, 4.3763, *_RIGHT), ((0.0, 0.10168, 0.08056),)),
    # α-sulphur, S8 rings (Rettig and Trotter, Acta Cryst. C43, 2260, 1987)
    "S": _Crystal(
        70,
        (10.4646, 12.8660, 24.4860, *_RIGHT),
        ((0.8554, 0.9526, 0.9516), (0.7845, 0.0301, 0.0763), (0.7070, 0.9793, 0.0040), (0.7858, 0.9070, 0.1290)),
        setting=2,
    ),
    # α-manganese
    "Mn": _Crystal(
        217,
        (8.9125, 8.9125, 8.9125, *_RIGHT),
        ((0.0, 0.0, 0.0), (0.3179, 0.3179, 0.3179), (0.3571, 0.3571, 0.0346), (0.0896, 0.0896, 0.2819)),
    ),
    # α-gallium
    "Ga": _Crystal(64, (4.5192, 7.6586, 4.5258, *_RIGHT), ((0.0, 0.1539, 0.0798),)),
    "As": _Crystal(166, (3.7598, 3.7598, 10.5475, *_HEXAGONAL), ((0.0, 0.0, 0.22707),)),
    # trigonal selenium and tellurium, helical chains
    "Se": _Crystal(152, (4.3662, 4.3662, 4.9536, *_HEXAGONAL), ((0.2254, 0.0, 1 / 3),)),
    "Te": _Crystal(152, (4.4572, 4.4572, 5.929, *_HEXAGONAL), ((0.2633, 0.0, 1 / 3),)),
    "In": _Crystal(139, (3.2517, 3.2517, 4.9459, *_RIGHT), ((0.0, 0.0, 0.0),)),
    # grey tin, the ground state at 0 K
    "Sn": _Crystal(227, (6.4892, 6.4892, 6.4892, *_RIGHT), ((0.0, 0.0, 0.0),)),
    "Sb": _Crystal(166, (4.307, 4.307, 11.273, *_HEXAGONAL), ((0.0, 0.0, 0.23349),)),
    "Sm": _Crystal(166, (3.629, 3.629, 26.207, *_HEXAGONAL), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.222))),
    "Bi": _Crystal(166, (4.546, 4.546, 11.862, *_HEXAGONAL), ((0.0, 0.0, 0.23389),)),
    "Pa": _Crystal(139, (3.925, 3.925, 3.238, *_RIGHT), ((0.0, 0.0, 0.0),)),
    # α-uranium
    "U": _Crystal(63, (2.854, 5.869, 4.955, *_RIGHT), ((0.0, 0.1025, 0.25),)),
}


@cache
def elemental_structures() -> dict[str, Structure]:
    """Primitive cell of each element's reference state by symbol, unrelaxed, in the order of atomic numbers."""
    from ase.data import atomic_numbers

    found = {symbol: _molecule(symbol) for symbol in BOND_LENGTHS_ANG}
    found |= {symbol: _from_ase(symbol) for symbol in FROM_ASE}
    found |= {symbol: _typed_in(symbol, crystal) for symbol, crystal in TYPED_IN.items()}
    return dict(sorted(found.items(), key=lambda item: atomic_numbers[item[0]]))


def _molecule(symbol: str) -> Structure:
    from ase.data import atomic_numbers

    half = np.array([0.0, 0.0, BOND_LENGTHS_ANG[symbol] / 2])
    centre = np.full(3, BOX_ANG / 2)
    return Structure(
        np.full(2, atomic_numbers[symbol], np.int32), np.array([centre - half, centre + half]), np.eye(3) * BOX_ANG
    )


def _from_ase(symbol: str) -> Structure:
    from ase.build import bulk

    if symbol == "He":  # not in ASE's table: solid helium is hcp under pressure, near this density
        return Structure.from_ase(bulk("He", "hcp", a=3.57, c=5.83))
    return Structure.from_ase(bulk(symbol))


def _typed_in(symbol: str, crystal: _Crystal) -> Structure:
    from ase.spacegroup import crystal as fill

    sites = [symbol] * len(crystal.sites)
    atoms = fill(
        sites, crystal.sites, spacegroup=crystal.group, setting=crystal.setting, cellpar=crystal.cell, symprec=1e-3
    )
    return primitive(Structure.from_ase(atoms))
