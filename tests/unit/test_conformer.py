import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from scipy.spatial.transform import Rotation

from promof_hpc.chem.conformer import ConformerReason, embed, match, stereo_smiles
from promof_hpc.chem.numbering import Graph, numberings
from promof_hpc.errors import Refused

ROTATABLE = Chem.MolFromSmarts("[!$([D1])]-!@[!$([D1])]")


def _quads(mol: Chem.Mol) -> np.ndarray:
    """A quadruple for every rotatable bond."""
    quads = []
    for b, c in mol.GetSubstructMatches(ROTATABLE):
        first = next(n.GetIdx() for n in mol.GetAtomWithIdx(b).GetNeighbors() if n.GetIdx() != c)
        last = next(n.GetIdx() for n in mol.GetAtomWithIdx(c).GetNeighbors() if n.GetIdx() != b)
        quads.append((first, b, c, last))
    return np.array(quads, int).reshape(-1, 4)


def _disguised(smiles: str, seed: int) -> tuple[Chem.Mol, np.ndarray, np.ndarray]:
    """A conformer as a crystal would hold it: another numbering, other torsions, turned and moved."""
    generator = np.random.default_rng(seed)
    found = embed(smiles, seed=1000 + seed)
    quads = _quads(found.mol)
    conformer = Chem.Conformer(found.mol.GetNumAtoms())
    conformer.SetPositions(found.positions[0])
    bent = Chem.Mol(found.mol)
    bent.RemoveAllConformers()
    bent.AddConformer(conformer)
    for quad in quads.tolist():
        rdMolTransforms.SetDihedralDeg(bent.GetConformer(), *quad, float(generator.uniform(-180, 180)))
    order = generator.permutation(bent.GetNumAtoms())
    renumbered = Chem.RenumberAtoms(bent, order.tolist())
    new = np.argsort(order)
    positions = renumbered.GetConformer().GetPositions() @ Rotation.random(rng=generator).as_matrix().T + 7.0
    return renumbered, positions, new[quads]


@pytest.mark.parametrize(
    ("smiles", "limit_ang"),
    [
        ("O=C([O-])c1ccc(C(=O)[O-])cc1", 0.02),
        ("Cc1ncc[n-]1", 0.02),
        ("[O-]C=O", 0.02),
        ("[C-]#N", 0.02),
        ("c1cc(CCc2ccncc2)ccn1", 0.1),
        ("O=S(=O)([O-])c1ccc(-c2ccc(S(=O)(=O)[O-])cc2)cc1", 0.1),
        ("CC(C)(C)c1cc(C(=O)[O-])cc(C(=O)[O-])c1", 0.1),
        ("FC(F)(F)C(c1ccc(C(=O)[O-])cc1)(c1ccc(C(=O)[O-])cc1)C(F)(F)F", 0.3),
    ],
)
def test_a_linker_is_found_again_in_any_numbering_torsion_state_and_place(smiles, limit_ang):
    mol, positions, quads = _disguised(smiles, seed=3)
    found = match(mol, positions, quads, seed=1)
    heavy = np.array([a.GetAtomicNum() > 1 for a in mol.GetAtoms()])
    distance = np.linalg.norm(found.fit.apply(found.local) - positions, axis=1)[heavy]
    assert found.rmsd_ang == pytest.approx(np.sqrt((distance**2).mean()), abs=1e-9)
    assert found.rmsd_ang < limit_ang
    np.testing.assert_allclose(found.local.mean(0), 0, atol=1e-9)


def test_a_matched_conformer_keeps_its_own_bond_lengths():
    mol, positions, quads = _disguised("c1cc(CCc2ccncc2)ccn1", seed=4)
    stretched = positions * 1.05
    found = match(mol, stretched, quads, seed=1)
    ends = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()])
    own, crystal = (np.linalg.norm(x[ends[:, 0]] - x[ends[:, 1]], axis=1) for x in (found.local, stretched))
    assert np.all(own < crystal * 0.99)
    assert found.rmsd_ang > 0.05


def test_the_same_call_gives_the_same_coordinates_and_another_seed_gives_others():
    smiles = "O=C([O-])CCCCC(=O)[O-]"
    np.testing.assert_array_equal(embed(smiles, 5).positions, embed(smiles, 5).positions)
    assert np.abs(embed(smiles, 5).positions - embed(smiles, 6).positions).max() > 0.1
    mol, positions, quads = _disguised(smiles, seed=2)
    np.testing.assert_array_equal(match(mol, positions, quads, 1).local, match(mol, positions, quads, 1).local)


def test_several_conformers_are_stacked_in_one_numbering():
    found = embed("O=C([O-])CCC(=O)[O-]", seed=5, count=3)
    assert found.positions.shape == (3, found.mol.GetNumAtoms(), 3)
    np.testing.assert_allclose(found.positions.mean(1), 0, atol=1e-9)


@pytest.mark.parametrize("smiles", ["C[C@H](N)C(=O)[O-]", "C[C@@H](N)C(=O)[O-]"])
def test_the_hand_of_the_crystal_is_kept(smiles):
    mol, positions, quads = _disguised(smiles, seed=6)
    assert stereo_smiles(mol, positions) == Chem.CanonSmiles(smiles)
    assert match(mol, positions, quads, seed=1).rmsd_ang < 0.05


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [("C1CC", ConformerReason.NOT_A_MOLECULE), ("c1ccccc1(C)(C)C", ConformerReason.NOT_A_MOLECULE)],
)
def test_what_is_no_molecule_is_refused_with_its_reason(smiles, reason):
    with pytest.raises(Refused) as refusal:
        embed(smiles, 1)
    assert refusal.value.reason is reason
    assert smiles in refusal.value.detail


def test_numberings_are_the_symmetries_of_the_graph():
    benzene = Graph.of(Chem.AddHs(Chem.MolFromSmiles("c1ccccc1")))
    orders = numberings(benzene, benzene)
    assert len({tuple(o) for o in orders}) == 12
    assert all(sorted(o) == list(range(12)) for o in orders)
    # the two O of a carboxylate are settled by coordinates, so only the flips of the ring are left
    terephthalate = Graph.of(Chem.AddHs(Chem.MolFromSmiles("O=C([O-])c1ccc(C(=O)[O-])cc1")))
    assert len(numberings(terephthalate, terephthalate)) == 4


def test_other_molecules_have_no_numbering():
    first = Graph.of(Chem.AddHs(Chem.MolFromSmiles("CCO")))
    assert numberings(first, Graph.of(Chem.AddHs(Chem.MolFromSmiles("COC")))) == []
    assert numberings(first, Graph.of(Chem.AddHs(Chem.MolFromSmiles("CCN")))) == []
