"""Lennard-Jones against sums over images by brute force and against finite differences."""

import itertools

import numpy as np
import pytest

from promof_hpc.physics.lennard_jones import SWITCH_OFF, SWITCH_ON, LennardJones, _pair
from promof_hpc.physics.neighbours import directed_pairs, undirected_pairs
from promof_hpc.structure import Structure


def crystal(seed: int, atoms: int = 5, side: float = 4.0) -> Structure:
    """Skewed cells much smaller than the cutoff; every second one left-handed."""
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * side + rng.normal(0, 0.5, (3, 3))
    cell[0] *= -1 if seed % 2 else 1
    grid = np.array(list(itertools.product([0.0, 0.5], repeat=3)))[rng.permutation(8)[:atoms]]
    numbers = rng.choice([1, 6, 8, 18, 30], atoms).astype(np.int32)
    return Structure(numbers, (grid + rng.normal(0, 0.04, (atoms, 3))) @ cell, cell)


def images_within(structure: Structure, cutoff: float) -> list[tuple[int, int, float]]:
    shifts = np.array(list(itertools.product(range(-6, 7), repeat=3))) @ structure.cell
    found = []
    for i, j in itertools.product(range(len(structure)), repeat=2):
        distances = np.linalg.norm(structure.positions[j] + shifts - structure.positions[i], axis=1)
        found += [(i, j, d) for d in distances if 1e-9 < d < cutoff]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_neighbour_search_finds_every_image_in_small_skewed_and_left_handed_cells(seed):
    s = crystal(seed)
    expected = images_within(s, 6.0)
    pairs, halves = directed_pairs(s, 6.0), undirected_pairs(s, 6.0)
    assert sorted(pairs.distances) == pytest.approx(sorted(d for *_, d in expected))
    both = np.concatenate([halves.distances, halves.distances])
    assert sorted(both) == pytest.approx(sorted(d for *_, d in expected))
    ends = sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert ends == sorted((i, j) for i, j, _ in expected)
    assert (
        sorted([*zip(halves.first, halves.second, strict=True), *zip(halves.second, halves.first, strict=True)]) == ends
    )


@pytest.mark.parametrize("seed", range(4))
def test_energy_is_the_sum_over_all_images(seed):
    s, potential = crystal(seed), LennardJones()
    radii = potential._radii[s.numbers]
    total = 0.0
    for i, j, d in images_within(s, 2 * SWITCH_OFF * radii.max()):
        energy, _ = _pair(np.array([d / (radii[i] + radii[j])]))
        total += 0.5 * float(energy[0])
    assert potential.compute([s])[0].energy == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_forces_are_the_gradient(seed):
    s, potential, step = crystal(seed), LennardJones(), 1e-5
    forces = potential.compute([s])[0].forces
    for k in range(len(s)):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = s.positions.copy()
                moved[k, axis] += sign * step
                energies.append(potential.compute([Structure(s.numbers, moved, s.cell)])[0].energy)
            slope = (energies[0] - energies[1]) / (2 * step)
            assert forces[k, axis] == pytest.approx(-slope, abs=1e-6 * (1 + np.abs(forces).max()))


@pytest.mark.parametrize("seed", range(4))
def test_stress_is_the_strain_derivative_over_the_volume(seed):
    s, potential, step = crystal(seed), LennardJones(), 1e-5
    stress = potential.compute([s])[0].stress
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            f = np.eye(3) + strain
            energies.append(potential.compute([Structure(s.numbers, s.positions @ f, s.cell @ f)])[0].energy)
        slope = (energies[0] - energies[1]) / (2 * step) / s.volume
        assert stress[a, b] == pytest.approx(slope, abs=1e-6 * (1 + np.abs(stress).max()))


def test_pair_energy_and_its_slopes_vanish_at_the_cutoff_and_have_no_kink_at_the_switch():
    for x in (SWITCH_ON, SWITCH_OFF):
        energies, slopes = _pair(np.array([x - 1e-7, x + 1e-7]))
        assert energies[0] == pytest.approx(energies[1], abs=1e-7)
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-6)
    assert not np.any(_pair(np.array([SWITCH_OFF, SWITCH_OFF + 1]))[0])
    energies, slopes = _pair(np.array([1.0]))
    assert (energies[0], slopes[0]) == (-0.02, 0.0)  # the minimum lies at the sum of the radii


def test_a_lone_atom_has_no_energy_and_repeated_calls_are_equal_to_the_last_bit():
    potential = LennardJones()
    lone = potential.compute([Structure(np.array([18], np.int32), np.zeros((1, 3)), np.eye(3) * 50)])[0]
    assert (lone.energy, np.abs(lone.forces).max(), np.abs(lone.stress).max()) == (0.0, 0.0, 0.0)
    s = crystal(0)
    first, second = potential.compute([s, crystal(1), s])[::2]
    assert first.energy == second.energy
    assert np.array_equal(first.forces, second.forces)
