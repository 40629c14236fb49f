"""The Levenberg-Marquardt step of snap: analytic Jacobian, damped normal equations, capped moves.

Parameters of an assembly: translation and rotation vector of every block, every torsion, six strains of the cell, which
move the blocks' centroids but leave the blocks rigid. P = 6K + T + 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from promof_hpc.assembly.snap_ends import Ends
from promof_hpc.assembly.snap_energy import View, Weights, mean_of_backs, mean_of_donors, stretch_weight
from promof_hpc.assembly.stack import Poses, Stack, block_means, per_atom, rotation_of

STEP_CAP_ANG, STEP_CAP_RAD, STEP_CAP_STRAIN = 1.0, 0.6, 0.08
SHORTEST_ANG = 0.05  # two atoms on one spot have no direction to part in
_AXES = torch.eye(3)
STRAINS = torch.stack(  # of the six parameters: xx yy zz yz xz xy
    [
        (_AXES[i, :, None] * _AXES[j] + _AXES[j, :, None] * _AXES[i]) / 2
        for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    ]
)
MOST_OVERLAPS = 512  # that enter the step, the deepest first; the energy counts all


@dataclass(frozen=True)
class _Point:
    """N points of blocks: block [B, N], arm from its centroid [B, N, 3], velocity per torsion of the block
    [B, N, S, 3] and which torsions those are [B, N, S]."""

    block: Tensor
    arm: Tensor
    velocity: Tensor
    torsion: Tensor


def step(seen: View, weights: Weights, damping: Tensor) -> Poses:
    """Poses after one Gauss-Newton step damped by `damping` [B], shortened as a whole to the caps."""
    hessian, gradient = normal_equations(seen, weights)
    diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
    diagonal += damping[:, None] * (diagonal + 0.1) + 1e-3
    change = -torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky_ex(hessian)[0])[..., 0]
    change = torch.nan_to_num(change, nan=0.0, posinf=0.0, neginf=0.0)
    return moved(seen.rig.fixed, seen.poses, capped(seen.rig.fixed, change))


def capped(fixed: Stack, change: Tensor) -> Tensor:
    """Parameters [B, P] of each assembly shortened as a whole until no part exceeds its cap."""
    b, k = fixed.blocks.shape
    vectors = change[:, : 6 * k].reshape(b, 2, k, 3).norm(dim=-1).amax(-1)  # longest translation and rotation
    largest = [
        vectors[:, 0] / STEP_CAP_ANG,
        vectors[:, 1] / STEP_CAP_RAD,
        change[:, -6:].abs().amax(1) / STEP_CAP_STRAIN,
    ]
    if change.shape[1] > 6 * k + 6:
        largest.append(change[:, 6 * k : -6].abs().amax(1) / STEP_CAP_RAD)
    return change / torch.stack(largest).amax(0).clamp_min(1.0)[:, None]


def moved(fixed: Stack, poses: Poses, change: Tensor) -> Poses:
    """Poses changed by parameters [B, P]: translations, rotation vectors, torsions, strains (xx yy zz yz xz xy)."""
    b, k = fixed.blocks.shape
    shift, turn = change[:, : 3 * k].reshape(b, k, 3), change[:, 3 * k : 6 * k].reshape(b, k, 3)
    twist, strain = change[:, 6 * k : -6], change[:, -6:]
    tensor = torch.einsum("bk,kij->bij", strain, STRAINS.to(strain))
    return Poses(
        cells=poses.cells + poses.cells @ tensor,
        rotations=rotation_of(turn) @ poses.rotations,
        centroids=poses.centroids + _from_middle(fixed, poses) @ tensor + shift,
        angles=poses.angles + twist,
    )


def _from_middle(fixed: Stack, poses: Poses) -> Tensor:
    """Centroids from the middle of the blocks, [B, K, 3].

    What strain is measured from, so that it does not matter where in space an assembly lies.
    """
    real = fixed.blocks[..., None]
    return poses.centroids - (poses.centroids * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)


def normal_equations(seen: View, weights: Weights) -> tuple[Tensor, Tensor]:
    """J^T J [B, P, P] and J^T r [B, P] of the weighted residuals."""
    b, parameters = len(seen.poses), 6 * seen.rig.fixed.blocks.shape[1] + seen.poses.angles.shape[1] + 6
    hessian = seen.points.atoms.new_zeros(b, parameters, parameters)
    gradient = hessian.new_zeros(b, parameters)
    for residual, jacobian in rows(seen, weights):
        hessian += jacobian.mT @ jacobian
        gradient += (jacobian.mT @ residual[..., None])[..., 0]
    return hessian, gradient


def rows(seen: View, weights: Weights) -> Iterator[tuple[Tensor, Tensor]]:
    """Weighted residuals [B, R] and their derivatives [B, R, P], term by term; the energy is the sum of squares."""
    rig, points, gaps = seen.rig, seen.points, seen.gaps
    ends, b = rig.ends, len(seen.poses)
    velocity = torsion_velocities(rig.fixed, points.atoms)  # [B, A, S, 3]
    atom = _Point(
        rig.fixed.block_of,
        points.atoms - per_atom(seen.poses.centroids, rig.fixed.block_of),
        velocity,
        per_atom(rig.fixed.turn_of.mT, rig.fixed.block_of),
    )
    centre = per_atom(seen.poses.centroids, ends.site_block)
    for node, linker, residual, weight in (
        (points.sites, _means(seen, atom, mean_of_donors), gaps.sites, 1.0),
        (points.behinds, _means(seen, atom, mean_of_backs), gaps.behinds, sqrt(weights.behind)),
    ):
        real = ends.sites[..., None, None] * weight * torch.eye(3).to(node)
        jacobian = _connection(rig.fixed, real, _rigid(ends.site_block, node - centre), linker, gaps.span)
        yield (weight * residual).reshape(b, -1), jacobian.flatten(1, 2)
    yield from _overlap_rows(seen, atom, sqrt(weights.repulsion))
    yield _volume_row(seen, sqrt(weights.volume))
    if weights.hold and rig.anchor is not None:
        yield from _hold_rows(seen, atom, sqrt(weights.hold))


def torsion_velocities(fixed: Stack, atoms: Tensor) -> Tensor:
    """Velocity in Å/rad of every atom under the s-th torsion of its block, whose mean stays, [B, A, S, 3]."""
    b, s, k, _ = fixed.turns.shape
    start, end = (per_atom(atoms, fixed.turns[..., e].reshape(b, s * k)).reshape(b, s, k, 3) for e in (0, 1))
    axis = end - start
    axis = fixed.signs[..., None] * axis / axis.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    axis, end = (per_atom(x.transpose(1, 2), fixed.block_of) for x in (axis, end))  # [B, A, S, 3]
    velocity = torch.linalg.cross(axis, atoms[:, :, None] - end) * fixed.moves.mT[..., None]
    mean = block_means(fixed, velocity.flatten(2)) if s else velocity.new_zeros(b, k, 0)
    return velocity - per_atom(mean, fixed.block_of).reshape(velocity.shape)


def _rigid(block: Tensor, arm: Tensor) -> _Point:
    """Points that no torsion moves."""
    return _Point(block, arm, arm.new_zeros(*arm.shape[:2], 0, 3), block.new_zeros(*block.shape, 0))


def _picked(atom: _Point, index: Tensor) -> _Point:
    """The atoms `index` [B, N]."""
    return _Point(*(per_atom(x, index) for x in (atom.block, atom.arm, atom.velocity, atom.torsion)))


def _means(seen: View, atom: _Point, mean: Callable[[Ends, Tensor], Tensor]) -> _Point:
    """The means of atoms that belong to the donor of every site."""
    ends, matched = seen.rig.ends, seen.matched.donor
    block = per_atom(ends.donor_block, matched)
    torsion = per_atom(seen.rig.fixed.turn_of.mT, block)
    velocity = per_atom(mean(ends, atom.velocity.flatten(2)), matched)
    return _Point(block, per_atom(mean(ends, atom.arm), matched), velocity.reshape(*torsion.shape, 3), torsion)


def _connection(fixed: Stack, along: Tensor, first: _Point, second: _Point, span: Tensor) -> Tensor:
    """Derivatives [B, N, r, P] of the components `along` [B, N, r, 3] of (second point - first point).

    `span` [B, N, 3] runs from centroid to centroid, over the cell border: it is what strain stretches.
    """
    b, n, r, _ = along.shape
    values = []
    for sign, point in ((-1.0, first), (1.0, second)):
        turned = torch.linalg.cross(point.arm[:, :, None].expand_as(along), along)
        values += [sign * along, sign * turned, sign * along @ point.velocity.mT]
    where = torch.cat([_columns(fixed, point) for point in (first, second)], -1)[:, :, None]
    value = torch.cat(values, -1)
    x, y, z = span[:, :, None].unbind(-1)
    a, c, d = along.unbind(-1)
    strain = torch.stack([x * a, y * c, z * d, (y * d + z * c) / 2, (x * d + z * a) / 2, (x * c + y * a) / 2], -1)
    jacobian = along.new_zeros(b, n, r, 6 * fixed.blocks.shape[1] + fixed.torsions.shape[1])
    jacobian.scatter_add_(3, where.expand_as(value), value)
    return torch.cat([jacobian, strain], -1)


def _columns(fixed: Stack, point: _Point) -> Tensor:
    """Parameters that move each point beside strain: translation, rotation and torsions of its block, [B, N, 6 + S]."""
    blocks = fixed.blocks.shape[1]
    shift = 3 * point.block[..., None] + torch.arange(3, device=point.block.device)
    return torch.cat([shift, 3 * blocks + shift, 6 * blocks + point.torsion.clamp_min(0)], -1)


def _overlap_rows(seen: View, atom: _Point, weight: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the pairs that overlap, the deepest where there are too many."""
    gaps, overlaps, poses = seen.gaps, seen.overlaps, seen.poses
    widest = min(MOST_OVERLAPS, int((gaps.overlap > 0).sum(1).max())) if gaps.overlap.numel() else 0
    if not widest:
        return
    depth, which = gaps.overlap.topk(widest, 1)
    first, second = (_picked(atom, torch.gather(x, 1, which)) for x in (overlaps.first, overlaps.second))
    between = per_atom(gaps.between, which)
    apart = -weight * between / between.norm(dim=-1, keepdim=True).clamp_min(SHORTEST_ANG)
    apart = torch.where(depth[..., None] > 0, apart, 0.0)
    span = per_atom(poses.centroids, second.block) + per_atom(overlaps.shift, which) @ poses.cells
    span = span - per_atom(poses.centroids, first.block)
    jacobian = _connection(seen.rig.fixed, apart[:, :, None], first, second, span)
    yield weight * depth, jacobian[:, :, 0]


