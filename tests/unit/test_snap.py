import contextlib
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.assembly import snap_meet
from promof_hpc.assembly.components import BuildingBlock, Components, Solution, crystal_components, matched_components
from promof_hpc.assembly.gate import gate
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.snap import MODEL_BLOCK_ERROR_ANG, Pairing, Snapped, SnapSettings, snap
from promof_hpc.assembly.snap_assign import Free
from promof_hpc.assembly.snap_ends import coarse, ends_of
from promof_hpc.assembly.snap_energy import Anchor, Rig, View, Weights, points_of, view
from promof_hpc.assembly.snap_overlap import close_pairs, reach_of, reduced_basis, touching_distances
from promof_hpc.assembly.snap_step import moved, rows
from promof_hpc.assembly.stack import Poses, Stack, place, poses_of, rotation_of, stack, structure_of
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.bonds import near_pairs

FOLDER = Path(str(files("promof_hpc"))) / "data" / "small_mofs" / "train"
SMALL, MEDIUM = (0.3, 10.0, 20.0, 0.02), (0.6, 20.0, 30.0, 0.05)  # Å, degrees, degrees of torsion, strain
DONE = SnapSettings().done_ang2


@lru_cache
def crystals() -> list[tuple[Components, Solution]]:
    mofs = read_prepared(sorted(FOLDER.glob("*.h5"))[0])
    # the rest of the shard is as good; a stride keeps the families of near duplicates out
    return [crystal_components(m) for m in mofs[:120:10]]


def stacked(
    known: list[tuple[Components, Solution]], dtype: torch.dtype = torch.float32
) -> tuple[Stack, Poses, Pairing]:
    """The stack, the crystals' poses and their pairing."""
    fixed = stack([c for c, _ in known], dtype)
    most = max(len(s.partner) for _, s in known)
    partner, shifts = (
        torch.zeros(len(known), most, dtype=torch.long),
        torch.zeros(len(known), most, 3, dtype=torch.long),
    )
    for row, (_, s) in enumerate(known):
        partner[row, : len(s.partner)] = torch.as_tensor(s.partner)
        shifts[row, : len(s.partner)] = torch.as_tensor(s.shifts)
    return fixed, poses_of([s for _, s in known], fixed), Pairing(partner, shifts)


