"""What one CIF data block says, taken as it stands: tags, cell, sites, symmetry statements, declared properties."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import gemmi
import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.screen.refusals import ReadReason

OCCUPANCY_TOLERANCE = 0.005  # 0.9999 and 1.00(2) are whole atoms
OPERATOR_TAGS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
NAME_TAGS = ("_space_group_name_h-m_alt", "_symmetry_space_group_name_h-m", "_space_group_name_h-m_ref")
HALL_TAGS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
NUMBER_TAGS = ("_space_group_it_number", "_symmetry_int_tables_number")
UNSUPPORTED_TAGS = {
    "_cell_modulation_dimension": "a modulated structure",
    "_space_group_symop_magn_operation_xyz": "a magnetic structure",
    "_space_group_magn_name_bns": "a magnetic structure",
    "_space_group_ssg_name": "a modulated structure",
}


@dataclass(frozen=True)
class Sites:
    """The atom sites that a block lists.

    Attributes:
        labels: as in the file [n].
        numbers: atomic numbers, int32 [n]; deuterium and tritium are 1.
        fractional: as in the file [n, 3], not wrapped.
        rows: of the file's table that they are; dummy sites are left out.
        notes: what was decided, for the reader's notes.
    """

    labels: tuple[str, ...]
    numbers: np.ndarray
    fractional: np.ndarray
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """The tags of a data block, lower case.

    Attributes:
        name: of the block.
        values: raw values by tag; one for a pair, a column for a loop.
    """

    name: str
    values: Mapping[str, Sequence[str]] = field(repr=False)

    @classmethod
    def from_gemmi(cls, block: gemmi.cif.Block) -> Block:
        """Gather pairs and loop columns of a parsed block."""
        values: dict[str, Sequence[str]] = {}
        for item in block:
            if item.pair is not None:
                tag, value = cast("tuple[str, str]", item.pair)
                values.setdefault(tag.lower(), [value])
            elif item.loop is not None:
                width, flat = len(item.loop.tags), item.loop.values
                for k, tag in enumerate(item.loop.tags):
                    values.setdefault(tag.lower(), flat[k::width])
        return cls(block.name, values)

    def text(self, *tags: str) -> str | None:
        """The first value of the first tag that has one; None for absent, `?` and `.`."""
        for tag in tags:
            for raw in self.values.get(tag, ())[:1]:
                value = str(gemmi.cif.as_string(raw)).strip()
                if value not in ("", "?", "."):
                    return value
        return None

    def number(self, *tags: str) -> float | None:
        """The same as a number, uncertainty in brackets dropped; None where it is not a number."""
        value = self.text(*tags)
        number = math.nan if value is None else float(gemmi.cif.as_number(value))
        return None if math.isnan(number) else number

    @property
    def has_sites(self) -> bool:
        """Whether fractional coordinates of atoms are listed."""
        return bool(self.values.get("_atom_site_fract_x"))

    @property
    def operators(self) -> list[str]:
        """The listed symmetry operators; empty where there are none."""
        for tag in OPERATOR_TAGS:
            listed = [str(gemmi.cif.as_string(v)).strip() for v in self.values.get(tag, ())]
            listed = [v for v in listed if v not in ("", "?", ".")]
            if listed:
                return listed
        return []


def read_cell(block: Block) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Lattice vectors in rows in Å [3, 3] (a along x, b in xy) and the angles in degrees.

    Raises:
        Refused: a length or angle is missing, not a number or impossible.
    """
    parameters = []
    for tag in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        value = block.number(f"_cell_{tag}")
        if value is None:
            raise Refused(ReadReason.NO_CELL, f"_cell_{tag} is missing or not a number; write it")
        parameters.append(value)
    a, b, c, alpha, beta, gamma = parameters
    if min(a, b, c) <= 0 or not all(0 < angle < 180 for angle in (alpha, beta, gamma)):
        raise Refused(
            ReadReason.CONTRADICTION,
            f"the cell {a:g} {b:g} {c:g} Å, {alpha:g} {beta:g} {gamma:g}° cannot exist; correct it",
        )
    cos_a, cos_b, cos_g = (math.cos(math.radians(x)) if x != 90 else 0.0 for x in (alpha, beta, gamma))
    sin_g = math.sin(math.radians(gamma)) if gamma != 90 else 1.0
    x, y = cos_b, (cos_a - cos_b * cos_g) / sin_g
    if x * x + y * y >= 1:
        raise Refused(
            ReadReason.CONTRADICTION, f"the angles {alpha:g} {beta:g} {gamma:g}° span no volume; correct them"
        )
    rows = [[a, 0.0, 0.0], [b * cos_g, b * sin_g, 0.0], [c * x, c * y, c * math.sqrt(1 - x * x - y * y)]]
    return np.array(rows), (alpha, beta, gamma)