def _volume_row(seen: View, weight: float) -> tuple[Tensor, Tensor]:
    """The row of the least volume: only normal strains change a volume to first order."""
    short = seen.gaps.volume
    b, parameters = len(short), 6 * seen.rig.fixed.blocks.shape[1] + seen.poses.angles.shape[1] + 6
    jacobian = short.new_zeros(b, 1, parameters)
    jacobian[:, 0, -6:-3] = -weight * (short > 0)[:, None]
    return weight * short[:, None], jacobian


def _hold_rows(seen: View, atom: _Point, weight: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of every atom's drift and of the cell's stretch."""
    fixed, poses = seen.rig.fixed, seen.poses
    b, n = atom.block.shape
    along = torch.eye(3).to(atom.arm).expand(b, n, 3, 3)
    turned = torch.linalg.cross(atom.arm[:, :, None].expand_as(along), along)
    value = torch.cat([along, turned, along @ atom.velocity.mT], -1)
    jacobian = along.new_zeros(b, n, 3, 6 * fixed.blocks.shape[1] + fixed.torsions.shape[1])
    jacobian.scatter_add_(3, _columns(fixed, atom)[:, :, None].expand_as(value), value)
    strained = _strained(per_atom(_from_middle(fixed, poses), fixed.block_of))
    jacobian = weight * torch.cat([jacobian, strained], -1) * fixed.atoms[..., None, None]
    yield weight * seen.gaps.drift.flatten(1), jacobian.flatten(1, 2)
    cell = weight * stretch_weight(seen.rig).sqrt()[:, None, None]
    still = along.new_zeros(b, 9, jacobian.shape[-1] - 6)
    yield (
        (cell * seen.gaps.stretch).flatten(1),
        torch.cat([still, cell * _strained(poses.cells).flatten(1, 2)], -1),
    )


def _strained(x: Tensor) -> Tensor:
    """Derivatives [..., 3, 6] of vectors x @ (1 + strain), x [..., 3], by the six strains."""
    return torch.einsum("...i,kij->...jk", x, STRAINS.to(x))
