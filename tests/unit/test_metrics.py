import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from promof_hpc.design.judging.metrics import (
    Materials,
    amd_diversity,
    distinct_nets,
    diversity,
    materials,
    same_material,
    share,
    top_k,
)
from promof_hpc.geometry.minimum_distances import average_minimum_distances
from promof_hpc.structure import Structure
from tests.prepared import prepared


def _cubic(edge_ang: float, number: int = 29) -> Structure:
    return Structure(np.array([number], np.int32), np.zeros((1, 3)), np.eye(3) * edge_ang)


def _random(seed: int, atoms: int = 5) -> Structure:
    generator = np.random.default_rng(seed)
    cell = np.diag(generator.uniform(2, 6, 3)) + generator.uniform(-1.5, 1.5, (3, 3))
    return Structure(generator.integers(1, 30, atoms).astype(np.int32), generator.uniform(-9, 9, (atoms, 3)), cell)


def _supercell(of: Structure, *repeats: int) -> Structure:
    shifts = np.array(list(product(*map(range, repeats))))
    positions = (of.positions[None] + (shifts @ of.cell)[:, None]).reshape(-1, 3)
    return Structure(np.tile(of.numbers, len(shifts)), positions, of.cell * np.array(repeats)[:, None])


def _shaken(of: Structure, seed: int, noise_ang: float, strain: float) -> Structure:
    generator = np.random.default_rng(seed)
    change = strain * generator.normal(size=(3, 3))
    cell = of.cell @ (np.eye(3) + (change + change.T) / 2)
    moved = of.fractional @ cell + noise_ang * generator.normal(size=of.positions.shape) / np.sqrt(3)
    return Structure(of.numbers, moved, cell)


@pytest.fixture(scope="module")
def hkust() -> Structure:
    return prepared("FIQCEN").decomposition.structure


def test_shells_of_a_cubic_lattice_are_found():
    expected = [3.0] * 6 + [3 * math.sqrt(2)] * 12 + [3 * math.sqrt(3)] * 8 + [6.0] * 6
    np.testing.assert_allclose(average_minimum_distances(_cubic(3.0), 32), expected)


@pytest.mark.parametrize("seed", range(6))
def test_average_minimum_distances_are_those_of_plain_enumeration(seed):
    crystal, k = _random(seed), 30
    shifts = np.array(list(product(range(-8, 9), repeat=3))) @ crystal.cell
    images = (crystal.fractional % 1.0 @ crystal.cell)[:, None] + shifts[None]
    home = crystal.fractional % 1.0 @ crystal.cell
    table = np.sort(np.linalg.norm(home[:, None] - images.reshape(1, -1, 3), axis=-1), axis=1)
    np.testing.assert_allclose(average_minimum_distances(crystal, k), table[:, 1 : k + 1].mean(0), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_average_minimum_distances_do_not_depend_on_how_a_crystal_is_described(seed):
    crystal, generator = _random(seed), np.random.default_rng(seed)
    turn, order = Rotation.random(rng=generator).as_matrix(), generator.permutation(len(crystal))
    moved = crystal.positions + generator.integers(-3, 4, (len(crystal), 3)) @ crystal.cell + 1.7
    skewed = np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]) @ crystal.cell
    others = [
        _supercell(crystal, 2, 1, 3),
        Structure(crystal.numbers[order], moved[order] @ turn.T, crystal.cell @ turn.T),
        Structure(crystal.numbers, crystal.positions, skewed),
        Structure(crystal.numbers, crystal.positions, crystal.cell * [[-1], [1], [1]]),
    ]
    for other in others:
        np.testing.assert_allclose(average_minimum_distances(other), average_minimum_distances(crystal), atol=1e-8)


def test_a_crystal_without_atoms_or_volume_has_no_distances():
    with pytest.raises(ValueError, match="volume"):
        average_minimum_distances(Structure(np.zeros(0, np.int32), np.zeros((0, 3)), np.eye(3)))
    with pytest.raises(ValueError, match="volume"):
        average_minimum_distances(Structure(np.array([6], np.int32), np.zeros((1, 3)), np.ones((3, 3))))


