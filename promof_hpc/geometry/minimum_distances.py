"""Average minimum distances: a vector that describes a crystal whatever its cell, origin, orientation and numbering.

Widdowson et al., MATCH Commun. Math. Comput. Chem. 87, 529 (2022). Small moves of atoms change it little, so it says
quickly that two crystals differ; elements are not looked at.
"""

from __future__ import annotations

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce
from scipy.spatial import KDTree

from promof_hpc.structure import Structure

NEIGHBOURS = 100
REACH_MARGIN = 1.2  # first guess of the farthest neighbour, times that of a uniform density


def average_minimum_distances(structure: Structure, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Mean over the atoms of the distance to their k-th nearest neighbour, k = 1 ... `neighbours`, in Å [neighbours].

    Raises:
        ValueError: no atoms, or a flat cell.
    """
    if not len(structure) or structure.volume < 1e-6:
        raise ValueError("a crystal needs atoms and a cell with a volume")
    cell = np.asarray(minkowski_reduce(structure.cell)[0])  # of a flat cell too many images would be within reach
    fractional = np.linalg.solve(cell.T, structure.positions.T).T % 1.0
    heights = structure.volume / np.linalg.norm(np.cross(np.roll(cell, -1, 0), np.roll(cell, -2, 0)), axis=1)
    home = fractional @ cell
    reach = REACH_MARGIN * (3 * (neighbours + 1) * structure.volume / (4 * np.pi * len(structure))) ** (1 / 3)
    while True:
        tree = KDTree(_within(fractional, cell, reach / heights))
        found = tree.query(home, k=neighbours + 1)[0] if tree.n > neighbours else np.full((1, 1), np.inf)
        if found.max() <= reach:  # nothing nearer can lie outside what was searched
            averages: np.ndarray = found[:, 1:].mean(0)  # an atom's first neighbour is itself
            return averages
        reach *= REACH_MARGIN


def _within(fractional: np.ndarray, cell: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Cartesian positions of every image of atoms [N, 3] that is within `reach` [3] (in cells) of the home cell."""
    spans = [np.arange(-int(r) - 1, int(r) + 2) for r in reach]
    shifts = np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, 3)
    images = (fractional[None] + shifts[:, None]).reshape(-1, 3)
    near = ((images >= -reach - 1e-9) & (images <= 1.0 + reach + 1e-9)).all(1)
    return images[near] @ cell
