"""How far an assembly is from closing its contacts without overlaps.

E = sum |donor - site|² + w_b sum |back - behind|² + w_r sum (touching - d)₊² + w_v (ln V_least/V)₊², all in Å².
A descent is held to where it began by w_h (sum |move of an atom|² + N/12 sum |change of a lattice vector|²): with model
blocks no assembly closes all contacts, and along the soft ways of a framework the last of E would be paid for with
another crystal. N/12 is what the change moves atoms that fill the cell evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promof_hpc.assembly.batched import take, where
from promof_hpc.assembly.snap_ends import Ends
from promof_hpc.assembly.snap_overlap import Overlaps, Reach
from promof_hpc.assembly.stack import Poses, Stack, per_atom, place


@dataclass(frozen=True)
class Anchor:
    """Where a descent began.

    Attributes:
        atoms: in Å, [B, A, 3].
        cells: lattice vectors in rows in Å, [B, 3, 3].
    """

    atoms: Tensor
    cells: Tensor


@dataclass(frozen=True)
class Rig:
    """What is fixed about B assemblies while they are snapped.

    Attributes:
        fixed: the blocks.
        ends: their ends.
        reach: which atoms repel.
        least_volume: cell volume in Å³ below which the cell is pushed to grow, [B].
        anchor: what the descent is held to; None: to nothing.
    """

    fixed: Stack
    ends: Ends
    reach: Reach
    least_volume: Tensor
    anchor: Anchor | None = None

    def take(self, rows: Tensor) -> Rig:
        """The assemblies `rows`."""
        return Rig(
            self.fixed.take(rows.tolist()),
            take(self.ends, rows),
            self.reach.take(rows),
            self.least_volume[rows],
            self.anchor and take(self.anchor, rows),
        )


@dataclass(frozen=True)
class Matched:
    """Which donor each site waits for.

    Attributes:
        donor: number of the donor, int64 [B, M].
        shift: cell image of its block relative to the node's, [B, M, 3].
    """

    donor: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the energy relative to the site-donor squares.

    Attributes:
        behind: of the points behind donors.
        repulsion: of overlaps.
        volume: of the least volume, in Å².
        hold: of the way from the anchor.
    """

    behind: float
    repulsion: float
    volume: float
    hold: float = 0.0


@dataclass(frozen=True)
class Points:
    """Cartesian coordinates in Å of everything that the energy looks at.

    Attributes:
        atoms: [B, A, 3].
        sites, behinds: where nodes want donors and the points behind them, [B, M, 3].
        donors, backs: where they are, in the order of the donors, [B, M, 3].
    """

    atoms: Tensor
    sites: Tensor
    behinds: Tensor
    donors: Tensor
    backs: Tensor


@dataclass(frozen=True)
class Gaps:
    """Residuals of the energy, unweighted.

    Attributes:
        sites, behinds: from site to matched donor, and from the point behind to that behind the donor, in Å, [B, M, 3].
        span: from the node's centroid to that of the linker's image in Å, [B, M, 3].
        between: from the first atom of each close pair to the second in Å, [B, Q, 3].
        overlap: how deep each pair overlaps in Å, [B, Q].
        volume: (ln V_least/V)₊, [B].
        drift: of every atom from the anchor in Å, [B, A, 3]; `stretch` of the lattice vectors, [B, 3, 3].
    """

    sites: Tensor
    behinds: Tensor
    span: Tensor
    between: Tensor
    overlap: Tensor
    volume: Tensor
    drift: Tensor
    stretch: Tensor


