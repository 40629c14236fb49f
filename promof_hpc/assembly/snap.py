"""Snap: the deterministic finisher that closes the contacts of assemblies which are nearly right.

Batched Levenberg-Marquardt over poses, torsions and cell (`snap_step`) on the energy of `snap_energy`, while who meets
whom is chosen anew every few steps (`snap_assign`). Without edges to keep, repulsion grows over the first steps. With
edges, contacts are closed almost without repulsion first, those that stay far open are given up, then repulsion grows.
Assemblies that did not finish may start again from the same pose with jittered costs of who meets whom.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.snap_assign import Choice, Free, Kept, Matchmaker, Pairing
from promof_hpc.assembly.snap_ends import coarse, ends_of
from promof_hpc.assembly.snap_energy import Rig, View, Weights, points_of, view
from promof_hpc.assembly.snap_overlap import close_pairs, reach_of, reduced_basis
from promof_hpc.assembly.snap_step import step
from promof_hpc.assembly.stack import Poses, Stack, place, stack

__all__ = ["Pairing", "SnapSettings", "Snapped", "snap"]

HOPELESS_ANG2 = 8.0  # contact energy after the first stage with kept edges, above which nothing was ever closed
LOGIT_LIMIT = 20.0
LEAST_VOLUME_PER_ATOM = 1.0  # Å³; denser starts have no meaningful neighbours
ROWS_AT_ONCE = 64
LIST_EVERY = 3  # steps between lists of close pairs
FIRST_DAMPING, DAMPING_RANGE = 0.1, (1e-5, 1e3)
ACCEPTED, REJECTED = 0.4, 5.0  # factors of the damping


@dataclass(frozen=True)
class SnapSettings:
    """How assemblies are finished.

    Attributes:
        tries: starts for one assembly: the first, then the same pose with jittered costs while it is unfinished.
        steps: Levenberg-Marquardt steps where who meets whom is free.
        done_ang2: energy in Å² below which an assembly is finished.
        block_error_ang: expected rms error of sites and donors in Å (templates, conformers); raises `done_ang2`.
        behind_weight: of the points behind donors.
        contact_weight: of logits in the cost of who meets whom, in Å².
        jitter: standard deviation of the logarithm of the costs' factors in further tries.
        volume_weight: of the least volume in Å².
        volume_per_atom: least volume in Å³ per atom.
    """

    tries: int = 1
    steps: int = 20
    done_ang2: float = 0.02
    block_error_ang: float = 0.0
    behind_weight: float = 1.0
    contact_weight: float = 1.0
    jitter: float = 0.5
    volume_weight: float = 5.0
    volume_per_atom: float = 11.0


@dataclass(frozen=True)
class Snapped:
    """What snap made of B assemblies.

    Attributes:
        poses: in the dtype of the start.
        energy: in Å² at full repulsion, [B]; infinite where the start was unusable and stands unchanged.
        displacement: root mean square move of the atoms in Å without the common translation, [B].
        pairing: who meets whom; zero in padding.
        worst_ang: largest distance between a site and its donor in Å, [B]; 0 without contacts.
        tries: starts used, int64 [B].
    """

    poses: Poses
    energy: Tensor
    displacement: Tensor
    pairing: Pairing
    worst_ang: Tensor
    tries: Tensor


@dataclass(frozen=True)
class _Stage:
    """Steps during which repulsion rises linearly from `low` to `high` over the first `ramp` steps."""

    steps: int
    low: float
    high: float
    ramp: int
    choose: bool = True
    room: float = 1.0
    wv: float = 0.0


@dataclass(frozen=True)
class _Problem:
    """Assemblies to finish: what is fixed, who chooses the contacts, and the energy below which each is done, [B]."""

    rig: Rig
    maker: Matchmaker
    done: Tensor

    def take(self, rows: Tensor) -> _Problem:
        """The assemblies `rows`."""
        return _Problem(self.rig.take(rows), self.maker.take(rows), self.done[rows])


@dataclass(frozen=True)
class _State:
    """The best that is known of B assemblies; `energy` by the measure of the stage."""

    poses: Poses
    energy: Tensor
    choice: Choice


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
        _snap_some(fixed, poses, settings, pairing, logits, seed, rows[first : first + ROWS_AT_ONCE], result)
    return result


def _snap_some(fixed, poses, settings, pairing, logits, seed, rows, result):
    device, dtype = fixed.local.device, torch.float64
    few = stack([fixed.components[row] for row in rows], dtype).to(device)
    start = _trimmed(poses, rows, few)
    basis = reduced_basis(start.cells)
    start = replace(start, cells=basis @ start.cells)
    atoms = few.atoms.sum(1)
    rig = Rig(few, ends_of(few), reach_of(few), atoms * settings.volume_per_atom)
    e = rig.ends.size.shape[1]
    preference = few.local.new_zeros(len(rows), e, e)
    if logits is not None:
        clipped = torch.nan_to_num(logits[rows, :e, :e].to(preference)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        preference = settings.contact_weight * clipped
    maker: Matchmaker
    if pairing is None:
        maker = Free.of(rig, preference, settings.behind_weight)
    else:
        shifts = pairing.shifts[rows, :e].to(dtype) @ torch.linalg.inv(basis)
        edges = Pairing(pairing.partner[rows, :e], shifts.round().to(torch.long))
        maker = Kept.of(rig, edges, preference, settings.behind_weight)
    done = settings.done_ang2 + 0.2 * rig.ends.sites.sum(1) * 2 * settings.block_error_ang**2
    problem = _Problem(rig, maker, done)
    best = _finish(problem, start, settings, None)
    tries = torch.ones(len(rows), dtype=torch.long, device=device)
    for attempt in range(1, settings.tries):
        left = torch.nonzero(best.energy >= done)[:, 0]
        if not len(left):
            break
        factor = torch.from_numpy(
            _factors(start.take(left), rig.take(left), settings.jitter, seed, attempt, pairing is not None)
        ).to(device)
        again = _finish(problem.take(left), start.take(left), settings, factor)
        tries[left] += 1
        better = again.energy < best.energy[left]
        best = _put(best, left[better], again, torch.nonzero(better)[:, 0])
    _report(result, rows, rig, start, basis, best, tries)


def _run(problem: _Problem, start: Poses, stage: _Stage, settings: SnapSettings, factor=None) -> _State:
    everyone = torch.arange(len(start), device=start.cells.device)
    alive, poses = everyone, start
    damping = torch.full_like(start.cells[:, 0, 0], FIRST_DAMPING)
    measure = Weights(settings.behind_weight, float(stage.high > 0), settings.volume_weight)
    problem = replace(problem, rig=replace(problem.rig, least_volume=problem.rig.least_volume * stage.room))
    if stage.wv: measure = replace(measure, volume=stage.wv)
    floor = LEAST_VOLUME_PER_ATOM * problem.rig.fixed.atoms.sum(1)
    best = None
    last = None
    for it in range(stage.steps):
        rig = problem.rig
        weights = replace(measure, repulsion=stage.low + (stage.high - stage.low) * min(1.0, it / max(1, stage.ramp)))
        if it % CHOOSE_EVERY == 0:
            points = points_of(rig, poses)
            if True:
                choice = problem.maker.choose(points, poses.cells, factor if it == 0 else None)
        if it % CHOOSE_EVERY == 0 or it % LIST_EVERY == 0:
            overlaps = close_pairs(rig.reach, points_of(rig, poses).atoms, poses.cells) if stage.high else NOTHING(poses)
        seen = view(rig, poses, choice.matched, overlaps)
        if best is None:
            best = _State(start, seen.energy(measure), choice)
            last = best.energy
        trial = step(seen, weights, damping)
        after = view(rig, trial, choice.matched, overlaps).energy(weights)
        accept = (after < seen.energy(weights)) & (torch.linalg.det(trial.cells).abs() > floor)
        poses = _where(accept, trial, poses)
        damping = torch.where(accept, damping * ACCEPTED, damping * REJECTED).clamp(*DAMPING_RANGE)
        if it % CHOOSE_EVERY == CHOOSE_EVERY - 1 or it == stage.steps - 1:
            atoms = points_of(rig, poses).atoms
            pairs = close_pairs(rig.reach, atoms, poses.cells, 0.0) if stage.high else NOTHING(poses)
            energy = view(rig, poses, choice.matched, pairs).energy(measure)
            here = torch.nonzero(energy < best.energy[alive])[:, 0]
            best = _put(best, alive[here], _State(poses, energy, choice), here)
            left = energy >= problem.done
            if it >= stage.ramp + STALL:
                left &= energy < last * 0.98
            last = energy
            left = torch.nonzero(left)[:, 0]
            if not len(left):
                break
            if len(left) < len(alive):
                alive, poses, damping = alive[left], poses.take(left), damping[left]
                problem, choice, floor, last = problem.take(left), choice.take(left), floor[left], last[left]
                overlaps = close_pairs(problem.rig.reach, points_of(problem.rig, poses).atoms, poses.cells) if stage.high else NOTHING(poses)
    return best


CHOOSE_EVERY = 5
STALL = 1000


def NOTHING(poses):
    b = len(poses)
    e = torch.zeros(b, 0, dtype=torch.long)
    from promof_hpc.assembly.snap_overlap import Overlaps
    return Overlaps(e, e, poses.cells.new_zeros(b, 0, 3), poses.cells.new_zeros(b, 0))


def _finish(problem, start, settings, factor):
    if isinstance(problem.maker, Free):
        return _run(problem.take(torch.arange(len(start))), start, _Stage(settings.steps, 0.05, 1.0, int(0.4 * settings.steps)), settings, factor)
    k = problem.maker.take(torch.arange(len(start)))
    rough_rig = replace(problem.rig, ends=coarse(problem.rig.ends))
    rough = Kept.of(rough_rig, Pairing(torch.from_numpy(k.linkers), k.images), k.preference, k.behind)
    for st in CO:
        rough.frozen = not st.choose
        state = _run(_Problem(rough_rig, rough, problem.done * 0 + 1e-3), start, st, settings, None)
        start = state.poses
    k.linkers, k.nodes = rough.linkers, rough.nodes
    problem = replace(problem, maker=k)
    best = None
    for st in EX:
        k.frozen = not st.choose
        state = _run(replace(problem, done=problem.done if st.high else problem.done * 0 + 1e-3), start, st, settings, None)
        start = state.poses
    return state

CO = [_Stage(60, 0.0, 0.0, 1, False)]
EX = [_Stage(20, 0.0, 0.0, 1), _Stage(60, 0.02, 1.0, 24)]


def _where(mask, one, other):
    return Poses(
        *(
            torch.where(mask.reshape(-1, *[1] * (getattr(one, f.name).dim() - 1)), getattr(one, f.name), getattr(other, f.name))
            for f in fields(one)
        )
    )


def _put(best, at, other, which):
    poses = Poses(*(getattr(best.poses, f.name).index_copy(0, at, getattr(other.poses, f.name)[which]) for f in fields(Poses)))
    pairing = Pairing(
        best.choice.pairing.partner.index_copy(0, at, other.choice.pairing.partner[which]),
        best.choice.pairing.shifts.index_copy(0, at, other.choice.pairing.shifts[which]),
    )
    from promof_hpc.assembly.snap_energy import Matched

    matched = Matched(
        best.choice.matched.donor.index_copy(0, at, other.choice.matched.donor[which]),
        best.choice.matched.shift.index_copy(0, at, other.choice.matched.shift[which]),
    )
    return _State(poses, best.energy.index_copy(0, at, other.energy[which]), Choice(pairing, matched))


def _factors(start, rig, jitter, seed, attempt, kept):
    b, e = rig.ends.size.shape
    whole = np.ones((b, e if kept else 1, e, e))
    for row in range(b):
        k, t, n = (int(x[row].sum()) for x in (rig.fixed.blocks, rig.fixed.torsions, rig.ends.size > 0))
        parts = (start.cells[row], start.rotations[row, :k], start.centroids[row, :k], start.angles[row, :t])
        text = b"".join(x.to(torch.float32).cpu().numpy().tobytes() for x in parts)
        words = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), np.uint32).tolist()
        rng = np.random.default_rng([seed % 2**32, attempt, *words])
        whole[row, : n if kept else 1, :n, :n] = np.exp(jitter * rng.standard_normal((n if kept else 1, n, n)))
    return whole


def _usable(fixed, poses):
    volume = torch.linalg.det(torch.nan_to_num(poses.cells.double())).abs()
    real = fixed.blocks
    fine = torch.isfinite(poses.cells).all(-1).all(-1)
    fine &= torch.isfinite(poses.centroids).all(-1).logical_or(~real).all(-1)
    fine &= torch.isfinite(poses.rotations).all(-1).all(-1).logical_or(~real).all(-1)
    fine &= torch.isfinite(poses.angles).logical_or(~fixed.torsions).all(-1)
    return fine & (volume >= LEAST_VOLUME_PER_ATOM * fixed.atoms.sum(1))


def _trimmed(poses, rows, few):
    k, t = few.blocks.shape[1], few.torsions.shape[1]
    chosen = poses.take(rows)
    real = few.blocks
    eye = torch.eye(3, dtype=few.local.dtype, device=few.local.device)
    return Poses(
        cells=chosen.cells.to(few.local.dtype),
        rotations=torch.where(real[..., None, None], chosen.rotations[:, :k].to(few.local.dtype), eye),
        centroids=torch.where(real[..., None], chosen.centroids[:, :k].to(few.local.dtype), 0.0),
        angles=torch.where(few.torsions, chosen.angles[:, :t].to(few.local.dtype), few.base_angles),
    )


def _report(result, rows, rig, start, basis, best, tries):
    k, t, e = rig.fixed.blocks.shape[1], rig.fixed.torsions.shape[1], rig.ends.size.shape[1]
    at = torch.tensor(rows, device=start.cells.device)
    seen = view(rig, best.poses, best.choice.matched, close_pairs(rig.reach, points_of(rig, best.poses).atoms, best.poses.cells, 0.0))
    before = points_of(rig, start).atoms
    move = torch.where(rig.fixed.atoms[..., None], seen.points.atoms - before, 0.0)
    count = rig.fixed.atoms.sum(1)
    move = torch.where(rig.fixed.atoms[..., None], move - (move.sum(1) / count[:, None])[:, None], 0.0)
    out = result.poses
    dtype = out.cells.dtype
    out.cells[at] = (torch.linalg.inv(basis) @ best.poses.cells).to(dtype)
    out.rotations[at, :k] = best.poses.rotations.to(dtype)
    out.centroids[at, :k] = best.poses.centroids.to(dtype)
    out.angles[at, :t] = best.poses.angles.to(dtype)
    result.energy[at] = best.energy.to(dtype)
    result.displacement[at] = (move.square().sum((1, 2)) / count).sqrt().to(dtype)
    result.pairing.partner[at, :e] = best.choice.pairing.partner
    result.pairing.shifts[at, :e] = (best.choice.pairing.shifts.to(basis) @ basis).round().to(torch.long)
    far = seen.gaps.sites.norm(dim=-1)
    result.worst_ang[at] = (far.amax(1) if far.shape[1] else far.new_zeros(len(rows))).to(dtype)
    result.tries[at] = tries
