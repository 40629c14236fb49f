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
from typing import TYPE_CHECKING

import numpy as np

from promof_hpc.errors import Refused
from promof_hpc.physics.radii import radii
from promof_hpc.structure import Structure

if TYPE_CHECKING:
    from promof_hpc.physics.clearance import Grid

PROBE_RADIUS_ANG = 1.2
"""Default probe: CoRE MOF 2019 calls a structure porous from a PLD of 2.4 Å on."""

SPACING_ANG = 0.3
"""Largest voxel edge in a cell of ordinary size."""

MAX_VOXELS = 800_000
"""Voxels in a cell of any size: the spacing grows from where `SPACING_ANG` would take more."""

TOLERANCES_ANG = (0.05, 1e-3)
"""Errors allowed in the width of a face, round after round."""

CAVITY_TOLERANCE_ANG = 1e-4
"""Error allowed in the radius of a cavity."""


MAX_ATOMS_PER_ANG3 = 2.0
"""No solid comes near (diamond has 0.18); the images around a cell that is denser would fill the memory."""


class PoreRefusal(StrEnum):
    """Why a structure has no pore geometry."""

    NO_RADIUS = "no radius"
    NOT_FINITE = "not finite"
    FLAT_CELL = "flat cell"
    EMPTY = "no atoms"
    COLLAPSED = "collapsed"


@dataclass(frozen=True)
class Pores:
    """Pore geometry of a rigid structure; all diameters in Å, 0 where not even a point fits.

    Attributes:
        lcd_ang: largest cavity diameter.
        pld_ang: pore limiting diameter.
        lfpd_ang: diameter of the largest cavity in the void that the sphere with the PLD travels through (Zeo++ looks
            along one path only, so its value can be lower).
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
    """Pore geometry of `structure`, equal for all descriptions of a crystal to 0.02 Å.

    Raises:
        Refused: an element has no radius, a coordinate is not finite, the cell has no atoms, no volume or hardly any.
    """
    from promof_hpc.physics import clearance as cl
    from promof_hpc.physics.percolation import sweep

    sphere_radii = _checked_radii(structure)
    spacing = max(SPACING_ANG, (structure.volume / MAX_VOXELS) ** (1 / 3))
    grid = cl.build(structure.positions, _reduced(structure.cell), sphere_radii, spacing)
    voxels, faces = cl.sample(grid)
    faces = _widest_faces(faces, grid)
    order = _widest_first(faces)
    critical, _ = sweep(order, grid.shape, len(order))
    passes = [_ring(int(order[c]), grid) for c in critical if c >= 0]
    radii_found = [max(radius, 0.0) for radius, _ in passes] + [0.0] * (3 - len(passes))
    widths = 2.0 * np.minimum.accumulate(radii_found)
    radius, cavity = _cavity(np.arange(len(voxels)), voxels, grid)
    lfpd = 0.0
    if passes:
        _, roots = sweep(order, grid.shape, critical[0] + 1)
        void = np.flatnonzero(roots == roots[order[critical[0]] // 3])
        lfpd = max(2.0 * _cavity(void, voxels, grid)[0], float(widths[0]))
    return Pores(
        lcd_ang=max(2.0 * radius, lfpd),
        pld_ang=float(widths[0]),
        lfpd_ang=lfpd,
        percolation_ang=(float(widths[0]), float(widths[1]), float(widths[2])),
        probe_radius_ang=probe_radius_ang,
        dimensionality=int(np.count_nonzero((widths > 0.0) & (widths >= 2.0 * probe_radius_ang))),
        cavity=_place(cavity),
        window=passes[0][1] if passes else None,
    )


def _widest_faces(faces: np.ndarray, grid: Grid) -> np.ndarray:
    """Clearance at the widest point of each face in Å, where it can decide a threshold, [3V].

    Elsewhere the width is a lower bound that already shows the face to be open, or closed, at all three thresholds.

    Args:
        faces: clearance in the middle of each face in Å [3V].
    """
    from promof_hpc.physics import clearance as cl

    faces = faces.copy()
    slack = np.tile([cl.half_diagonal(cl.face_edges(axis, grid)) for axis in range(3)], len(faces) // 3)
    for tolerance in TOLERANCES_ANG:
        wanted = np.zeros(len(faces), bool)
        for floor, ceiling in zip(_thresholds(faces, grid), _thresholds(faces + slack, grid), strict=True):
            if ceiling > 0.0:
                wanted |= (faces + slack >= floor) & (faces <= ceiling)
        chosen = np.flatnonzero(wanted)
        faces[chosen], _ = cl.widest_on_faces(chosen, grid, tolerance)
        slack[chosen] = tolerance
    return faces


def _thresholds(faces: np.ndarray, grid: Grid) -> list[float]:
    """Clearance in Å at which a void becomes endless in 1, 2, 3 directions if faces are as wide as said; 0 if never."""
    from promof_hpc.physics.percolation import sweep

    order = _widest_first(faces)
    critical, _ = sweep(order, grid.shape, len(order))
    return [float(faces[order[c]]) if c >= 0 else 0.0 for c in critical]


def _widest_first(faces: np.ndarray) -> np.ndarray:
    """Faces that let anything through, the widest first."""
    open_faces = np.flatnonzero(faces > 0.0)
    return open_faces[np.argsort(-faces[open_faces], kind="stable")]


def _ring(face: int, grid: Grid) -> tuple[float, tuple[float, float, float]]:
    """The ring of atoms at a critical face: its inner radius in Å and its centre.

    A path crosses the face near the ring, not in it, so the face is a hair wider than the ring. Where no ring fits,
    as between atoms that overlap, the face stands for it.
    """
    from promof_hpc.physics import clearance as cl

    widths, places = cl.widest_on_faces(np.array([face]), grid, TOLERANCES_ANG[-1])
    width, place = float(widths[0]), places[0]
    diagonal = 2.0 * cl.half_diagonal(0.5 * grid.frame)
    radius, centre = cl.highest_pass(place, width + 2.0 * TOLERANCES_ANG[-1], diagonal, grid.spheres)
    # on a straight way through a voxel past an atom 1 Å off or more, clearance dips by at most diagonal² / 8
    if radius < width - diagonal**2 / 8.0:
        return width, _place(place)
    return float(radius), _place(centre)


def _cavity(inside: np.ndarray, voxels: np.ndarray, grid: Grid) -> tuple[float, np.ndarray]:
    """Radius in Å and centre [3] of the largest sphere with its centre in the voxels `inside` [n].

    Args:
        voxels: clearance in the middle of each voxel in Å [V].
    """
    from promof_hpc.physics import clearance as cl

    reach = cl.half_diagonal(0.5 * grid.frame)
    able = inside[voxels[inside] + reach >= voxels[inside].max()]
    order = able[np.argsort(-voxels[able], kind="stable")]
    radius, centre = cl.widest_in_voxels(order, voxels, grid, CAVITY_TOLERANCE_ANG)
    return float(radius), centre


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
    if len(structure) > MAX_ATOMS_PER_ANG3 * structure.volume:
        density = f"{len(structure)} atoms in {structure.volume:.1f} Å³"
        raise Refused(PoreRefusal.COLLAPSED, f"{density} is no solid; repair the cell")
    sphere_radii = radii(structure)
    if np.isnan(sphere_radii).any():
        odd = sorted({int(z) for z in structure.numbers[np.isnan(sphere_radii)]})
        raise Refused(PoreRefusal.NO_RADIUS, f"atomic numbers {odd} have no pore radius; replace those atoms")
    return sphere_radii
