"""Net-first starts: orientations against enumeration, closure against plain distances, nets against topology."""

from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.assembly.components import Components, Solution, crystal_components
from promof_hpc.assembly.net_cells import in_cells_of
from promof_hpc.assembly.net_close import Placed, close
from promof_hpc.assembly.net_library import Donor, NetLibrary
from promof_hpc.assembly.net_orient import BARRED, WEIGHTS, orientations
from promof_hpc.assembly.net_start import NetStart, bite_ang, candidate_nets, net_starts
from promof_hpc.assembly.net_target import target_of
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.assembly.stack import place, poses_of, stack
from promof_hpc.geometry.topology import LabelledNet, net_key

FOLDER = Path(str(files("promof_hpc"))) / "data" / "small_mofs"


@lru_cache
def library() -> NetLibrary:
    return NetLibrary.read(FOLDER / "nets.h5")


@lru_cache
def lent() -> tuple[PreparedMof, ...]:
    """MOFs of the training part that lend their nets, small ones of every tenth."""
    names = {d.name for d in library().donors}
    return tuple(m for m in read_prepared(FOLDER / "train" / "00000.h5") if m.name in names)[::10]


def only(*donors: str) -> NetLibrary:
    return NetLibrary(tuple(d for d in library().donors if d.name in donors))


def unit_vectors(generator: np.random.Generator, *shape: int) -> np.ndarray:
    v = generator.normal(size=(*shape, 3))
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def net_of(components: Components, solution: Solution) -> str:
    """Key of the net that a solution makes, from its pairing alone."""
    ends = components.linker_ends
    edges = tuple(
        (node.block, ends[p].block, (int(s[0]), int(s[1]), int(s[2])))
        for node, p, s in zip(components.node_ends, solution.partner, solution.shifts, strict=True)
    )
    sizes = tuple(len(e.site.elements) for e in components.node_ends)
    return net_key(LabelledNet(tuple(int(b.kind) for b in components.blocks), edges, sizes))


def contact_energy(components: Components, solution: Solution) -> float:
    """Squared distances of sites and donors, and of what lies behind them, in the best order of equal donors."""
    fixed = stack([components])
    atoms = place(fixed, poses_of([solution], fixed))[0].double().numpy()
    total = 0.0
    for end, p, shift in zip(components.node_ends, solution.partner, solution.shifts, strict=True):
        other = components.linker_ends[p]
        first = int(components.first_atom[other.block])
        offset = shift @ solution.cell
        turn, centre = solution.rotations[end.block], solution.centroids[end.block]
        sites, behind = (x @ turn.T + centre for x in (end.site.positions, end.site.behind))
        donors = atoms[first + other.donors] + offset
        backs = np.array([atoms[first + b].mean(0) for b in other.backs]) + offset
        elements = components.numbers[first + other.donors]
        total += min(
            ((sites - donors[list(o)]) ** 2).sum() + ((behind - backs[list(o)]) ** 2).sum()
            for o in permutations(range(len(donors)))
            if (elements[list(o)] == end.site.elements).all()
        )
    return float(total)


@pytest.mark.parametrize("ends", [1, 2, 3, 4])
def test_few_ends_get_the_orientation_that_enumeration_with_scipy_finds(ends: int) -> None:
    generator = np.random.default_rng(ends)
    own, edges = unit_vectors(generator, 3, ends, 2), unit_vectors(generator, 3, ends, 2)
    found = orientations(own, edges, np.zeros((3, ends, ends)), 3, generator)
    for n in range(3):
        costs = {}
        for order in permutations(range(ends)):
            there = edges[n][list(order)]
            weights = np.tile(WEIGHTS, (ends, 1))
            _, rssd = Rotation.align_vectors(there.reshape(-1, 3), own[n].reshape(-1, 3), weights.ravel())
            costs[order] = rssd**2 / ends
        best = sorted(costs, key=lambda o: costs[o])[:3]
        assert found.cost[n, : len(best)] == pytest.approx([costs[o] for o in best], abs=1e-6)
        assert tuple(found.slots[n, 0]) == best[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 12), st.integers(0, 10**6))
