"""What the page's 3D pictures are drawn from: atoms, cell and periodic bonds, before and after the relaxation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from promof_hpc.report.data import BestStructure
from promof_hpc.screen.structure_text import cif_text, safe_stem
from promof_hpc.structure import Structure

MOST_PICTURES = 12  # each picture holds a WebGL context, of which browsers keep 16 alive


def gallery(best: Sequence[BestStructure]) -> list[dict[str, Any]]:
    """One dict a picture: `name`, `stem` for downloads, and `before` and `after` as `view` and `cif`."""
    return [
        {
            "name": b.name,
            "stem": safe_stem(b.name),
            "before": _state(b.as_read, b, "as read"),
            "after": _state(b.relaxed, b, f"promof: {b.row.outcome}, evaluation {b.row.evaluation_id}"),
        }
        for b in best
    ]


def view(structure: Structure) -> dict[str, Any]:
    """A structure as plain lists.

    Returns:
        `elements` [N] symbols, `positions` [N][3] in Å inside the cell, `cell` [3][3] in Å, and `bonds` [B] as
        (i, j, a, b, c): atom i with the image of atom j in the cell (a, b, c).
    """
    import numpy as np
    from ase.data import chemical_symbols

    from promof_hpc.chem.bonds import bonds

    fractional = structure.fractional
    home = np.floor(fractional + 1e-6)  # atoms a hair below 0 stay where they are, or faces would look torn
    found = bonds(structure)
    shift = found.shift + home[found.j].astype(int) - home[found.i].astype(int)
    return {
        "elements": [chemical_symbols[z] for z in structure.numbers.tolist()],
        "positions": np.round((fractional - home) @ structure.cell, 2).tolist(),
        "cell": np.round(structure.cell, 3).tolist(),
        "bonds": np.column_stack([found.i, found.j, shift]).astype(int).tolist(),
    }


def _state(structure: Structure, best: BestStructure, remark: str) -> dict[str, Any]:
    return {"view": view(structure), "cif": cif_text(structure, best.name, [remark])}
