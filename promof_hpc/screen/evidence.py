"""What else a CIF says about its crystal, held against what was read: formula, volume, density, a second reader."""

from __future__ import annotations

import re
from dataclasses import dataclass

import gemmi
import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.screen.cif_block import Block, Sites
from promof_hpc.screen.contacts import same_atoms
from promof_hpc.screen.refusals import ReadReason
from promof_hpc.screen.symmetry import Operators
from promof_hpc.structure import Structure

VOLUME_TOLERANCE = 0.01
DENSITY_TOLERANCE = 0.03  # relative; rounding and tables of masses stay well below
COUNT_TOLERANCE = 0.25  # atoms of an element; formulas are printed with two decimals
SITE_TOLERANCE_ANG = 1e-3


@dataclass(frozen=True)
class Declared:
    """Properties that a block states beside its atoms; None where it does not.

    Attributes:
        formula: atoms of each element in a formula unit.
        units: formula units in the cell (Z).
        volume: of the cell in Å³.
        density: g/cm³, crystallographic.
    """

    formula: dict[str, float] | None
    units: float | None
    volume: float | None
    density: float | None

    @classmethod
    def from_block(cls, block: Block) -> Declared:
        """Take what is stated; a formula that cannot be parsed counts as not stated."""
        text = block.text("_chemical_formula_sum")
        return cls(
            _parse_formula(text) if text else None,
            block.number("_cell_formula_units_z"),
            block.number("_cell_volume"),
            block.number("_exptl_crystal_density_diffrn"),
        )

    @property
    def fixes_count(self) -> bool:
        """Whether agreement leaves only one number of atoms in the cell."""
        return (self.formula is not None and self.units is not None) or self.density is not None

    def check(self, read: Structure) -> None:
        """Refuse a structure that contradicts the statements.

        Raises:
            Refused: cell volume, composition, number of atoms or density differ beyond rounding.
        """
        if self.volume is not None and abs(read.volume - self.volume) > VOLUME_TOLERANCE * self.volume:
            raise _contradiction(f"the cell has {read.volume:.1f} Å³, _cell_volume says {self.volume:g}")
        if self.formula is not None:
            self._check_formula(self.formula, read)
        if self.density is not None and abs(read.density - self.density) > DENSITY_TOLERANCE * self.density:
            raise _contradiction(
                f"{read.formula} has {read.density:.3f} g/cm³, _exptl_crystal_density_diffrn says {self.density:g}"
            )

    def _check_formula(self, formula: dict[str, float], read: Structure) -> None:
        units = self.units
        if units is None:
            units = len(read) / sum(formula.values())
        for symbol in sorted(set(formula) | set(read.counts)):
            counted, expected = read.counts.get(symbol, 0), formula.get(symbol, 0.0) * units
            if abs(counted - expected) > COUNT_TOLERANCE + 0.001 * expected:
                stated = " ".join(f"{s}{n:g}" for s, n in formula.items())
                times = f" × Z = {self.units:g}" if self.units is not None else ""
                raise _contradiction(
                    f"{counted} {symbol} atoms in the cell ({read.formula}), _chemical_formula_sum{times} "
                    f"({stated}) asks for {expected:g}"
                )


def check_second_reader(block: gemmi.cif.Block, sites: Sites, read: Structure, operators: Operators) -> None:
    """Refuse where gemmi's own small-molecule reader sees another crystal than the one read here.

    The two share the tokeniser and nothing after it: elements, numbers, the cell, the choice of operators, their
    application and the merging of special positions are separate code. Where gemmi takes other operators than the
    list in the file (it looks groups up in a table of settings, and operators win), only the listed sites and the cell
    are compared.

    Raises:
        Refused: cell, sites or atoms differ.
    """
    second = gemmi.make_small_structure_from_block(block)
    if abs(second.cell.volume - read.volume) > 1e-4 * read.volume:
        raise _second(f"a second reader finds a cell of {second.cell.volume:.1f} Å³, not {read.volume:.1f}")
    listed = Structure(sites.numbers, sites.fractional @ read.cell, read.cell)
    second.sites = gemmi.SmallStructure.SiteList([second.sites[k] for k in sites.rows if k < len(second.sites)])
    theirs = _as_structure(second.sites, read.cell)
    knows_elements = bool(theirs.numbers.all())  # of some bare labels it does not
    if not knows_elements and len(theirs) == len(listed):
        theirs = Structure(np.where(theirs.numbers == 0, listed.numbers, theirs.numbers), theirs.positions, read.cell)
    if not same_atoms(listed, theirs, SITE_TOLERANCE_ANG):
        raise _second(f"a second reader finds the sites {theirs.formula}, not {listed.formula}")
    group = second.spacegroup
    if not knows_elements or len(operators) == 1 or group is None or not _same_group(group, operators):
        return
    theirs = _as_structure(second.get_all_unit_cell_sites(), read.cell)
    if len(theirs) != len(read) or not same_atoms(read, theirs, 0.1):
        raise _second(f"a second reader expands the symmetry to {theirs.formula}, not {read.formula}")


def _same_group(group: gemmi.SpaceGroup, operators: Operators) -> bool:
    theirs = {(*np.ravel(op.rot) // gemmi.Op.DEN, *np.array(op.tran) % gemmi.Op.DEN) for op in group.operations()}
    return {tuple(int(x) for x in key) for key in theirs} == set(operators.keys())


def _as_structure(sites: gemmi.SmallStructure.SiteList, cell: np.ndarray) -> Structure:
    numbers = np.array([site.element.atomic_number for site in sites], np.int32)
    fractional = np.array([site.fract.tolist() for site in sites]).reshape(-1, 3)
    return Structure(numbers, fractional @ cell, cell)


def _parse_formula(text: str) -> dict[str, float] | None:
    """`C24 H12 O13 Zn4` -> counts; D counts as H. None where a part is no element with a number."""
    counts: dict[str, float] = {}
    for symbol, count, charge, rest in re.findall(r"([A-Z][a-z]?)\s*(\d*\.?\d*)|(\d?[+-])|(\S)", text):
        if charge:
            continue
        if rest or not gemmi.Element(symbol).atomic_number:
            return None
        symbol = "H" if symbol in ("D", "T") else symbol
        counts[symbol] = counts.get(symbol, 0.0) + (float(count) if count not in ("", ".") else 1.0)
    return {s: n for s, n in counts.items() if n > 0} or None


def _contradiction(text: str) -> Refused:
    return Refused(ReadReason.CONTRADICTION, f"{text}; correct the file")


def _second(text: str) -> Refused:
    return Refused(ReadReason.SECOND_READER, f"{text}; rewrite the file with explicit operators and type symbols")