def test_many_ends_turned_and_shuffled_are_recognised(ends: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    own = unit_vectors(generator, 1, ends, 2)
    turn, order = Rotation.random(random_state=seed).as_matrix(), generator.permutation(ends)
    edges = np.empty_like(own)
    edges[0, order] = own[0] @ turn.T
    found = orientations(own, edges, np.zeros((1, ends, ends)), 2, generator)
    assert found.cost[0, 0] == pytest.approx(0.0, abs=1e-6)
    assert (found.slots[0, 0] == order).all()


@pytest.mark.parametrize("ends", [3, 6])
def test_barred_edges_are_never_taken_and_an_impossible_vertex_has_no_answer(ends: int) -> None:
    generator = np.random.default_rng(0)
    own = unit_vectors(generator, 1, ends, 2)
    penalty = np.zeros((1, ends, ends))
    penalty[0, 0, 1:] = BARRED  # the first end may only take the first edge
    found = orientations(own, own.copy(), penalty, 4, generator)
    assert (found.slots[np.isfinite(found.cost)][:, 0] == 0).all()
    penalty[0, 1, 1:] = BARRED  # and so may the second
    assert not np.isfinite(orientations(own, own.copy(), penalty, 4, generator).cost).any()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_net_in_a_larger_cell_is_the_same_net_with_the_same_edges(factor: int) -> None:
    donor = library().donors[3]
    made = in_cells_of(donor, factor * len(donor.kinds))
    assert len(made) == {2: 7, 3: 13, 4: 35}[factor]  # sublattices of that index
    for larger in made:
        assert len(larger.kinds) == factor * len(donor.kinds)
        assert np.linalg.det(larger.cell) == pytest.approx(factor * np.linalg.det(donor.cell))
        assert edge_vectors(larger) == pytest.approx(np.tile(edge_vectors(donor), (factor, 1)), abs=1e-6)
        assert key_of(larger) == donor.net_key


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_net_comes_back_from_a_larger_cell_in_its_own(factor: int) -> None:
    for donor in library().donors[5:80:25]:
        for larger in in_cells_of(donor, factor * len(donor.kinds))[:2]:
            smaller = in_cells_of(larger, len(donor.kinds))
            assert smaller
            for found in smaller:
                assert key_of(found) == donor.net_key
                assert abs(np.linalg.det(found.cell)) == pytest.approx(abs(np.linalg.det(donor.cell)))


def test_a_net_that_does_not_repeat_has_no_smaller_cell() -> None:
    whole = [d for d in library().donors if len(d.kinds) % 2 == 0]
    none = [d for d in whole if not in_cells_of(d, len(d.kinds) // 2)]
    some = [d for d in whole if d not in none]
    assert none
    assert all(key_of(f) == d.net_key for d in some for f in in_cells_of(d, len(d.kinds) // 2))
    assert in_cells_of(whole[0], len(whole[0].kinds) + 1) == []


def key_of(donor: Donor) -> str:
    edges = tuple((int(p), int(q), (int(a), int(b), int(c))) for p, q, a, b, c in donor.edges)
    return net_key(LabelledNet(tuple(map(int, donor.kinds)), edges, tuple(len(e) for e in donor.elements)))


def edge_vectors(donor: Donor) -> np.ndarray:
    p, q, shift = donor.edges[:, 0], donor.edges[:, 1], donor.edges[:, 2:]
    vectors: np.ndarray = donor.centroids[q] + shift @ donor.cell - donor.centroids[p]
    return vectors


def placed(solution: Solution, copies: int = 1) -> Placed:
    state = np.zeros(len(solution.rotations), int)
    arrays = (solution.partner, solution.shifts, state, solution.cell, solution.rotations, solution.centroids)
    return Placed(*(np.repeat(np.asarray(a)[None], copies, axis=0) for a in arrays))


def test_closing_leaves_a_crystal_as_it_is_and_heals_a_shaken_one() -> None:
    for mof in lent()[:6]:
        components, solution = crystal_components(mof)
        points = target_of(components, 1, np.random.default_rng(0)).points
        start = placed(solution, 3)
        generator = np.random.default_rng(1)
        shaken = replace(
            start,
            cells=start.cells * np.array([1.0, 1.1, 0.95])[:, None, None],
            centroids=start.centroids + np.array([0.0, 0.4, 0.4])[:, None, None] * generator.normal(size=(3, 1, 3)),
        )
        closed, energy = close(points, shaken, 40, 0.0)
        assert energy == pytest.approx(0.0, abs=0.02)
        assert closed.cells[0] == pytest.approx(solution.cell, abs=1e-3)


def test_the_energy_of_a_closure_is_that_of_the_atoms_it_places() -> None:
    mof = lent()[1]
    components, solution = crystal_components(mof)
    points = target_of(components, 1, np.random.default_rng(0)).points
    moved = replace(
        solution,
        centroids=solution.centroids + np.random.default_rng(2).normal(size=(len(points.node), 3))[: points.blocks],
    )
    assert close(points, placed(moved), 0, 0.0)[1][0] == pytest.approx(contact_energy(components, moved), rel=1e-4)


def test_contacts_that_cannot_meet_do_not_collapse_the_cell() -> None:
    components, solution = crystal_components(lent()[0])
    points = target_of(components, 1, np.random.default_rng(0)).points
    wrong = replace(solution, partner=np.roll(solution.partner, 1))
    least = 11.0 * len(components.numbers)
    closed, _ = close(points, placed(wrong), 30, least)
    assert abs(np.linalg.det(closed.cells[0])) > 0.999 * least


def test_a_mof_is_put_back_on_its_own_net() -> None:
    for mof in lent():
        components, _ = crystal_components(mof)
        starts = net_starts(components, only(mof.name), 8, np.random.default_rng(0))
        assert starts[0].misfit < 0.05, mof.name
        assert starts[0].net_key == mof.net_key
        assert starts[0].donor == mof.name


def test_every_start_pairs_ends_one_to_one_with_equal_donors_on_the_net_it_names() -> None:
    for mof in lent()[:8]:
        components, _ = crystal_components(mof)
        for start in net_starts(components, library(), 12, np.random.default_rng(3)):
            partner = start.solution.partner
            assert sorted(partner) == list(range(len(components.linker_ends)))
            met = [components.linker_ends[p].pattern for p in partner]
            assert met == [e.pattern for e in components.node_ends]
            donor = next(d for d in library().donors if d.name == start.donor)
            assert start.net_key == donor.net_key
            if donor.signature == components.signature("size"):
                assert net_of(components, start.solution) == start.net_key


def test_misfit_is_the_root_mean_square_of_what_should_meet() -> None:
    components, _ = crystal_components(lent()[2])
    pairs = 2 * sum(len(e.site.elements) for e in components.node_ends)
    for start in net_starts(components, library(), 4, np.random.default_rng(0)):
        energy = contact_energy(components, start.solution)
        assert start.misfit == pytest.approx(np.sqrt(energy / pairs), rel=1e-3, abs=1e-4)
        assert np.linalg.det(start.solution.cell) > 0
        assert start.solution.rotations @ np.swapaxes(start.solution.rotations, 1, 2) == pytest.approx(
            np.tile(np.eye(3), (len(components.blocks), 1, 1)), abs=1e-6
        )


def test_a_seed_gives_the_same_starts_and_another_seed_others() -> None:
    components, _ = crystal_components(lent()[2])
    first, again, other = (net_starts(components, library(), 12, np.random.default_rng(s)) for s in (5, 5, 6))
    assert [s.misfit for s in first] == [s.misfit for s in again]
    assert all((a.solution.cell == b.solution.cell).all() for a, b in zip(first, again, strict=True))
    assert [s.misfit for s in first] != [s.misfit for s in other]


def test_donors_with_a_held_out_skeleton_are_left_out() -> None:
    mof = lent()[0]
    components, _ = crystal_components(mof)
    own = next(d for d in library().donors if d.name == mof.name)
    held_out = frozenset(own.skeletons)
    left = [d for donors in candidate_nets(components, library(), held_out) for d in donors]
    assert not any(held_out & set(d.skeletons) for d in left)
    assert net_starts(components, only(mof.name), 4, np.random.default_rng(0), without_skeletons=held_out) == []


def test_a_preference_decides_the_order() -> None:
    components, _ = crystal_components(lent()[2])

    def volume(start: NetStart) -> float:
        return float(np.linalg.det(start.solution.cell))

    starts = net_starts(components, library(), 10, np.random.default_rng(0), preference=volume)
    volumes = [volume(s) for s in starts]
    assert volumes == sorted(volumes, reverse=True)
    assert len(set(volumes)) > 1


def test_nothing_asked_or_nothing_known_gives_no_start() -> None:
    components, _ = crystal_components(lent()[0])
    assert net_starts(components, library(), 0, np.random.default_rng(0)) == []
    assert net_starts(components, NetLibrary(()), 4, np.random.default_rng(0)) == []


def test_the_blocks_of_a_crystal_bite_each_other() -> None:
    bites = [bite_ang(crystal_components(m)[0]) for m in lent()]
    assert max(bites) < 1e-4