def noised(poses: Poses, noise: tuple[float, float, float, float], seed: int = 0) -> Poses:
    """Poses with normal noise of the given spreads; each row's noise is its own."""
    moves, many = [], len(poses)
    shift, turn, twist, strain = noise
    for row in range(many):
        generator = torch.Generator().manual_seed(1000 * seed + row)
        one = poses.take([row])

        def normal(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(poses.cells)

        k, t = one.centroids.shape[1], one.angles.shape[1]
        bend = strain * normal(1, 3, 3)
        stretch = torch.eye(3).to(bend) + (bend + bend.mT) / 2
        axis = normal(1, k, 3)
        axis = axis / axis.norm(dim=-1, keepdim=True) * np.deg2rad(turn) * normal(1, k, 1)
        moves.append(
            Poses(
                one.cells @ stretch,
                rotation_of(axis) @ one.rotations,
                one.centroids @ stretch + shift * normal(1, k, 3),
                one.angles + np.deg2rad(twist) * normal(1, t),
            )
        )
    return Poses(
        *(torch.cat([getattr(m, name) for m in moves]) for name in ("cells", "rotations", "centroids", "angles"))
    )


def passes(fixed: Stack, found: Snapped) -> list[bool]:
    return [gate(structure_of(fixed, found.poses, row), c.expected).passed for row, c in enumerate(fixed.components)]


def atoms_of(fixed: Stack, poses: Poses, row: int) -> np.ndarray:
    return structure_of(fixed, poses, row).positions


def rig_of(fixed: Stack, least: float = 11.0) -> Rig:
    return Rig(fixed, ends_of(fixed), reach_of(fixed), least * fixed.atoms.sum(1).double())


def seen(rig: Rig, poses: Poses) -> View:
    """Everything measured, with the cheapest contacts."""
    ends = rig.ends
    preference = torch.zeros(*ends.size.shape, ends.size.shape[1], dtype=torch.float64)
    points = points_of(rig, poses)
    choice = Free.of(rig, preference, 1.0).choose(points, poses.cells)
    return view(rig, poses, points, choice.matched, close_pairs(rig.reach, points.atoms, poses.cells))


@pytest.mark.parametrize("by_middles", [False, True])
def test_jacobian_is_that_of_finite_differences(by_middles: bool) -> None:
    fixed, poses, _ = stacked(crystals()[2:4], torch.float64)
    poses = noised(poses, MEDIUM)
    poses = replace(poses, cells=0.8 * poses.cells, centroids=0.8 * poses.centroids)  # so that blocks overlap
    rig = rig_of(fixed, 20.0)
    rig = replace(rig, ends=coarse(rig.ends)) if by_middles else rig
    anchor = Anchor(points_of(rig, noised(poses, MEDIUM)).atoms, 1.1 * poses.cells)
    rig = replace(rig, anchor=anchor)
    weights = Weights(behind=0.7, repulsion=0.3, volume=5.0, hold=0.2)
    here = seen(rig, poses)
    residual, jacobian = (torch.cat(x, 1) for x in zip(*rows(here, weights), strict=True))
    assert torch.allclose(residual.square().sum(1), here.energy(weights))
    assert all((r != 0).any() for r, _ in rows(here, weights))  # every term is at work
    for parameter in range(jacobian.shape[2]):
        change = torch.zeros(len(poses), jacobian.shape[2], dtype=torch.float64)
        change[:, parameter] = 1e-6
        ahead, back = (
            torch.cat([r for r, _ in rows(here.at(moved(fixed, poses, sign * change)), weights)], 1) for sign in (1, -1)
        )
        assert torch.allclose((ahead - back) / 2e-6, jacobian[..., parameter], atol=1e-5), parameter


def test_gradient_is_that_of_autograd() -> None:
    fixed, poses, _ = stacked(crystals()[3:5], torch.float64)
    poses = noised(poses, MEDIUM)
    weights = Weights(behind=1.0, repulsion=1.0, volume=5.0)
    here = seen(rig_of(fixed, 20.0), poses)
    change = torch.zeros(2, 6 * fixed.blocks.shape[1] + fixed.torsions.shape[1] + 6, dtype=torch.float64)
    change.requires_grad_(True)
    here.at(moved(fixed, poses, change)).energy(weights).sum().backward()
    slope = sum((2 * j.mT @ r[..., None])[..., 0] for r, j in rows(here, weights))
    assert change.grad is not None
    assert torch.allclose(change.grad, slope, atol=1e-8)


def test_close_pairs_are_those_of_a_neighbour_list() -> None:
    fixed, poses, _ = stacked(crystals()[:4], torch.float64)
    poses = noised(poses, MEDIUM)
    basis = reduced_basis(poses.cells)
    poses = replace(poses, cells=basis @ poses.cells)
    pairs = close_pairs(reach_of(fixed), place(fixed, poses), poses.cells, skin=0.2)
    for row, components in enumerate(fixed.components):
        touching = touching_distances(components)
        i, j, shift, distance = near_pairs(structure_of(fixed, poses, row), float(touching.max()) + 0.2)
        apart = (components.block_of[i] != components.block_of[j]) | shift.any(1)
        close = apart & (distance < touching[i, j] + 0.2 - 1e-4)
        wanted = {tuple(x) for x in np.column_stack([i, j, shift])[close].tolist()}
        real = pairs.touching[row] > 0
        listed = torch.cat([pairs.first[row, :, None], pairs.second[row, :, None], pairs.shift[row]], 1)[real].long()
        found = {tuple(x) for x in listed.tolist()}
        assert len(found) == int(real.sum())  # each once
        turned = {(b, a, -x, -y, -z) for a, b, x, y, z in found}
        assert len(wanted) > 5
        assert wanted <= found | turned
        assert len(found) <= len(wanted) + 3  # at most those at the very limit


def test_crystals_with_a_little_noise_are_closed_again() -> None:
    fixed, poses, _ = stacked(crystals())
    start = noised(poses, SMALL)
    found = snap(fixed, start, SnapSettings())
    assert np.mean(passes(fixed, replace(found, poses=start))) < 0.2
    assert np.mean(passes(fixed, found)) > 0.9
    assert (found.energy < DONE).float().mean() > 0.9
    closed = found.energy < DONE
    assert (found.worst_ang[closed] < 0.15).all()
    assert (found.displacement[closed] > 0.2).all()
    assert (found.displacement[closed] < 2.0).all()


def test_a_crystal_that_is_closed_stays_where_it_is() -> None:
    fixed, poses, pairing = stacked(crystals())
    for kept in (None, pairing):
        found = snap(fixed, poses, SnapSettings(), pairing=kept)
        closed = found.tries == 0
        assert closed.float().mean() > 0.6  # the others have contacts within the soft radii
        assert (found.energy[closed] < DONE).all()
        for name in ("rotations", "centroids", "angles"):
            assert torch.equal(getattr(found.poses, name)[closed], getattr(poses, name)[closed])
        assert torch.allclose(found.poses.cells[closed], poses.cells[closed], atol=1e-5)
        assert (found.displacement[closed] < 1e-5).all()
        assert (found.displacement < 0.3).all()


@pytest.mark.parametrize("kept", [False, True])
def test_result_of_an_assembly_does_not_depend_on_its_batch(kept: bool) -> None:
    known = crystals()[5:9]
    fixed, poses, pairing = stacked(known)
    start = noised(poses, (1.0, 45.0, 45.0, 0.05) if kept else MEDIUM, seed=5)
    assert len({len(c.numbers) for c, _ in known}) > 2
    together = snap(fixed, start, SnapSettings(tries=2), pairing=pairing if kept else None, seed=3)
    assert kept or (together.tries == 2).any()  # jitter was drawn
    for row, (components, solution) in enumerate(known):
        alone, _, edges = stacked([(components, solution)] * 2)
        k, t = len(components.blocks), len(solution.angles)
        one = start.take([row, row])
        one = Poses(one.cells, one.rotations[:, :k], one.centroids[:, :k], one.angles[:, :t])
        found = snap(alone, one, SnapSettings(tries=2), pairing=edges if kept else None, seed=3)
        for copy in (0, 1):
            difference = atoms_of(alone, found.poses, copy) - atoms_of(fixed, together.poses, row)
            assert abs(difference).max() < 1e-5
            assert torch.allclose(found.poses.cells[copy], together.poses.cells[row], atol=1e-5)
            assert float(found.energy[copy]) == pytest.approx(float(together.energy[row]), rel=1e-4, abs=1e-6)
            e = len(components.node_ends)
            assert torch.equal(found.pairing.partner[copy, :e], together.pairing.partner[row, :e])


def test_same_call_gives_the_same_bits() -> None:
    fixed, poses, _ = stacked(crystals()[5:7])
    start = noised(poses, MEDIUM, seed=1)
    one, two = (snap(fixed, start, SnapSettings(tries=2), seed=7) for _ in range(2))
    assert torch.equal(one.energy, two.energy)
    assert torch.equal(one.poses.centroids, two.poses.centroids)


def test_more_tries_never_end_higher_and_close_more() -> None:
    known = [crystals()[k] for k in (3, 5, 7)]
    fixed, poses, _ = stacked(known)
    start = noised(poses, (0.9, 35.0, 40.0, 0.05), seed=2)
    once, often = (snap(fixed, start, SnapSettings(tries=t), seed=1) for t in (1, 4))
    assert (often.energy <= once.energy).all()
    assert (often.energy < once.energy - 1.0).any()
    assert (often.tries[once.energy < DONE] == 1).all()
    assert (often.tries > 1).any()


def edges_of(components: Components, pairing: Pairing, row: int) -> list[tuple[int, ...]]:
    """Which block meets which at which image."""
    found = []
    for e, end in enumerate(components.node_ends):
        partner = components.linker_ends[int(pairing.partner[row, e])]
        assert partner.pattern == end.pattern
        found.append((end.block, partner.block, *pairing.shifts[row, e].tolist()))
    return sorted(found)


def test_known_edges_are_kept_and_lead_home_from_far_away() -> None:
    known = crystals()[2:8]
    fixed, poses, pairing = stacked(known)
    start = noised(poses, (2.0, 90.0, 60.0, 0.1), seed=4)
    free = snap(fixed, start, SnapSettings())
    kept = snap(fixed, start, SnapSettings(), pairing=pairing)
    assert sum(passes(fixed, kept)) >= sum(passes(fixed, free)) + 3
    for row, (components, _) in enumerate(known):
        assert edges_of(components, kept.pairing, row) == edges_of(components, pairing, row)
        assert sorted(kept.pairing.partner[row, : len(components.node_ends)].tolist()) == list(
            range(len(components.node_ends))
        )


def test_swapped_ends_of_kept_edges_are_put_right() -> None:
    components, solution = crystals()[0]
    fixed, poses, pairing = stacked([(components, solution)])
    ends = components.linker_ends
    one, two = next(
        (a, b)
        for a in range(len(ends))
        for b in range(a)
        if ends[a].block == ends[b].block and ends[a].pattern == ends[b].pattern
    )
    swapped = pairing.partner.clone()
    swapped[pairing.partner == one], swapped[pairing.partner == two] = two, one
    found = snap(fixed, noised(poses, SMALL), SnapSettings(tries=3), pairing=Pairing(swapped, pairing.shifts))
    assert float(found.energy[0]) < DONE
    assert edges_of(components, found.pairing, 0) == edges_of(components, Pairing(swapped, pairing.shifts), 0)


def test_pairing_of_unlike_ends_or_of_one_end_twice_is_refused() -> None:
    fixed, poses, pairing = stacked(crystals()[:1])
    twice = pairing.partner.clone()
    twice[0, 0] = twice[0, 1]
    outside = pairing.partner.clone()
    outside[0, 0] = 10_000
    for partner in (twice, outside):
        with pytest.raises(ValueError, match="one-to-one"):
            snap(fixed, poses, SnapSettings(), pairing=Pairing(partner, pairing.shifts))


def test_logits_decide_where_distance_cannot() -> None:
    known = crystals()[4:8]
    fixed, poses, pairing = stacked(known)
    start = noised(poses, (0.9, 35.0, 40.0, 0.05), seed=2)
    logits = torch.full((*pairing.partner.shape, pairing.partner.shape[1]), -30.0)
    logits.scatter_(2, pairing.partner[..., None], 30.0)
    without = snap(fixed, start, SnapSettings())
    told = snap(fixed, start, SnapSettings(), logits=logits)
    ignored = snap(fixed, start, SnapSettings(contact_weight=0.0), logits=logits)
    assert torch.equal(ignored.energy, without.energy)

    def right(found: Snapped) -> int:
        return sum(
            int((found.pairing.partner[r] == pairing.partner[r])[: len(c.node_ends)].sum())
            for r, (c, _) in enumerate(known)
        )

    assert right(told) > right(without)


def test_donors_of_a_contact_are_assigned_as_enumeration_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every order is tried and where donors are assigned one by one."""
    fixed, poses, _ = stacked(crystals()[:6], torch.float64)
    rig, poses = rig_of(fixed), noised(poses, MEDIUM)
    points = points_of(rig, poses)
    anyone = torch.ones(len(fixed), 1, *rig.ends.size.shape[1:] * 2, dtype=torch.bool)
    for limit in (4, 1):
        monkeypatch.setattr(snap_meet, "MOST_PERMUTED", limit)
        monkeypatch.setattr(snap_meet, "SHAPE_WEIGHT", 0.0)
        checked = 0
        for some in snap_meet.meetings_of(rig, anyone):
            cost, donors = snap_meet.costs_of(some, rig.ends, points, torch.zeros(len(some.row), 3).double(), 0.5)
            for n in range(0, len(cost), 37):
                row, at = some.row[n], int(rig.ends.node_first[some.row[n], some.node[n]])
                of = int(rig.ends.linker_first[some.row[n], some.linker[n]])
                wanted = rig.ends.site_element[row, at : at + some.size]
                best = min(
                    sum(
                        float((points.donors[row, of + q] - points.sites[row, at + p]).square().sum())
                        + 0.5 * float((points.backs[row, of + q] - points.behinds[row, at + p]).square().sum())
                        for p, q in enumerate(order)
                    )
                    for order in permutations(range(some.size))
                    if (rig.ends.donor_element[row, of + torch.tensor(order)] == wanted).all()
                )
                assert float(cost[n]) == pytest.approx(best)
                assert sorted(donors[n].tolist()) == list(range(of, of + some.size))
                checked += some.size > 1
        assert checked


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=9, max_size=9), st.lists(st.integers(-3, 3), min_size=3, max_size=3))
def test_reduced_basis_spans_the_same_lattice_with_shorter_vectors(numbers: list[float], mix: list[int]) -> None:
    cell = torch.tensor(numbers, dtype=torch.float64).reshape(1, 3, 3)
    if torch.linalg.det(cell).abs() < 1.0:
        return
    a, b, c = mix
    skew = torch.tensor([[1.0, a, b], [0.0, 1.0, c], [0.0, 0.0, 1.0]], dtype=torch.float64)
    basis = reduced_basis(skew @ cell)
    assert torch.equal(basis, basis.round())
    assert float(torch.linalg.det(basis)[0].abs()) == pytest.approx(1.0)
    short = (basis @ skew @ cell)[0]
    assert short.norm(dim=-1).sum() <= (skew @ cell)[0].norm(dim=-1).sum() + 1e-6
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert abs(short[i] @ short[j]) <= 0.5 * min(short[i] @ short[i], short[j] @ short[j]) * (1 + 1e-4) + 1e-6


def test_skewed_description_of_a_cell_gives_the_same_assembly() -> None:
    known = crystals()[1:4]
    fixed, poses, pairing = stacked(known, torch.float64)
    start = noised(poses, SMALL)
    skew = torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    skewed = replace(start, cells=skew @ start.cells)
    shifts = (pairing.shifts.double() @ torch.linalg.inv(skew)).round().long()
    for one, other in ((None, None), (pairing, Pairing(pairing.partner, shifts))):
        straight = snap(fixed, start, SnapSettings(), pairing=one)
        found = snap(fixed, skewed, SnapSettings(), pairing=other)
        assert torch.allclose(found.energy, straight.energy, atol=1e-4)
        assert torch.allclose(found.poses.centroids, straight.poses.centroids, atol=1e-3)
        back = (found.pairing.shifts.double() @ skew).round().long()
        assert torch.equal(back, straight.pairing.shifts)


def test_unusable_starts_come_back_unchanged_and_spoil_nothing() -> None:
    fixed, poses, _ = stacked(crystals()[:1] * 6)
    start = noised(poses, SMALL)
    start.cells[0, 0, 0], start.centroids[1, 0, 0], start.rotations[2, 0] = torch.nan, torch.inf, torch.nan
    start.cells[3] = 0.0
    start.cells[4] *= 0.1
    found = snap(fixed, start, SnapSettings(tries=2))
    for row in range(5):
        assert found.energy[row] == torch.inf
        assert found.tries[row] == 0
        for name in ("cells", "rotations", "centroids", "angles"):
            assert torch.equal(
                torch.nan_to_num(getattr(found.poses, name)[row]), torch.nan_to_num(getattr(start, name)[row])
            )
    assert found.energy[5] < DONE


@pytest.mark.parametrize("squeeze", [0.5, 0.02])
def test_crushed_assemblies_come_back_finite(squeeze: float) -> None:
    fixed, poses, pairing = stacked(crystals()[2:4])
    crushed = replace(poses, centroids=squeeze * poses.centroids)
    for kept in (None, pairing):
        found = snap(fixed, crushed, SnapSettings(), pairing=kept)
        assert torch.isfinite(found.energy).all()
        assert all(torch.isfinite(getattr(found.poses, n)).all() for n in ("cells", "rotations", "centroids", "angles"))
        unit = found.poses.rotations @ found.poses.rotations.mT
        assert torch.allclose(unit, torch.eye(3).expand_as(unit), atol=1e-5)


def bare(count: int) -> Components:
    """Blocks of one water-like molecule each, without anything to bind with."""
    numbers = np.array([8, 1, 1], np.int32)
    local = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    block = BuildingBlock(Kind.ORGANIC, "O", numbers, local - local.mean(0), None, None)
    return Components((block,) * count, (), (), "")


@pytest.mark.parametrize(("count", "edge"), [(1, 3.0), (1, 6.0), (20, 9.0)])
def test_blocks_without_contacts_only_make_room(count: int, edge: float) -> None:
    fixed = stack([bare(count)] * 2)
    generator = torch.Generator().manual_seed(0)
    start = Poses(
        edge * torch.eye(3).repeat(2, 1, 1),
        torch.eye(3).repeat(2, count, 1, 1),
        edge * torch.rand(2, count, 3, generator=generator),
        torch.zeros(2, 0),
    )
    found = snap(fixed, start, SnapSettings())
    assert found.pairing.partner.shape == (2, 0)
    assert (found.worst_ang == 0).all()
    assert (found.energy < DONE).all()


def supercell(components: Components, solution: Solution, times: int) -> tuple[Components, Solution]:
    """The crystal with its first lattice vector repeated."""
    k = len(components.blocks)
    ends, partner, shifts = len(components.node_ends), [], []
    for image in range(times):
        for e in range(ends):
            block_image = image + int(solution.shifts[e, 0])
            partner.append((block_image % times) * ends + int(solution.partner[e]))
            shifts.append([block_image // times, *solution.shifts[e, 1:]])

    def copies(of: tuple) -> tuple:
        return tuple(replace(end, block=end.block + n * k) for n in range(times) for end in of)

    many = Components(
        components.blocks * times, copies(components.node_ends), copies(components.linker_ends), components.sequence
    )
    cell = solution.cell * np.array([times, 1, 1])[:, None]
    centroids = np.concatenate([solution.centroids + n * solution.cell[0] for n in range(times)])
    known = Solution(
        cell,
        np.tile(solution.rotations, (times, 1, 1)),
        centroids,
        np.tile(solution.angles, times),
        np.array(partner),
        np.array(shifts, np.int32),
    )
    return many, known


def test_300_atoms_in_more_than_20_blocks_are_closed() -> None:
    components, solution = next((c, s) for c, s in crystals() if len(c.blocks) >= 4)
    times = max(-(-300 // len(components.numbers)), -(-20 // len(components.blocks)))
    many, known = supercell(components, solution, times)
    assert len(many.numbers) >= 300
    assert len(many.blocks) >= 20
    fixed, poses, pairing = stacked([(many, known)])
    for kept in (None, pairing):
        found = snap(fixed, noised(poses, (0.2, 8.0, 10.0, 0.01)), SnapSettings(), pairing=kept)
        assert found.energy[0] < DONE


def test_model_blocks_in_the_crystals_place_stay_near_it() -> None:
    """Conformers and templates close no contact exactly; without being held they wander along the soft ways."""
    library = NodeLibrary.read(FOLDER.parent / "nodes.h5")
    known = []
    for mof in read_prepared(FOLDER / "00000.h5"):
        with contextlib.suppress(ValueError):
            known.append(matched_components(mof, library))
        if len(known) == 24:
            break
    fixed = stack([c for c, _ in known])
    start = poses_of([s for _, s in known], fixed)
    held, free = (
        snap(fixed, start, SnapSettings(block_error_ang=MODEL_BLOCK_ERROR_ANG, hold=hold))
        for hold in (SnapSettings.hold, 0.0)
    )
    assert held.displacement.mean() < 0.7 * free.displacement.mean()
    assert np.mean(passes(fixed, held)) >= np.mean(passes(fixed, free))
