"""The one place where starts become judged assemblies: snap, structure, gate; and assembly by nets without a policy.

A start is a set of poses, from a net of a known MOF, from a flow or from noise. Whatever made it, the finisher and the
gate are the same, and what they did is recorded with every structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.components import Components, Solution
from promof_hpc.assembly.gate import ATOM_CAP, GateFailure, GateReason, GateResult, gate
from promof_hpc.assembly.net_library import NetLibrary
from promof_hpc.assembly.net_start import NetStart, net_starts
from promof_hpc.assembly.snap import Pairing, SnapSettings, snap
from promof_hpc.assembly.stack import Poses, Stack, place, poses_of, stack
from promof_hpc.structure import Structure

CHUNKS = (4, 12, 16)  # assemblies snapped together, the last size again and again: small ones first to stop early
WORST_FAILED_SCORE = 0.95


@dataclass(frozen=True)
class FinishSettings:
    """What happens to a start.

    Attributes:
        snap: how contacts are closed; None leaves the poses as they are (the paper's raw assembly).
        keep_net: a net start keeps which block meets which; without, the finisher may choose anew.
        hopeless_ang2: an assembly with more snap energy than this for each contact is not decomposed (see `finish`);
            none such passed of 17, of those with 0.3 to 0.5 nearly all.
        volume_per_atom_ang3: window in Å³ outside of which an assembly is refused: collapsed and blown-up nets close
            their contacts too (MOF-5 has 41, the median MOF 16.5).
        good_ang2: a structure that passes counts as good, when `assemble_by_net` asks whether it has enough, with at
            most this snap energy.
        atom_cap: as in the gate.
    """

    snap: SnapSettings | None = field(default_factory=SnapSettings)
    keep_net: bool = True
    hopeless_ang2: float = 3.0
    volume_per_atom_ang3: tuple[float, float] = (10.5, 45.0)
    good_ang2: float = float("inf")
    atom_cap: int = ATOM_CAP


@dataclass(frozen=True)
class Assembled:
    """An assembly and what the gate said.

    Attributes:
        structure: atoms in the order of the blocks, not wrapped into the cell.
        gate: passed, or graded with reasons.
        start: `net:KEY` or `poses`.
        misfit: of the net start; NaN without one.
        snap_energy_ang2: what snap could not close in Å²; NaN without snap.
        displacement_ang: root mean square move of the atoms by snap in Å; NaN without snap.
        pose: where every block ended, and who meets whom; `partner` and `shifts` are empty where nobody paired ends.
    """

    structure: Structure
    gate: GateResult
    start: str
    misfit: float
    snap_energy_ang2: float
    displacement_ang: float
    pose: Solution


def finish(
    fixed: Stack,
    poses: Poses,
    settings: FinishSettings,
    *,
    starts: Sequence[NetStart | None] | None = None,
    logits: Tensor | None = None,
    seed: int = 0,
) -> list[Assembled]:
    """Snap poses, build the structures and judge them.

    Args:
        fixed: B assemblies, of one or of many component sets.
        poses: where their blocks are put at first: a net start's own poses, or what a flow made of them.
        starts: the net start of each assembly, None for poses from elsewhere.
        logits: [B, E, E] of (node end, linker end), see `snap`.
        seed: of snap's retries.

    Returns:
        One result an assembly. Above `hopeless_ang2` a contact the atoms are not decomposed, most of the cost: such
        an assembly fails with `missing_contacts` and is graded like every other reject.
    """
    origins = list(starts) if starts is not None else [None] * len(fixed)
    if settings.snap is None:
        done = _Finished.raw(poses, origins)
    else:
        done = _snapped(fixed, poses, settings, origins, logits, seed)
    positions = place(fixed, done.poses).detach().cpu().double().numpy()
    cells = done.poses.cells.detach().cpu().double().numpy()
    results = []
    for k, (components, origin) in enumerate(zip(fixed.components, origins, strict=True)):
        structure = Structure(components.numbers, positions[k, : len(components.numbers)], cells[k])
        results.append(
            Assembled(
                structure=structure,
                gate=_judge(structure, components, float(done.energy[k]), settings),
                start="poses" if origin is None else f"net:{origin.net_key}",
                misfit=float("nan") if origin is None else origin.misfit,
                snap_energy_ang2=float(done.energy[k]),
                displacement_ang=float(done.displacement[k]),
                pose=done.solution(k, components),
            )
        )
    return results


def assemble_by_net(
    components: Components,
    library: NetLibrary,
    count: int,
    settings: FinishSettings,
    generator: np.random.Generator,
    *,
    enough: int | None = None,
    without_skeletons: frozenset[str] = frozenset(),
) -> list[Assembled]:
    """Up to `count` assemblies of a component set on nets of known MOFs, the most promising first; no policy.

    Args:
        count: assemblies at most; fewer where the library has no more starts, none where it has no such net.
        enough: stop when so many good ones passed the gate, counted after 4, 16, 32, ... assemblies.
        without_skeletons: see `net_starts`.
    """
    starts = net_starts(components, library, count, generator, without_skeletons=without_skeletons)
    done: list[Assembled] = []
    sizes = chain(CHUNKS, repeat(CHUNKS[-1]))
    while len(done) < len(starts):
        good = sum(a.gate.passed and not a.snap_energy_ang2 > settings.good_ang2 for a in done)
        if enough is not None and good >= enough:
            break
        some = starts[len(done) : len(done) + next(sizes)]
        fixed = stack([components] * len(some))
        poses = poses_of([s.solution for s in some], fixed)
        done += finish(fixed, poses, settings, starts=some, seed=int(generator.integers(2**31)))
    return done


@dataclass(frozen=True)
class _Finished:
    """What the finisher left: poses, energy [B] in Å², displacement [B] in Å, partner and shifts of the node ends."""

    poses: Poses
    energy: np.ndarray
    displacement: np.ndarray
    partner: list[np.ndarray]
    shifts: list[np.ndarray]

    @classmethod
    def raw(cls, poses: Poses, origins: Sequence[NetStart | None]) -> _Finished:
        """Poses that no finisher touched."""
        nothing = np.full(len(poses), np.nan)
        none = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        pairs = [none if o is None else (o.solution.partner, o.solution.shifts) for o in origins]
        return cls(poses, nothing, nothing, [p for p, _ in pairs], [s for _, s in pairs])

    def solution(self, row: int, components: Components) -> Solution:
        """The poses of one assembly without padding."""
        blocks = len(components.blocks)
        torsions = sum(len(b.torsions) for b in components.blocks if b.torsions is not None)
        cell, rotations, centroids, angles = (
            x[row].detach().cpu().double().numpy()
            for x in (self.poses.cells, self.poses.rotations, self.poses.centroids, self.poses.angles)
        )
        return Solution(
            cell, rotations[:blocks], centroids[:blocks], angles[:torsions], self.partner[row], self.shifts[row]
        )


def _snapped(
    fixed: Stack,
    poses: Poses,
    settings: FinishSettings,
    origins: Sequence[NetStart | None],
    logits: Tensor | None,
    seed: int,
) -> _Finished:
    """Snap the assemblies that keep a net, and those that pair their ends freely."""
    assert settings.snap is not None  # the caller asked
    keep = np.array([settings.keep_net and o is not None for o in origins], bool)
    energy, displacement = np.zeros(len(fixed)), np.zeros(len(fixed))
    partner: list[np.ndarray] = [np.zeros(0, np.int64)] * len(fixed)
    shifts: list[np.ndarray] = [np.zeros((0, 3), np.int64)] * len(fixed)
    cells, rotations, centroids, angles = (
        x.clone() for x in (poses.cells, poses.rotations, poses.centroids, poses.angles)
    )
    for with_net in (True, False):
        rows = np.flatnonzero(keep == with_net).tolist()
        if not rows:
            continue
        pairing = _pairing([origins[k] for k in rows], fixed) if with_net else None
        most = max(len(fixed.components[k].node_ends) for k in rows)
        some = None if logits is None else logits[rows][:, :most, :most]
        found = snap(fixed.take(rows), poses.take(rows), settings.snap, pairing=pairing, logits=some, seed=seed)
        at = torch.as_tensor(rows, device=cells.device)
        cells[at], rotations[at] = found.poses.cells, found.poses.rotations
        centroids[at], angles[at] = found.poses.centroids, found.poses.angles
        energy[rows], displacement[rows] = found.energy.cpu().numpy(), found.displacement.cpu().numpy()
        for i, k in enumerate(rows):
            ends = len(fixed.components[k].node_ends)
            partner[k] = found.pairing.partner[i, :ends].cpu().numpy()
            shifts[k] = found.pairing.shifts[i, :ends].cpu().numpy()
    return _Finished(Poses(cells, rotations, centroids, angles), energy, displacement, partner, shifts)


def _pairing(origins: Sequence[NetStart | None], fixed: Stack) -> Pairing:
    """The contacts of net starts, padded to the most ends of any assembly of the stack."""
    known = [o.solution for o in origins if o is not None]
    most = max(len(s.partner) for s in known)
    partner = np.tile(np.arange(most), (len(known), 1))
    shifts = np.zeros((len(known), most, 3), np.int64)
    for k, solution in enumerate(known):
        partner[k, : len(solution.partner)], shifts[k, : len(solution.partner)] = solution.partner, solution.shifts
    device = fixed.local.device
    return Pairing(torch.as_tensor(partner, device=device), torch.as_tensor(shifts, device=device))


def _judge(structure: Structure, components: Components, energy_ang2: float, settings: FinishSettings) -> GateResult:
    """The gate, and the window of the volume per atom."""
    if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
        return GateResult(False, 0.0, (GateFailure(GateReason.UNDECOMPOSED, "coordinates that are not numbers"),))
    limit = settings.hopeless_ang2 * max(1, len(components.node_ends))
    hopeless = f"contacts stayed open by {energy_ang2:.1f} Å²" if energy_ang2 > limit else ""
    result = gate(structure, components.expected, atom_cap=settings.atom_cap, hopeless=hopeless)
    volume = structure.volume / max(1, len(structure))
    low, high = settings.volume_per_atom_ang3
    if low <= volume <= high:
        return result
    reason = GateReason.CROWDED if volume < low else GateReason.DENSITY
    if any(f.reason is reason for f in result.failures):
        return result
    failure = GateFailure(reason, f"{volume:.1f} Å³ per atom")
    return replace(
        result, passed=False, score=min(result.score, WORST_FAILED_SCORE), failures=(failure, *result.failures)
    )
