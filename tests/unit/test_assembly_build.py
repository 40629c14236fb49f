import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from scipy.spatial.transform import Rotation

from promof_hpc.assembly.build import Part, assemble
from promof_hpc.assembly.prepared import crystal_parts
from promof_hpc.chem.conformer import embed
from promof_hpc.geometry.torsion import Torsions
from tests.prepared import prepared


@pytest.mark.parametrize("name", ["EDUSIF", "FIQCEN", "RUBTAK01_SL", "OFERUN", "NUZSAD", "FIPWUY"])
def test_a_crystal_comes_back_from_its_own_blocks_torsions_and_poses(name):
    found = prepared(name).decomposition
    built = assemble(crystal_parts(found), found.structure.cell)
    atoms = np.concatenate([b.atoms for b in found.blocks])
    assert sorted(atoms) == list(range(len(found.structure)))
    np.testing.assert_array_equal(built.numbers, found.structure.numbers[atoms])
    difference = np.linalg.solve(built.cell.T, (built.positions - found.structure.positions[atoms]).T).T
    np.testing.assert_allclose((difference - np.round(difference)) @ built.cell, 0, atol=1e-10)


def _butane() -> tuple[Part, Torsions]:
    mol = embed("CCCC", seed=1).mol
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
    torsions = Torsions.of(mol.GetNumAtoms(), bonds, np.array([[0, 1, 2, 3]]))
    numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    local = mol.GetConformer().GetPositions()
    return Part(numbers, local, np.eye(3), np.zeros(3), torsions, None), torsions


def test_angles_are_set_before_the_block_is_turned_about_its_centroid():
    part, torsions = _butane()
    turn, place = Rotation.from_rotvec([0.3, -1.0, 0.4]).as_matrix(), np.array([4.0, 5.0, 6.0])
    angles = np.array([1.1])
    built = assemble([Part(part.numbers, part.local, turn, place, torsions, angles)], np.eye(3) * 20)
    np.testing.assert_allclose(built.positions.mean(0), place, atol=1e-10)
    conformer = Chem.Conformer(len(built))
    conformer.SetPositions(built.positions)
    assert rdMolTransforms.GetDihedralRad(conformer, 0, 1, 2, 3) == pytest.approx(1.1)


def test_without_angles_the_block_is_moved_as_it_is():
    part, _ = _butane()
    built = assemble([part], np.eye(3) * 20)
    pairs = np.linalg.norm(built.positions[:, None] - built.positions[None], axis=-1)
    np.testing.assert_allclose(pairs, np.linalg.norm(part.local[:, None] - part.local[None], axis=-1), atol=1e-12)


def test_no_blocks_and_ragged_blocks_are_refused():
    part, _ = _butane()
    with pytest.raises(ValueError, match="at least one block"):
        assemble([], np.eye(3))
    with pytest.raises(ValueError, match="block 1 has 3 atoms"):
        assemble([part, Part(np.array([6, 1, 1]), part.local, np.eye(3), np.zeros(3))], np.eye(3))
