"""Structures as text for other programs: P1 CIF, extended XYZ frames, and names that any file system takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from promof_hpc.structure import Structure

LONGEST_STEM = 100  # characters; file systems stop at 255 bytes, and a suffix must still fit
NOT_SAFE = re.compile(r"[^A-Za-z0-9._+=-]+")


def cif_text(structure: Structure, name: str, remarks: Iterable[str] = ()) -> str:
    """A crystal as a P1 CIF; reading it gives the positions back within 1e-6 Å, up to a rotation.

    Args:
        name: becomes the data block (sanitised) and stands as it is in a comment.
        remarks: further comment lines.
    """
    from ase.data import chemical_symbols
    from ase.geometry import cell_to_cellpar

    # a CIF states lengths and angles only, so a left-handed cell would come back as its mirror image
    hand = np.sign(np.linalg.det(structure.cell))
    fractional = (hand * structure.fractional) % 1.0
    parameters = cell_to_cellpar(structure.cell)
    keys = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"# {_one_line(remark)}" for remark in (name, *remarks)]
    lines += [f"data_{safe_stem(name)}"]
    lines += [f"_cell_{key} {value:.8f}" for key, value in zip(keys, parameters, strict=True)]
    lines += ["_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 1"]
    lines += ["loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'"]
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    lines += ["loop_", *(f"_atom_site_{column}" for column in columns)]
    seen: dict[str, int] = {}
    for number, (x, y, z) in zip(structure.numbers.tolist(), fractional.tolist(), strict=True):
        symbol = chemical_symbols[number]
        seen[symbol] = seen.get(symbol, 0) + 1
        lines.append(f"{symbol}{seen[symbol]} {symbol} {x:.8f} {y:.8f} {z:.8f} 1.0")
    return "\n".join(lines) + "\n"


def extxyz_frame(structure: Structure, info: Mapping[str, str | int | float]) -> str:
    """A crystal as one frame of an extended XYZ file, as `ase.io.read` takes it.

    Args:
        info: stands in the comment line; `energy` in eV becomes the energy of ASE's calculator.
    """
    from ase.data import chemical_symbols

    cell = " ".join(f"{x:.8f}" for x in structure.cell.ravel().tolist())
    said = " ".join(f"{key}={_value(value)}" for key, value in info.items())
    lines = [str(len(structure)), f'Lattice="{cell}" Properties=species:S:1:pos:R:3 {said} pbc="T T T"']
    lines += [
        f"{chemical_symbols[number]} {x:.8f} {y:.8f} {z:.8f}"
        for number, (x, y, z) in zip(structure.numbers.tolist(), structure.positions.tolist(), strict=True)
    ]
    return "\n".join(lines) + "\n"


def safe_stem(name: str) -> str:
    """A name of letters, digits and `._+=-` for any text, never hidden, at most `LONGEST_STEM` long."""
    return NOT_SAFE.sub("_", name).strip("._-")[:LONGEST_STEM] or "structure"


def safe_stems(names: Iterable[str]) -> dict[str, str]:
    """`safe_stem` of every name, made unique with `-2`, `-3`; file systems that ignore case are reckoned with."""
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem, copies = safe_stem(name), 1
        unique = stem
        while unique.lower() in taken:
            copies += 1
            unique = f"{stem}-{copies}"
        taken.add(unique.lower())
        stems[name] = unique
    return stems


def _value(value: str | int | float) -> str:
    """A value of the comment line, quoted where it is text."""
    if not isinstance(value, str):
        return repr(value)
    return '"' + _one_line(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _one_line(text: str) -> str:
    return " ".join(text.split())
