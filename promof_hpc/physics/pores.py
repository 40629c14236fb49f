"""Pore geometry of a structure: largest cavity, limiting openings and how many directions they run in.

Atoms are hard spheres with the radii of Zeo++. The largest cavity diameter (LCD) is the diameter of the largest sphere
that fits, the pore limiting diameter (PLD) that of the largest sphere that can travel through the crystal without end
(definitions: Willems et al., Microporous Mesoporous Mater. 149 (2012) 134).

Method: the cell is cut into voxels, and a sphere of a given radius passes from one to the next where their common face
holds a point with that much clearance. The widest point of each face that matters is found by branch and bound, so
narrow channels are followed as well as wide ones whatever the grid; a periodic union-find then tells at which width
the void becomes endless. The bottleneck found is last replaced by the ring of three atoms that forms it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.physics.radii import radii
from promof_hpc.structure import Structure

PROBE_RADIUS_ANG = 1.2
"""Default probe: CoRE MOF 2019 calls a structure porous from a PLD of 2.4 Å on."""

SPACING_ANG = 0.3
"""Voxel edge in cells of ordinary size."""

MAX_VOXELS = 500_000
"""Number of voxels about which the spacing grows with the cell."""

TOLERANCE_ANG = 5e-4
"""Error allowed in a radius by branch and bound."""


class PoreRefusal(StrEnum):
    """Why a structure has no pore geometry."""

    NO_RADIUS = "no radius"
    NOT_FINITE = "not finite"
    FLAT_CELL = "flat cell"
    EMPTY = "no atoms"


@dataclass(frozen=True)
class Pores:
    """Pore geometry of a rigid structure; all diameters in Å, 0 where not even a point fits.

    Attributes:
        lcd_ang: largest cavity diameter.
        pld_ang: pore limiting diameter.
        lfpd_ang: largest cavity diameter along the path of the pore limiting diameter.
        percolation_ang: widest spheres that can travel without end in at least one, two and three independent
            directions inside one void; the first is the PLD.
        probe_radius_ang: radius of the probe that `dimensionality` is about.
        dimensionality: independent directions (0 to 3) in which the probe can travel without end, in the void where
            there are most.
        cavity: centre of the largest sphere, Cartesian in Å.
        window: centre of the narrowest place on the way of the sphere with the PLD, None if the PLD is 0.
    """

    lcd_ang: float
    pld_ang: float
    lfpd_ang: float
    percolation_ang: tuple[float, float, float]
    probe_radius_ang: float
    dimensionality: int
    cavity: tuple[float, float, float]
    window: tuple[float, float, float] | None


def pores(structure: Structure, probe_radius_ang: float = PROBE_RADIUS_ANG) -> Pores:
    """Pore geometry of `structure`, the same for every description of a crystal within 0.02 Å.

    Raises:
        Refused: an element has no radius, a coordinate is not finite, the cell has no volume or no atoms.
    """
    grid = _Grid.of(structure)
    faces = grid.widest_faces()
    order = np.argsort(-faces, kind="stable")[: np.count_nonzero(faces > 0.0)]
    critical, roots = grid.sweep(order, len(order))
    passes = [grid.narrow(int(order[c]), float(faces[order[c]])) for c in critical if c >= 0]
    widths = np.minimum.accumulate([2.0 * p[0] for p in passes] + [0.0] * (3 - len(passes)))
    lcd, cavity = grid.largest()
    lfpd = 0.0
    if passes:
        _, roots = grid.sweep(order, int(critical[0]) + 1)
        lfpd, _ = grid.largest(roots == roots[order[critical[0]] // 3])
    return Pores(
        lcd_ang=max(2.0 * lcd, 0.0),
        pld_ang=float(widths[0]),
        lfpd_ang=2.0 * lfpd,
        percolation_ang=(float(widths[0]), float(widths[1]), float(widths[2])),
        probe_radius_ang=probe_radius_ang,
        dimensionality=int(np.count_nonzero((widths > 0.0) & (widths >= 2.0 * probe_radius_ang))),
        cavity=cavity,
        window=passes[0][1] if passes else None,
    )


@dataclass(frozen=True)
class _Grid:
    """The voxels of a cell with the atoms around them.

    Attributes:
        shape: voxels along the three cell vectors, int64 [3].
        frame: edge vectors of a voxel in rows in Å [3, 3].
        spheres: atoms in and around the cell, x, y, z, radius in Å [m, 4].
        voxels: clearance in the middle of each voxel in Å [V].
        faces: clearance in the middle of the three lower faces of each voxel in Å [V, 3].
        reach: half diagonals in Å of a block, a voxel and its three faces [5].
    """

    shape: np.ndarray
    frame: np.ndarray
    spheres: np.ndarray
    voxels: np.ndarray
    faces: np.ndarray
    reach: np.ndarray

    @classmethod
    def of(cls, structure: Structure) -> _Grid:
        """Voxels of the reduced cell of `structure`."""
        from promof_hpc.physics import clearance as cl

        sphere_radii = _checked_radii(structure)
        cell = _reduced(structure.cell)
        spacing = max(SPACING_ANG, (structure.volume / MAX_VOXELS) ** (1 / 3))
        shape = np.maximum(np.ceil(np.linalg.norm(cell, axis=1) / spacing), 2).astype(np.int64)
        frame = cell / shape[:, None]
        reach = np.array(
            [cl.half_diagonal(cl.BLOCK * frame), cl.half_diagonal(frame)]
            + [cl.half_diagonal(np.delete(frame, axis, 0)) for axis in range(3)]
        )
        fractional = np.linalg.solve(cell.T, structure.positions.T).T
        beyond = 2.0 * reach[0] + sphere_radii.max()
        spheres = cl.neighbourhood(fractional, cell, sphere_radii, beyond)
        # with more images the clearance can only fall, so one more round is always enough
        widest = cl.block_clearance(shape, frame, spheres)
        if widest > 0.0:
            spheres = cl.neighbourhood(fractional, cell, sphere_radii, beyond + widest)
        voxels, faces = cl.sample(shape, frame, reach, spheres)
        return cls(shape, frame, spheres, voxels, faces, reach)

    def sweep(self, order: np.ndarray, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """`percolation.sweep` on this grid."""
        from promof_hpc.physics.percolation import sweep

        return sweep(order, self.shape, stop)

    def widest_faces(self) -> np.ndarray:
        """Clearance at the widest point of each face in Å [3V]; exact where it can decide a threshold.

        Elsewhere it is the clearance in the middle of the face: those faces are certainly open, or certainly closed,
        at all three thresholds.
        """
        from promof_hpc.physics.clearance import refine_faces

        lowest = self.faces.ravel()
        highest = (self.faces + self.reach[2:]).ravel()
        floors, ceilings = self._thresholds(lowest), self._thresholds(highest)
        wanted = np.zeros(len(lowest), bool)
        for floor, ceiling in zip(floors, ceilings, strict=True):
            if ceiling > 0.0:
                wanted |= (highest >= floor) & (lowest <= ceiling)
        faces = self.faces.copy()
        refine_faces(
            self.shape,
            self.frame,
            self.reach[[0, 2, 3, 4]],
            self.spheres,
            wanted.reshape(-1, 3),
            faces,
            TOLERANCE_ANG,
        )
        return faces.ravel()

    def _thresholds(self, faces: np.ndarray) -> list[float]:
        """Clearance in Å at which a void becomes endless in 1, 2, 3 directions if faces are as wide as said."""
        order = np.argsort(-faces, kind="stable")[: np.count_nonzero(faces > 0.0)]
        critical, _ = self.sweep(order, len(order))
        return [float(faces[order[c]]) if c >= 0 else 0.0 for c in critical]

    def narrow(self, face: int, width: float) -> tuple[float, tuple[float, float, float]]:
        """The ring of atoms at a critical face: its radius in Å, and its centre.

        The face is crossed near the ring, not in it, so its width is a hair more than the ring's.
        """
        from promof_hpc.physics import clearance as cl

        axis = face % 3
        middle, widest = np.empty(3), np.empty(3)
        everything = np.arange(len(self.spheres))
        kept = np.empty_like(everything)
        cl.face_middle(face // 3, axis, self.shape, self.frame, middle)
        half = cl.face_edges(axis, self.frame)
        size = len(everything)
        reach = self.reach[2 + axis]
        cl.maximise(middle, half, reach, self.spheres, everything, size, -np.inf, TOLERANCE_ANG, widest)
        around = 2.0 * self.reach[1]
        _, count = cl.shortlist(widest, around, self.spheres, everything, size, kept)
        ceiling = width + 2.0 * TOLERANCE_ANG
        found, where = cl.narrowest_point(widest, ceiling, around, self.spheres, kept, count)
        # straight through a voxel past an atom, the clearance dips by at most diagonal² / (8 · distance)
        dip = (2.0 * self.reach[1]) ** 2 / (8.0 * max(width + 1.0, 1.0))
        return (found, _place(where)) if found >= width - dip else (width, _place(widest))

    def largest(self, among: np.ndarray | None = None) -> tuple[float, tuple[float, float, float]]:
        """Largest clearance in Å and its place, in the voxels where `among` [V] (default: everywhere)."""
        from promof_hpc.physics.clearance import largest_clearance

        inside = np.ones(len(self.voxels), bool) if among is None else among
        radius, place = largest_clearance(
            self.shape, self.frame, self.reach[1], self.spheres, self.voxels, inside, TOLERANCE_ANG
        )
        return float(radius), _place(place)


def _place(point: np.ndarray) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])


def _reduced(cell: np.ndarray) -> np.ndarray:
    """The Niggli-reduced vectors of the same lattice, unrotated."""
    import spglib

    reduced = spglib.niggli_reduce(cell, eps=1e-6)
    return np.asarray(cell if reduced is None else reduced, np.float64)


def _checked_radii(structure: Structure) -> np.ndarray:
    """Radius of each atom in Å.

    Raises:
        Refused: as `pores`.
    """
    if len(structure) == 0:
        raise Refused(PoreRefusal.EMPTY, "the structure has no atoms; remove it from the input")
    if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
        raise Refused(PoreRefusal.NOT_FINITE, "a coordinate or cell vector is not a number; repair the input")
    edges = np.linalg.norm(structure.cell, axis=1)
    if structure.volume <= 1e-6 * edges.prod():
        raise Refused(PoreRefusal.FLAT_CELL, "the cell vectors span no volume; repair the cell")
    sphere_radii = radii(structure)
    if np.isnan(sphere_radii).any():
        odd = sorted({int(z) for z in structure.numbers[np.isnan(sphere_radii)]})
        raise Refused(PoreRefusal.NO_RADIUS, f"atomic numbers {odd} have no pore radius; replace those atoms")
    return sphere_radii
