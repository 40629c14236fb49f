"""CIF text made in a test: rocksalt-like or whatever is asked for, every line under control."""

from __future__ import annotations

from collections.abc import Sequence

ROCKSALT = ("Mg1 Mg 0 0 0", "O1 O 0.5 0.5 0.5")
F_TRANSLATIONS = ("x,y,z", "x,y+1/2,z+1/2", "x+1/2,y,z+1/2", "x+1/2,y+1/2,z")


def cif(
    atoms: Sequence[str] = ROCKSALT,
    *,
    cell: str = "4.2 4.2 4.2 90 90 90",
    operators: Sequence[str] = F_TRANSLATIONS,
    columns: str = "label type_symbol fract_x fract_y fract_z",
    extra: Sequence[str] = (),
    block: str = "x",
) -> str:
    """One data block; `extra` are lines before the atoms. The default is MgO, Mg4 O4 in 74.1 Å³."""
    tags = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{block}", *(f"_cell_{t} {v}" for t, v in zip(tags, cell.split(), strict=False)), *extra]
    if operators:
        lines += ["loop_", "_space_group_symop_operation_xyz", *(f"'{o}'" for o in operators)]
    lines += ["loop_", *(f"_atom_site_{c}" for c in columns.split()), *atoms]
    return "\n".join(lines) + "\n"