@dataclass(frozen=True)
class View:
    """Assemblies in their present poses, with contacts, close pairs and everything measured."""

    rig: Rig
    poses: Poses
    points: Points
    matched: Matched
    overlaps: Overlaps
    gaps: Gaps

    def energy(self, weights: Weights) -> Tensor:
        """Energy in Å², [B]."""
        gaps = self.gaps
        contacts = (gaps.sites**2).sum((1, 2)) + weights.behind * (gaps.behinds**2).sum((1, 2))
        held = (gaps.drift**2).sum((1, 2)) + stretch_weight(self.rig) * (gaps.stretch**2).sum((1, 2))
        apart = weights.repulsion * (gaps.overlap**2).sum(1)
        return contacts + apart + weights.volume * gaps.volume**2 + weights.hold * held

    def at(self, poses: Poses) -> View:
        """The same contacts and pairs in other poses."""
        return view(self.rig, poses, points_of(self.rig, poses), self.matched, self.overlaps)

    def where(self, chosen: Tensor, other: View) -> View:
        """The poses of `other`, which has the same contacts and pairs, where `chosen` [B]."""
        return View(
            self.rig,
            where(chosen, other.poses, self.poses),
            where(chosen, other.points, self.points),
            self.matched,
            self.overlaps,
            where(chosen, other.gaps, self.gaps),
        )


def view(rig: Rig, poses: Poses, points: Points, matched: Matched, overlaps: Overlaps) -> View:
    """Measure assemblies, whose `points` are those of `poses`, with these contacts and close pairs."""
    return View(rig, poses, points, matched, overlaps, _gaps(rig, poses, points, matched, overlaps))


def stretch_weight(rig: Rig) -> Tensor:
    """What a lattice vector's change counts beside an atom's move, [B]."""
    return rig.fixed.atoms.sum(1).to(rig.least_volume) / 12.0


def points_of(rig: Rig, poses: Poses) -> Points:
    """Where atoms and sites are."""
    ends = rig.ends
    atoms = place(rig.fixed, poses)
    turn = per_atom(poses.rotations, ends.site_block)
    centre = per_atom(poses.centroids, ends.site_block)
    sites, behinds = (torch.einsum("bmij,bmj->bmi", turn, x) + centre for x in (ends.site, ends.behind))
    return Points(atoms, sites, behinds, mean_of_donors(ends, atoms), mean_of_backs(ends, atoms))


def mean_of_donors(ends: Ends, values: Tensor) -> Tensor:
    """Mean of atom values [B, A, c] over the atoms of every donor, [B, M, c]."""
    return _mean(values, ends.donor, ends.donor_weight)


def mean_of_backs(ends: Ends, values: Tensor) -> Tensor:
    """Mean of atom values [B, A, c] over the atoms behind every donor, [B, M, c]."""
    return _mean(values, ends.back, ends.back_weight)


def _mean(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    picked = per_atom(values, index.flatten(1)).unflatten(1, index.shape[1:])
    return (picked * weight[..., None]).sum(2)


def _gaps(rig: Rig, poses: Poses, points: Points, matched: Matched, overlaps: Overlaps) -> Gaps:
    real = rig.ends.sites[..., None]
    shift = matched.shift @ poses.cells
    linker = torch.gather(rig.ends.donor_block, 1, matched.donor)
    first, second = (per_atom(points.atoms, x) for x in (overlaps.first, overlaps.second))
    between = second + overlaps.shift @ poses.cells - first
    volume = torch.linalg.det(poses.cells).abs()
    anchor = rig.anchor or Anchor(points.atoms, poses.cells)
    return Gaps(
        sites=torch.where(real, per_atom(points.donors, matched.donor) + shift - points.sites, 0.0),
        behinds=torch.where(real, per_atom(points.backs, matched.donor) + shift - points.behinds, 0.0),
        span=per_atom(poses.centroids, linker) + shift - per_atom(poses.centroids, rig.ends.site_block),
        between=between,
        overlap=(overlaps.touching - between.norm(dim=-1)).clamp_min(0.0),
        volume=(rig.least_volume / volume).log().clamp_min(0.0),
        drift=(points.atoms - anchor.atoms) * rig.fixed.atoms[..., None],
        stretch=poses.cells - anchor.cells,
    )
