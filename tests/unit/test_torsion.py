import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms

from promof_hpc.geometry import torsion

BUTYL_BENZOATE = "CCCCOC(=O)c1ccccc1"


def _molecule(smiles: str) -> tuple[Chem.Mol, np.ndarray, np.ndarray, np.ndarray]:
    """The molecule with H, its positions, its bonds and the torsions of its acyclic bonds."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=11) == 0
    quads = []
    for bond in mol.GetBonds():
        begin, end = bond.GetBeginAtom(), bond.GetEndAtom()
        if bond.IsInRing() or begin.GetDegree() < 2 or end.GetDegree() < 2:
            continue
        first = next(a.GetIdx() for a in begin.GetNeighbors() if a.GetIdx() != end.GetIdx())
        last = next(a.GetIdx() for a in end.GetNeighbors() if a.GetIdx() != begin.GetIdx())
        quads.append((first, begin.GetIdx(), end.GetIdx(), last))
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
    return mol, mol.GetConformer().GetPositions(), bonds, np.array(quads)


def _rdkit_angles(mol: Chem.Mol, positions: np.ndarray, quads: np.ndarray) -> np.ndarray:
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(positions)
    return np.array([rdMolTransforms.GetDihedralRad(conformer, *map(int, q)) for q in quads])


def test_measured_angles_are_rdkits():
    mol, positions, _, quads = _molecule(BUTYL_BENZOATE)
    np.testing.assert_allclose(torsion.measure(positions, quads), _rdkit_angles(mol, positions, quads), atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_set_angles_are_what_rdkit_then_measures_and_bonds_and_angles_stay(seed):
    mol, positions, bonds, quads = _molecule(BUTYL_BENZOATE)
    targets = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(quads))
    torsions = torsion.Torsions.of(len(positions), bonds, quads)
    moved = torsion.set_angles(positions, torsions, targets)
    difference = torsion.wrap(_rdkit_angles(mol, moved, quads) - targets)
    np.testing.assert_allclose(difference, 0, atol=1e-8)
    pairs = {tuple(p) for p in bonds} | {
        (a, c) for a, b in bonds for b2, c in [*bonds, *bonds[:, ::-1]] if b2 == b and c != a
    }
    first, second = np.array(sorted(pairs)).T
    before = np.linalg.norm(positions[first] - positions[second], axis=1)
    np.testing.assert_allclose(np.linalg.norm(moved[first] - moved[second], axis=1), before, atol=1e-9)


def test_only_the_smaller_side_moves():
    _, positions, bonds, quads = _molecule(BUTYL_BENZOATE)
    torsions = torsion.Torsions.of(len(positions), bonds, quads)
    for k, moving in enumerate(torsions.moving):
        assert 2 * (len(moving) + 1) <= len(positions)
        change = np.zeros(len(quads))
        change[k] = 0.7
        moved = torsion.turn(positions, torsions, change)
        still = np.setdiff1d(np.arange(len(positions)), moving)
        np.testing.assert_array_equal(moved[still], positions[still])
        assert np.abs(moved[moving] - positions[moving]).max() > 0.1


def test_a_stack_of_conformations_is_set_at_once():
    _, positions, bonds, quads = _molecule("CCCO")
    torsions = torsion.Torsions.of(len(positions), bonds, quads)
    targets = np.random.default_rng(2).uniform(-3, 3, (4, len(quads)))
    stack = torsion.set_angles(np.broadcast_to(positions, (4, *positions.shape)), torsions, targets)
    for k in range(4):
        np.testing.assert_allclose(stack[k], torsion.set_angles(positions, torsions, targets[k]), atol=1e-12)


def test_derivatives_agree_with_finite_differences():
    _, positions, bonds, quads = _molecule(BUTYL_BENZOATE)
    torsions = torsion.Torsions.of(len(positions), bonds, quads)
    analytic = torsion.derivatives(positions, torsions)
    for k in range(len(quads)):
        step = np.zeros(len(quads))
        step[k] = 1e-6
        numeric = (torsion.turn(positions, torsions, step) - torsion.turn(positions, torsions, -step)) / 2e-6
        np.testing.assert_allclose(analytic[k], numeric, atol=1e-7)


def test_a_ring_bond_is_refused():
    with pytest.raises(ValueError, match="in a ring"):
        torsion.Torsions.of(4, np.array([[0, 1], [1, 2], [2, 3], [3, 0]]), np.array([[0, 1, 2, 3]]))


@given(st.floats(-50, 50))
def test_wrapped_angles_are_the_same_direction_in_the_half_open_interval(angle):
    wrapped = torsion.wrap(np.array(angle))
    assert -np.pi < wrapped <= np.pi
    np.testing.assert_allclose([np.cos(wrapped), np.sin(wrapped)], [np.cos(angle), np.sin(angle)], atol=1e-9)


def test_a_molecule_without_torsions_is_left_alone():
    positions = np.eye(3)
    torsions = torsion.Torsions.of(3, np.array([[0, 1], [1, 2]]), np.zeros((0, 4), int))
    assert len(torsions) == 0
    np.testing.assert_array_equal(torsion.set_angles(positions, torsions, np.zeros(0)), positions)