def test_diversity_is_the_mean_over_pairs():
    a, b, c = frozenset({1, 2}), frozenset({2, 3}), frozenset({9})
    assert diversity([a, b, c]) == pytest.approx(((1 - 1 / 3) + 1 + 1) / 3)
    assert diversity([a, a]) == 0.0
    assert math.isnan(diversity([a]))
    assert math.isnan(diversity([]))


def test_amd_diversity_is_the_mean_largest_difference():
    # the k-th neighbours of cubic lattices lie in proportion to the edge; the 100th is at 3 edges
    edges = (2.0, 3.0, 5.0)
    farthest = average_minimum_distances(_cubic(1.0))[-1]
    expected = np.mean([abs(a - b) * farthest for a, b in ((2, 3), (2, 5), (3, 5))])
    assert amd_diversity([_cubic(e) for e in edges]) == pytest.approx(expected)
    assert math.isnan(amd_diversity([_cubic(2.0)]))


def test_nets_are_counted_once_and_only_where_there_are_some(hkust):
    mof5 = prepared("EDUSIF").decomposition.structure
    assert distinct_nets([hkust, _shaken(hkust, 0, 0.02, 0.0), mof5, _cubic(3.0)]) == 2
    assert distinct_nets([]) == 0


def test_a_material_is_known_again_relaxed_moved_or_in_a_larger_cell(hkust):
    small = prepared("AFOVIB").decomposition.structure
    for crystal in (hkust, small):
        assert same_material(crystal, crystal)
        assert same_material(crystal, _shaken(crystal, 1, 0.1, 0.01))
        turned = Rotation.from_euler("xyz", [0.3, 1.0, -2.0]).as_matrix()
        assert same_material(crystal, Structure(crystal.numbers, crystal.positions @ turned.T, crystal.cell @ turned.T))
    assert same_material(small, _supercell(small, 2, 1, 1))


def test_other_elements_another_volume_or_other_places_are_another_material(hkust):
    zinc = Structure(np.where(hkust.numbers == 29, 30, hkust.numbers).astype(np.int32), hkust.positions, hkust.cell)
    swollen = Structure(hkust.numbers, hkust.positions * 1.1, hkust.cell * 1.1)
    assert not same_material(hkust, zinc)
    assert not same_material(hkust, swollen)
    body, face = (
        Structure(np.full(len(sites), 26, np.int32), np.array(sites) * edge, np.eye(3) * edge)
        for sites, edge in (
            ([(0, 0, 0), (0.5, 0.5, 0.5)], 2.87),
            ([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)], 2.87 * 2 ** (1 / 3)),
        )
    )
    assert body.volume / 2 == pytest.approx(face.volume / 4)
    assert not same_material(body, face)


def test_materials_are_numbered_as_they_come(hkust):
    mof5 = prepared("EDUSIF").decomposition.structure
    assert materials([hkust, mof5, _shaken(hkust, 2, 0.05, 0.005), mof5, _cubic(3.0)]) == [0, 1, 0, 1, 2]
    known = Materials()
    assert [known.number(mof5), known.number(hkust), known.number(mof5)] == [0, 1, 0]
    assert len(known) == 2
    assert materials([]) == []


def test_the_best_values_come_first_and_missing_ones_never():
    values = [5.0, math.nan, 7.0, 6.1, 7.0]
    assert top_k(values, 2) == [2, 4]
    assert top_k(values, 9, target=6.0) == [3, 0, 2, 4]
    assert top_k([math.nan], 1) == []
    assert top_k([], 3) == []


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9, unique=True), st.integers(1, 4))
def test_nothing_outside_the_top_is_better(values, k):
    chosen = top_k(values, k)
    assert sorted(values, reverse=True)[:k] == [values[i] for i in chosen]


def test_shares_have_the_interval_of_wilson():
    p, n, z = 0.8, 10, 1.959963984540054
    centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = share(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx((centre - half) / (1 + z**2 / n))
    assert found.high == pytest.approx((centre + half) / (1 + z**2 / n))
    assert share(0, 5).low == 0.0
    assert math.isnan(share(0, 0).value)
