"""Valences that elements and numbers of neighbours leave open in an organic fragment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from promof_hpc.chem.blocks import DecomposeReason
from promof_hpc.errors import Refused

Pair = tuple[int, int]

VALENCE = {1: 1, 5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 3, 16: 2, 17: 1, 33: 3, 34: 2, 35: 1, 53: 1}


@dataclass(frozen=True)
class Valences:
    """What the element and the number of neighbours leave open at each atom.

    Attributes:
        open: bonds still missing, int [n].
        charge: formal charge that the number of neighbours implies, int [n].
        cation: True for N that may give up an electron and form one bond more, bool [n].
        natural: True for N that is always written as a cation (nitro, N-oxide, azide, isocyanide), bool [n].
        degree: neighbours, int [n].
        terminal_oxygens: O with one neighbour at each atom, int [n].
    """

    open: np.ndarray
    charge: np.ndarray
    cation: np.ndarray
    natural: np.ndarray
    degree: np.ndarray
    terminal_oxygens: np.ndarray


def open_valences(numbers: np.ndarray, pairs: Sequence[Pair]) -> Valences:
    """Open valences of every atom.

    Raises:
        Refused: an element without a rule, or an atom with too many neighbours.
    """
    n = len(numbers)
    ends = np.array(pairs, int).reshape(-1, 2)
    degree = np.bincount(ends.ravel(), minlength=n)
    terminal_o = (numbers == 8) & (degree == 1)
    terminal_oxygens = np.zeros(n, int)
    for a, b in ((0, 1), (1, 0)):
        np.add.at(terminal_oxygens, ends[:, a], terminal_o[ends[:, b]].astype(int))
    open_, charge = np.zeros(n, int), np.zeros(n, int)
    for k, (z, d) in enumerate(zip(numbers.tolist(), degree.tolist(), strict=True)):
        if z not in VALENCE:
            raise Refused(DecomposeReason.UNKNOWN_ELEMENT, f"no valence rule for {chemical_symbols[z]} in a linker")
        open_[k], charge[k] = _open_valence(z, d)
        if open_[k] < 0:
            raise Refused(DecomposeReason.VALENCE, f"{chemical_symbols[z]} with {d} neighbours")
    if n == 2 and sorted(numbers.tolist()) == [6, 8]:  # carbon monoxide is written [C-]#[O+]
        open_[numbers == 8], charge[numbers == 8] = 2, 1
    natural = (numbers == 7) & (terminal_oxygens > 0) & (degree == 3)
    for a, b in (*pairs, *((b, a) for a, b in pairs)):
        natural[a] |= bool(numbers[a] == 7 and degree[a] == 2 and degree[b] == 1 and numbers[b] in (6, 7))
    cation = (numbers == 7) & ((degree == 3) | natural)
    return Valences(open_, charge, cation, natural, degree, terminal_oxygens)


def _open_valence(z: int, degree: int) -> tuple[int, int]:
    """Bonds missing at an atom with `degree` neighbours, and the charge that its coordination implies."""
    special = {
        (7, 4): (0, 1),  # ammonium
        (5, 4): (0, -1),  # borate
        (8, 3): (0, 1),  # oxonium
        (15, 4): (1, 0),  # phosphonate and phosphine oxide: one double bond
        (33, 4): (1, 0),
        (15, 6): (0, -1),  # hexafluorophosphate
        (33, 6): (0, -1),
        (16, 3): (1, 0),  # sulfoxide, sulfinate
        (34, 3): (1, 0),
        (16, 4): (2, 0),  # sulfonate, sulfone: two double bonds
        (34, 4): (2, 0),
        (14, 6): (0, -2),  # hexafluorosilicate
        (17, 4): (3, 0),  # perchlorate
    }
    return special.get((z, degree), (VALENCE[z] - degree, 0))
