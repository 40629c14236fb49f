"""Assembly f(blocks, torsions, poses, cell) -> structure: each block is bent, turned and put in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promof_hpc.geometry.torsion import Torsions, set_angles
from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Part:
    """One block and what an engineer decides about it.

    Attributes:
        numbers: atomic numbers, int32 [n].
        local: coordinates in Å in the block's own frame, [n, 3].
        rotation: proper rotation [3, 3], applied about the centroid as `local @ rotation.T`.
        centroid: where the mean of the atoms goes, in Å, [3].
        torsions: rotatable bonds, or None for a rigid block.
        angles: angle of each torsion in rad, [t]; None leaves the torsions of `local`.
    """

    numbers: np.ndarray
    local: np.ndarray
    rotation: np.ndarray
    centroid: np.ndarray
    torsions: Torsions | None = None
    angles: np.ndarray | None = None

    @property
    def positions(self) -> np.ndarray:
        """Cartesian coordinates in Å, [n, 3]: torsions first, then rotation about the centroid, then translation."""
        local = self.local
        if self.torsions is not None and self.angles is not None:
            local = set_angles(local, self.torsions, self.angles)
        # turning a torsion moves the mean, which would shift the block under an unchanged pose
        placed: np.ndarray = (local - local.mean(0)) @ self.rotation.T + self.centroid
        return placed


def assemble(parts: Sequence[Part], cell: np.ndarray) -> Structure:
    """The crystal made of these blocks; atoms follow the order of the blocks and are not wrapped into the cell.

    With the crystal's own local coordinates, torsions and poses the crystal comes back within 1e-10 Å.

    Args:
        parts: the blocks of one cell, at least one.
        cell: lattice vectors in rows in Å, [3, 3].

    Raises:
        ValueError: no block, or a block whose arrays do not fit each other.
    """
    if not parts:
        raise ValueError("an assembly needs at least one block")
    for k, part in enumerate(parts):
        if part.local.shape != (len(part.numbers), 3):
            raise ValueError(f"block {k} has {len(part.numbers)} atoms but local coordinates {part.local.shape}")
    numbers = np.concatenate([part.numbers for part in parts]).astype(np.int32)
    positions = np.concatenate([part.positions for part in parts]).astype(np.float64)
    return Structure(numbers, positions, np.asarray(cell, np.float64))
