from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.chem.bonds import (
    BondKind,
    atom_pieces,
    bonds,
    compare_bonds,
    formulas,
    free_pieces,
    is_metal,
    near_pairs,
)
from promof_hpc.structure import Structure

DATA = Path(__file__).parents[1] / "data"


def load(name: str) -> Structure:
    return Structure.from_ase(read(DATA / name))


@pytest.fixture(scope="module")
def mof5() -> Structure:
    return load("mofs/EDUSIF_clean.cif")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_near_pairs_agree_with_ase_in_skewed_cells_and_for_unwrapped_atoms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 7, 3)) + rng.uniform(-1.5, 1.5, (3, 3)) * (1 - np.eye(3))
    fractional = rng.uniform(-1.5, 1.5, (6, 3))
    structure = Structure(np.full(6, 6, np.int32), fractional @ cell, cell)
    i, j, shift, distance = near_pairs(structure, 3.5)
    a, b, d, s = primitive_neighbor_list("ijdS", (True,) * 3, cell, structure.positions, 3.5)
    ours = {(p, q, *t) for p, q, t in zip(i.tolist(), j.tolist(), shift.tolist(), strict=True)}
    theirs = {(p, q, *t) for p, q, t in zip(a.tolist(), b.tolist(), s.tolist(), strict=True)}
    assert {(p, q, *t) for p, q, *t in theirs} == ours | {(q, p, -x, -y, -z) for p, q, x, y, z in ours}
    assert np.sort(np.concatenate([distance, distance])) == pytest.approx(np.sort(d))


def test_mof5_has_the_bonds_of_zn4o_and_bdc(mof5: Structure) -> None:
    found = bonds(mof5)
    # per formula unit Zn4O(C8H4O4)3: 3 x (8 C-C + 4 C-O + 4 C-H), 4 Zn x (3 carboxylate O + 1 oxo)
    assert np.bincount(found.kind, minlength=3).tolist() == [2 * 3 * 16, 2 * 4 * 4, 0]
    assert found.distance[found.kind == BondKind.METAL_DONOR].max() < 2.1


def test_paddlewheel_has_one_copper_copper_bond_per_pair() -> None:
    found = bonds(load("mofs/FIQCEN_clean.cif"))
    assert (found.kind == BondKind.METAL_METAL).sum() == 6


def test_every_hydrogen_keeps_its_nearest_neighbour_only() -> None:
    # O-H...O with the H in a short hydrogen bond: 1.05 Å and 1.25 Å are both within the limit
    h_bond = Structure(
        np.array([8, 1, 8], np.int32), np.array([[0, 0, 0], [1.05, 0, 0], [2.30, 0, 0.0]]), np.eye(3) * 9
    )
    found = bonds(h_bond)
    assert found.edges() == [(0, 1, (0, 0, 0))]


def test_handedness_and_wrapping_do_not_change_bonds(mof5: Structure) -> None:
    rng = np.random.default_rng(3)
    moved = mof5.positions + rng.integers(-2, 3, (len(mof5), 3)) @ mof5.cell
    swapped = Structure(mof5.numbers, moved, mof5.cell[[1, 0, 2]])
    ours, theirs = bonds(mof5), bonds(swapped)
    assert np.linalg.det(swapped.cell) * np.linalg.det(mof5.cell) < 0
    assert sorted(zip(ours.i.tolist(), ours.j.tolist(), strict=True)) == sorted(
        zip(theirs.i.tolist(), theirs.j.tolist(), strict=True)
    )
    assert np.sort(theirs.distance) == pytest.approx(np.sort(ours.distance))


def test_interpenetrated_nets_in_one_primitive_cell_are_counted() -> None:
    zinc_cyanide = load("cases/C000_base_pmx3.cif")
    parts = atom_pieces(len(zinc_cyanide), bonds(zinc_cyanide))
    # one connected quotient graph of ten atoms, yet two diamond nets
    assert [(p.dimensionality, p.nets) for p in parts] == [(3, 2)]


def test_solvent_in_pores_is_named() -> None:
    solvated = load("cases/C021_solvent_in_pores.cif")
    assert formulas(solvated, free_pieces(solvated, bonds(solvated))) == "3 × H2O"


def test_cell_without_room_for_its_atoms_has_no_bonds() -> None:
    found = bonds(Structure(np.full(50, 6, np.int32), np.random.default_rng(0).random((50, 3)), np.eye(3)))
    assert len(found) == 0
    assert found.shortest == 0.0


@pytest.mark.parametrize(
    ("number", "expected"), [(30, True), (32, True), (5, False), (14, False), (6, False), (52, False)]
)
def test_metals_and_metalloids(number: int, expected: bool) -> None:
    assert is_metal(number) is expected


def test_small_strain_keeps_every_bond(mof5: Structure) -> None:
    strained = Structure(mof5.numbers, mof5.positions * 1.02, mof5.cell * 1.02)
    change = compare_bonds(mof5, strained)
    assert change.kept
    assert not change.disconnected


def test_pulling_one_hydrogen_off_breaks_one_bond_and_leaves_a_part(mof5: Structure) -> None:
    found = bonds(mof5)
    row = int(np.nonzero(mof5.numbers[found.i] * mof5.numbers[found.j] == 6)[0][0])
    hydrogen = found.i[row] if mof5.numbers[found.i[row]] == 1 else found.j[row]
    carbon = found.j[row] if hydrogen == found.i[row] else found.i[row]
    positions = mof5.positions.copy()
    vector = positions[hydrogen] - positions[carbon]
    vector -= np.round(np.linalg.solve(mof5.cell.T, vector)) @ mof5.cell
    positions[hydrogen] += vector
    change = compare_bonds(mof5, Structure(mof5.numbers, positions, mof5.cell))
    assert (change.broken, change.formed, change.disconnected) == (1, 0, True)
    assert "2 separate parts" in change.reason


def test_stretching_one_axis_leaves_a_layer() -> None:
    # simple cubic C-C net; z stretched by 1.5
    cube = Structure(np.array([6], np.int32), np.zeros((1, 3)), np.eye(3) * 1.5)
    layer = Structure(cube.numbers, cube.positions, np.diag([1.5, 1.5, 2.25]))
    change = compare_bonds(cube, layer)
    assert (change.broken, change.disconnected) == (1, True)
    assert "2-periodic" in change.reason
    assert compare_bonds(layer, cube).formed == 1


def test_comparing_different_atoms_is_an_error(mof5: Structure) -> None:
    with pytest.raises(ValueError, match="same order"):
        compare_bonds(mof5, Structure(mof5.numbers[::-1], mof5.positions, mof5.cell))
