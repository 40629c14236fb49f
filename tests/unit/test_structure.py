"""Canonical form: the same crystal gives the same arrays, and never becomes another crystal."""

import numpy as np
import pytest
from ase.build import bulk, graphene
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from promof_hpc.structure import Structure, canonical, primitive


def _crystal(seed: int, atoms: int = 9) -> Structure:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(6, 12, 3)) + rng.normal(0, 2, (3, 3))
    if np.linalg.det(cell) < 0:
        cell = cell[[1, 0, 2]]
    numbers = rng.choice([1, 6, 8, 30], atoms).astype(np.int32)
    return Structure(numbers, rng.uniform(0, 1, (atoms, 3)) @ cell, cell)


def _distances(s: Structure) -> np.ndarray:
    return np.sort(s.to_ase().get_all_distances(mic=True).ravel())


UNIMODULAR = [
    [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 1, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [2, 1, 0], [-1, 1, 1]],
    [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
]


@pytest.mark.parametrize("change", UNIMODULAR)
@pytest.mark.parametrize("seed", range(4))
def test_any_basis_of_the_lattice_gives_the_same_digest(change, seed):
    s = _crystal(seed)
    other = Structure(s.numbers, s.positions, np.array(change, float) @ s.cell)
    assert canonical(other).digest() == canonical(s).digest()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), angle=st.floats(0, 6.28))
def test_rotation_and_unwrapped_fractions_change_nothing(seed, angle):
    s = _crystal(seed)
    shift = np.random.default_rng(seed).integers(-2, 3, (len(s), 3))
    c, n = np.cos(angle), np.sin(angle)
    turn = np.array([[c, n, 0], [-n, c, 0], [0, 0, 1]])
    moved = Structure(s.numbers, (s.positions + shift @ s.cell) @ turn, s.cell @ turn)
    assert np.allclose(canonical(moved).positions, canonical(s).positions, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_canonical_form_is_right_handed_lower_triangular_and_the_same_crystal(seed):
    s = _crystal(seed)
    c = canonical(s)
    assert np.linalg.det(c.cell) > 0
    assert np.allclose(np.triu(c.cell, 1), 0)
    assert c.volume == pytest.approx(s.volume, rel=1e-6)
    assert np.allclose(_distances(c), _distances(s), atol=1e-5)


def test_canonical_form_keeps_the_hand_of_a_chiral_crystal():
    s = _crystal(3)
    mirrored = Structure(s.numbers, s.positions * [1, 1, -1], s.cell * [1, 1, -1])
    assert canonical(mirrored).digest() != canonical(s).digest()


def test_canonical_is_idempotent():
    once = canonical(_crystal(5))
    assert canonical(once).digest() == once.digest()


@pytest.mark.parametrize("repeat", [(2, 1, 1), (1, 2, 3)])
def test_primitive_undoes_a_supercell(repeat):
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    back = primitive(Structure.from_ase(atoms * repeat))
    assert len(back) == 2
    assert StructureMatcher().fit(AseAtomsAdaptor.get_structure(atoms), AseAtomsAdaptor.get_structure(back.to_ase()))


def test_primitive_leaves_distortions_that_symmetry_would_remove():
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions[1] += [0.05, 0.02, 0.01]
    before = Structure.from_ase(atoms)
    back = primitive(Structure.from_ase(atoms * (2, 2, 2)))
    assert len(back) == 2
    assert np.allclose(_distances(back), _distances(before), atol=1e-6)


@pytest.mark.parametrize("form", [canonical, primitive])
def test_a_coordinate_that_is_no_number_is_an_error_and_not_a_dead_process(form):
    s = _crystal(1)
    s.positions[3, 1] = np.nan
    with pytest.raises(ValueError, match="not a number"):
        form(s)


def test_density_and_formula_of_graphene_in_a_box():
    s = Structure.from_ase(graphene("C2", vacuum=5.0))
    assert s.formula == "C2"
    assert s.density == pytest.approx(2 * 12.011 / (s.volume * 0.602214), rel=1e-4)
