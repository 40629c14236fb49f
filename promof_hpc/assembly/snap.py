"""Snap: the deterministic finisher that closes the contacts of assemblies which are nearly right.

Batched Levenberg-Marquardt descent (`snap_descent`) over poses, torsions and cell of the energy of `snap_energy`, while
who meets whom is chosen anew every few steps (`snap_assign`). Assemblies that do not finish may start again from the
same pose with jittered costs of who meets whom; the lowest energy is kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.batched import take
from promof_hpc.assembly.snap_assign import Free, Kept, Matchmaker, Pairing
from promof_hpc.assembly.snap_descent import DENSEST_ANG3, Problem, State, assess, descend, last_stage, lower
from promof_hpc.assembly.snap_ends import ends_of
from promof_hpc.assembly.snap_energy import Rig, points_of, view
from promof_hpc.assembly.snap_overlap import no_pairs, reach_of, reduced_basis
from promof_hpc.assembly.stack import Poses, Stack, stack

__all__ = ["Pairing", "SnapSettings", "Snapped", "snap"]

LOGIT_LIMIT = 20.0
ROWS_AT_ONCE = 64


MODEL_BLOCK_ERROR_ANG = 0.15  # what conformers and node templates are off crystals' blocks, measured on held-out MOFs


@dataclass(frozen=True)
class SnapSettings:
    """How assemblies are finished.

    Attributes:
        tries: starts for one assembly: the first, then the same pose with jittered costs while it is unfinished.
        steps: Levenberg-Marquardt steps where who meets whom is free.
        done_ang2: energy in Å² below which an assembly is finished.
        block_error_ang: expected rms error of sites and donors in Å (templates, conformers); raises `done_ang2`.
        behind_weight: of the points behind donors.
        contact_weight: of logits in the cost of who meets whom, in Å². Of 40 held-out sets with 32 tries from
            noise, 4 became sound crystals at weight 1, 9 at 5, 6 at 20.
        jitter: standard deviation of the logarithm of the costs' factors in further tries.
        volume_weight: of the least volume in Å².
        volume_per_atom: least volume in Å³ per atom.
        hold: weight of the squared way of the atoms from where a descent begins. Held-out crystals with model blocks
            stay what they are (of 14, 5 still match after snap, 3 without), and noise of 0.6 Å is mended as before.
    """

    tries: int = 1
    steps: int = 20
    done_ang2: float = 0.02
    block_error_ang: float = 0.0
    behind_weight: float = 1.0
    contact_weight: float = 5.0
    jitter: float = 0.5
    volume_weight: float = 5.0
    volume_per_atom: float = 11.0
    hold: float = 0.015


@dataclass(frozen=True)
class Snapped:
    """What snap made of B assemblies.

    Attributes:
        poses: in the dtype of the start.
        energy: in Å² at full repulsion, [B]; infinite where the start was unusable and stands unchanged.
        displacement: root mean square move of the atoms in Å without the common translation, [B].
        pairing: who meets whom; zero in padding.
        worst_ang: largest distance between a site and its donor in Å, [B]; 0 without contacts.
        tries: descents made, int64 [B]; 0 where the start was finished (it is not moved) or unusable.
    """

    poses: Poses
    energy: Tensor
    displacement: Tensor
    pairing: Pairing
    worst_ang: Tensor
    tries: Tensor


def snap(
    fixed: Stack,
    poses: Poses,
    settings: SnapSettings,
    *,
    pairing: Pairing | None = None,
    logits: Tensor | None = None,
    seed: int = 0,
) -> Snapped:
    """Close the contacts of B assemblies.

    The result of an assembly depends on its components, pose and pairing, `settings` and `seed` alone, not on the
    others or their number (within rounding, 1e-5 Å).

    Args:
        fixed: the assemblies' blocks; rows may have different components.
        poses: where to start.
        settings: see there.
        pairing: edges to keep: which block meets which, at which image. The ends at both blocks are chosen anew. None
            chooses freely.
        logits: evidence for each meeting, [B, E, E] (node end, linker end), clipped to +-20; lowers its cost.
        seed: of the jitter of further tries.

    Raises:
        ValueError: `pairing` joins ends of different donors, or an end twice.
    """
    b, ends = len(fixed), max((len(c.node_ends) for c in fixed.components), default=0)
    usable = _usable(fixed, poses)
    result = Snapped(
        poses=Poses(*(getattr(poses, f.name).clone() for f in fields(poses))),
        energy=poses.cells.new_full((b,), torch.inf),
        displacement=poses.cells.new_zeros(b),
        pairing=Pairing(fixed.block_of.new_zeros(b, ends), fixed.block_of.new_zeros(b, ends, 3)),
        worst_ang=poses.cells.new_full((b,), torch.inf),
        tries=fixed.block_of.new_zeros(b),
    )
    if pairing is not None:
        result.pairing.partner[:], result.pairing.shifts[:] = pairing.partner, pairing.shifts
    size = [len(fixed.components[row].numbers) for row in range(b)]
    rows = sorted(torch.nonzero(usable)[:, 0].tolist(), key=lambda row: size[row])
    for first in range(0, len(rows), ROWS_AT_ONCE):
        batch = _batch(fixed, poses, settings, pairing, logits, rows[first : first + ROWS_AT_ONCE])
        _report(result, batch, *_solve(batch, settings, seed))
    return result


@dataclass(frozen=True)
class _Batch:
    """Rows of a stack that are snapped together.

    Attributes:
        rows: their numbers in the stack, [b].
        problem: the rows padded to their own sizes, in double precision.
        start: their poses in reduced cells.
        basis: reduced lattice vectors in terms of the given ones, [b, 3, 3].
        kept: whether edges are kept.
    """

    rows: list[int]
    problem: Problem
    start: Poses
    basis: Tensor
    kept: bool


def _solve(batch: _Batch, settings: SnapSettings, seed: int) -> tuple[State, Tensor]:
    """The best states and the tries used."""
    problem, start = batch.problem, batch.start
    stage = last_stage(batch.kept, settings.steps, settings.volume_weight)
    best = assess(problem, start, stage)
    tries = torch.zeros_like(problem.done, dtype=torch.long)
    for attempt in range(settings.tries):
        left = torch.nonzero(best.energy >= problem.done)[:, 0]
        if not len(left):
            break
        again, pose = problem.take(left), take(start, left)
        factor = _factors(again.rig, pose, settings.jitter, (seed, attempt), batch.kept) if attempt else None
        best = lower(best, left, descend(again, pose, stage, factor))
        tries[left] += 1
    return best, tries


def _batch(
    fixed: Stack, poses: Poses, settings: SnapSettings, pairing: Pairing | None, logits: Tensor | None, rows: list[int]
) -> _Batch:
    """Set up some rows; their tensors are no larger than they need."""
    few = stack([fixed.components[row] for row in rows], torch.float64).to(fixed.local.device)
    start = _trimmed(poses.take(rows), few)
    basis = reduced_basis(start.cells)
    rig = Rig(few, ends_of(few), reach_of(few), settings.volume_per_atom * few.atoms.sum(1).to(few.local))
    e = rig.ends.size.shape[1]
    preference = few.local.new_zeros(len(rows), e, e)
    if logits is not None:
        evidence = torch.nan_to_num(logits[rows, :e, :e].to(preference), nan=0.0).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        preference = settings.contact_weight * evidence
    maker: Matchmaker
    if pairing is None:
        maker = Free.of(rig, preference, settings.behind_weight)
    else:
        shifts = (pairing.shifts[rows, :e].to(basis) @ torch.linalg.inv(basis)).round().to(torch.long)
        edges = Pairing(torch.where(rig.ends.size > 0, pairing.partner[rows, :e], 0), shifts)
        _check(rig, edges, rows)
        maker = Kept.of(rig, edges, preference, settings.behind_weight)
    # an error of every site and donor spreads over the terms of both squares; a fifth is what the descent cannot mend
    error = 2 * 0.2 * settings.block_error_ang**2 * rig.ends.sites.sum(1)
    problem = Problem(rig, maker, settings.done_ang2 + error, settings.behind_weight, settings.hold)
    return _Batch(rows, problem, replace(start, cells=basis @ start.cells), basis, pairing is not None)


def _check(rig: Rig, edges: Pairing, rows: list[int]) -> None:
    """Refuse edges that no assembly can have.

    Raises:
        ValueError: a node end is paired with an end of other donors, or two with the same end.
    """
    ends, real = rig.ends, rig.ends.size > 0
    partner = edges.partner.clamp(0, max(real.shape[1] - 1, 0))
    wrong = real & ((ends.node_pattern != torch.gather(ends.linker_pattern, 1, partner)) | (partner != edges.partner))
    taken = torch.zeros_like(partner).scatter_add_(1, partner, real.to(partner))
    for row in torch.nonzero(wrong.any(1) | (taken > 1).any(1))[:, 0].tolist():
        raise ValueError(f"the pairing of assembly {rows[row]} is no one-to-one pairing of ends with equal donors")


def _report(result: Snapped, batch: _Batch, best: State, tries: Tensor) -> None:
    """Write the rows of a batch into the result."""
    rig, rows = batch.problem.rig, torch.tensor(batch.rows, device=tries.device)
    points = points_of(rig, best.poses)
    seen = view(rig, best.poses, points, best.choice.matched, no_pairs(best.poses.cells))
    move = (points.atoms - points_of(rig, batch.start).atoms) * rig.fixed.atoms[..., None]
    count = rig.fixed.atoms.sum(1)
    # the variance of the moves: what is left without the common translation
    spread = (move.square().sum((1, 2)) / count - (move.sum(1) / count[:, None]).square().sum(-1)).clamp_min(0.0)
    far = seen.gaps.sites.norm(dim=-1)
    k, t, e = rig.fixed.blocks.shape[1], rig.fixed.torsions.shape[1], rig.ends.size.shape[1]
    out, to = result.poses, best.poses
    out.cells[rows] = (torch.linalg.inv(batch.basis) @ to.cells).to(out.cells)
    out.rotations[rows, :k], out.centroids[rows, :k] = to.rotations.to(out.cells), to.centroids.to(out.cells)
    out.angles[rows, :t] = to.angles.to(out.cells)
    result.energy[rows], result.displacement[rows] = best.energy.to(out.cells), spread.sqrt().to(out.cells)
    result.pairing.partner[rows, :e] = best.choice.pairing.partner
    shifts = best.choice.pairing.shifts.to(batch.basis) @ batch.basis
    result.pairing.shifts[rows, :e] = shifts.round().to(torch.long)
    result.worst_ang[rows] = (far.amax(1) if far.shape[1] else torch.zeros_like(spread)).to(out.cells)
    result.tries[rows] = tries


def _usable(fixed: Stack, poses: Poses) -> Tensor:
    """True for starts of finite numbers in a cell that has room for atoms, [B]."""
    fine = torch.isfinite(poses.cells).all(-1).all(-1)
    fine &= (torch.isfinite(poses.centroids).all(-1) | ~fixed.blocks).all(-1)
    fine &= (torch.isfinite(poses.rotations).all(-1).all(-1) | ~fixed.blocks).all(-1)
    fine &= (torch.isfinite(poses.angles) | ~fixed.torsions).all(-1)
    volume = torch.linalg.det(torch.where(fine[:, None, None], poses.cells, 0.0).double()).abs()
    return fine & (volume >= DENSEST_ANG3 * fixed.atoms.sum(1))


def _trimmed(poses: Poses, to: Stack) -> Poses:
    """Poses without more padding than `to` has, in its precision; what is left of it is harmless."""
    (_, k), t = to.blocks.shape, to.torsions.shape[1]
    cells, rotations, centroids, angles = (getattr(poses, f.name).to(to.local) for f in fields(poses))
    unit = torch.eye(3, dtype=to.local.dtype, device=to.local.device)
    return Poses(
        cells,
        torch.where(to.blocks[..., None, None], rotations[:, :k], unit),
        torch.where(to.blocks[..., None], centroids[:, :k], 0.0),
        torch.where(to.torsions, angles[:, :t], to.base_angles),
    )


def _factors(rig: Rig, start: Poses, jitter: float, seeds: tuple[int, int], kept: bool) -> Tensor:
    """Factors exp(jitter * normal) of the cost of every meeting, [B, edges, E, E].

    The random numbers of an assembly follow from its pose, so they do not depend on its place in a batch.
    """
    b, e = rig.ends.size.shape
    factors = np.ones((b, e if kept else 1, e, e))
    counts = [x.sum(1).tolist() for x in (rig.fixed.blocks, rig.fixed.torsions, rig.ends.size > 0)]
    for row, (k, t, n) in enumerate(zip(*counts, strict=True)):
        parts = (start.cells[row], start.rotations[row, :k], start.centroids[row, :k], start.angles[row, :t])
        text = b"".join(x.float().cpu().numpy().tobytes() for x in parts)
        words = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.uint32)
        generator = np.random.default_rng([*(abs(s) for s in seeds), *words.tolist()])
        shape = (n if kept else 1, n, n)
        factors[row, : shape[0], :n, :n] = np.exp(jitter * generator.standard_normal(shape))
    return torch.from_numpy(factors).to(start.cells)