def read_sites(block: Block) -> Sites:
    """The listed atoms. `?` or `.` as occupancy is 1; dummy sites (`_atom_site_calc_flag dum`) are left out.

    Raises:
        Refused: no sites, a coordinate that is no number, a partial occupancy, an unknown element, an unsupported kind.
    """
    for tag, kind in UNSUPPORTED_TAGS.items():
        if block.text(tag) not in (None, "0"):
            raise Refused(ReadReason.SYMMETRY_UNKNOWN, f"this is {kind}; give a plain three-dimensional cell")
    if not block.has_sites:
        extra = " (only Cartesian ones)" if block.values.get("_atom_site_cartn_x") else ""
        raise Refused(ReadReason.NO_ATOMS, f"no fractional coordinates{extra}; write _atom_site_fract_x, _y, _z")
    columns = [block.values.get(f"_atom_site_fract_{axis}") for axis in "xyz"]
    count = len(columns[0] or ())
    if any(column is None or len(column) != count for column in columns):
        raise Refused(ReadReason.NO_ATOMS, "_atom_site_fract_x, _y and _z are not all there; write all three")
    types = _column(block, "_atom_site_type_symbol", count)
    labels = _column(block, "_atom_site_label", count)
    names = tuple(label or f"site {k + 1}" for k, label in enumerate(labels))
    flags = _column(block, "_atom_site_calc_flag", count)
    kept = [k for k in range(count) if flags[k].lower() not in ("dum", "dummy")]
    if not kept:
        raise Refused(ReadReason.NO_ATOMS, "all sites are dummies; write at least one atom")
    notes = (f"{count - len(kept)} dummy sites left out",) if len(kept) < count else ()
    numbers, fractional = [], []
    for k, occupancy in zip(kept, _occupancies(block, kept, count, names), strict=True):
        if abs(occupancy - 1) > OCCUPANCY_TOLERANCE:
            raise Refused(
                ReadReason.PARTIAL_OCCUPANCY,
                f"{names[k]} has occupancy {occupancy:g}; write one ordered configuration with whole atoms",
            )
        numbers.append(_atomic_number(types[k], labels[k], names[k]))
        fractional.append(_coordinates([column[k] for column in columns if column is not None], names[k]))
    kept_names = tuple(names[k] for k in kept)
    return Sites(kept_names, np.array(numbers, np.int32), np.array(fractional), tuple(kept), notes)


def _column(block: Block, tag: str, count: int) -> list[str]:
    """Texts of a site column; empty where absent, `?` or `.`."""
    raw = block.values.get(tag, ())
    if len(raw) != count:
        return [""] * count
    return ["" if gemmi.cif.is_null(v) else str(gemmi.cif.as_string(v)).strip() for v in raw]


def _occupancies(block: Block, kept: list[int], count: int, names: Sequence[str]) -> list[float]:
    texts = _column(block, "_atom_site_occupancy", count)
    values = [1.0 if texts[k] == "" else float(gemmi.cif.as_number(texts[k])) for k in kept]
    for k, value in zip(kept, values, strict=True):
        if math.isnan(value):
            raise Refused(
                ReadReason.MALFORMED, f"the occupancy '{_short(texts[k])}' of {names[k]} is no number; correct it"
            )
    return values


def _coordinates(raw: list[str], name: str) -> list[float]:
    values = [float(gemmi.cif.as_number(v)) for v in raw]
    for axis, text, value in zip("xyz", raw, values, strict=True):
        if not math.isfinite(value):
            raise Refused(
                ReadReason.NOT_FINITE,
                f"{axis} of {name} is '{_short(text)}', not a finite number; correct it",
            )
    return values


def _atomic_number(type_symbol: str, label: str, name: str) -> int:
    number = _from_type(type_symbol) if type_symbol else _from_label(label)
    if number == 0:
        text, tag = (type_symbol, "_atom_site_type_symbol") if type_symbol else (label, "_atom_site_label")
        raise Refused(
            ReadReason.UNKNOWN_ELEMENT,
            f"'{_short(text)}' of {name} ({tag}) names no element; write the element in _atom_site_type_symbol",
        )
    return number


@lru_cache(maxsize=4096)
def _from_type(symbol: str) -> int:
    """`Zn`, `ZN`, `Zn2+`, `O-2`, `C1` -> element; 0 where the letters are none."""
    match = re.fullmatch(r"([A-Za-z]{1,2})[\d+\-.]*", symbol)
    return _element(match[1].capitalize()) if match else 0


@lru_cache(maxsize=4096)
def _from_label(label: str) -> int:
    """Element that begins a label. `CA1` may be calcium or a carbon: such labels are 0 (undecided)."""
    match = re.match(r"([A-Z])([a-z]?)([A-Z]?)", label)
    if match is None:
        return 0
    if match[2]:
        return _element(match[1] + match[2])
    one, two = _element(match[1]), _element(match[1] + match[3].lower()) if match[3] else 0
    return 0 if one and two else one or two


def _element(symbol: str) -> int:
    """Atomic number; 0 for the placeholder X and whatever is no element. D and T are hydrogen."""
    return 1 if symbol == "T" else int(gemmi.Element(symbol).atomic_number)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
