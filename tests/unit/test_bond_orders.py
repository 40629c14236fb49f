import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from promof_hpc.chem.blocks import DecomposeReason
from promof_hpc.chem.bond_orders import Fragment, Lewis, perceive, skeleton
from promof_hpc.chem.linkers import LinkerMolecule, linker_molecule, rotatable_bonds
from promof_hpc.errors import Refused

# canonical SMILES (RDKit) of the linker as chemists write it; the oracle is RDKit's own reading of that text
LINKERS = {
    "terephthalate": "O=C([O-])c1ccc(C(=O)[O-])cc1",
    "nitroisophthalate": "O=C([O-])c1cc(C(=O)[O-])cc([N+](=O)[O-])c1",
    "methylpyridinium": "C[n+]1ccccc1",
    "pyridinium": "c1cc[nH+]cc1",
    "viologen dicarboxylate": "O=C([O-])C[n+]1ccc(-c2cc[n+](CC(=O)[O-])cc2)cc1",
    "bipyridine dioxide": "[O-][n+]1ccc(-c2cc[n+]([O-])cc2)cc1",
    "pyrazine dioxide": "[O-][n+]1cc[n+]([O-])cc1",
    "tetrazolate": "c1nnn[n-]1",
    "carboxytetrazolate": "O=C([O-])c1nnn[n-]1",
    "imidazolate": "c1c[n-]cn1",
    "methylimidazolate": "Cc1ncc[n-]1",
    "nitroimidazolate": "O=[N+]([O-])c1ncc[n-]1",
    "imidazole acid": "O=C([O-])c1nc[n-]c1C(=O)O",
    "triazolate": "c1nc[n-]n1",
    "benzotriazolate": "c1ccc2[n-]nnc2c1",
    "pyrazolate": "c1cn[n-]c1",
    "carbazolate": "c1ccc2c(c1)[n-]c1ccccc12",
    "organic azide": "O=C([O-])c1ccc(N=[N+]=[N-])cc1",
    "dicyanamide": "N#C[N-]C#N",
    "cyanide": "[C-]#N",
    "thiocyanate": "N#C[S-]",
    "sulfonate": "O=S(=O)([O-])c1ccccc1",
    "phosphonate": "O=P([O-])([O-])c1ccccc1",
    "hydrogen phosphonate": "O=P([O-])(O)c1ccccc1",
    "squarate": "O=c1c([O-])c([O-])c1=O",
    "oxalate": "O=C([O-])C(=O)[O-]",
    "carbonate": "O=C([O-])[O-]",
    "formate": "O=C[O-]",
    "dithiocarbamate": "CN(C)C(=S)[S-]",
    "acetylacetonate": "CC(=O)C=C(C)[O-]",
    "pyridone": "O=c1cc[nH]cc1",
    "azobenzene dicarboxylate": "O=C([O-])c1ccc(N=Nc2ccc(C(=O)[O-])cc2)cc1",
    "dimethylformamide": "CN(C)C=O",
    "aminoterephthalate": "Nc1cc(C(=O)[O-])ccc1C(=O)[O-]",
}


def embedded(smiles: str, seed: int = 0, noise_ang: float = 0.0) -> Fragment:
    """The fragment without bond orders, its geometry from ETKDG and MMFF, its atoms in random order."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol)
    rng = np.random.default_rng(seed)
    order = rng.permutation(mol.GetNumAtoms())
    place = np.argsort(order)
    positions = mol.GetConformer().GetPositions()
    pairs = tuple((int(place[b.GetBeginAtomIdx()]), int(place[b.GetEndAtomIdx()])) for b in mol.GetBonds())
    lengths = [np.linalg.norm(positions[b.GetBeginAtomIdx()] - positions[b.GetEndAtomIdx()]) for b in mol.GetBonds()]
    atoms = [mol.GetAtomWithIdx(int(k)) for k in order]
    return Fragment(
        numbers=np.array([a.GetAtomicNum() for a in atoms]),
        pairs=pairs,
        lengths=np.array(lengths) + noise_ang * rng.normal(size=len(lengths)),
        donors=np.array([a.GetFormalCharge() < 0 for a in atoms]),
    )


def molecule(fragment: Fragment) -> LinkerMolecule:
    return linker_molecule("", tuple(fragment.numbers.tolist()), fragment.pairs, perceive(fragment))


@pytest.mark.parametrize("name", LINKERS)
def test_linker_gets_its_charge_and_canonical_smiles(name: str) -> None:
    wanted = Chem.MolFromSmiles(LINKERS[name])
    for seed in range(2):
        found = molecule(embedded(LINKERS[name], seed))
        assert found.key == Chem.MolToSmiles(wanted, isomericSmiles=False)
        assert found.charge == Chem.GetFormalCharge(wanted)


@pytest.mark.parametrize("name", ["tetrazolate", "triazolate", "nitroimidazolate", "squarate", "acetylacetonate"])
def test_key_does_not_depend_on_which_atoms_bind_nor_on_small_errors_of_length(name: str) -> None:
    keys = set()
    for seed in range(6):
        fragment = embedded(LINKERS[name], seed, noise_ang=0.01)
        donors = np.isin(fragment.numbers, (7, 8)) & (np.random.default_rng(seed).random(len(fragment.numbers)) < 0.7)
        donors |= fragment.donors
        keys.add(molecule(Fragment(fragment.numbers, fragment.pairs, fragment.lengths, donors)).key)
    assert len(keys) == 1


def test_porphyrin_without_metal_is_a_dianion_and_with_two_hydrogens_neutral() -> None:
    assert molecule(embedded("c1cc2cc3ccc(cc4ccc(cc5ccc(cc1n2)[n-]5)n4)[n-]3")).charge == -2
    assert molecule(embedded("c1cc2cc3ccc([nH]3)cc3ccc(cc4ccc(cc1n2)[nH]4)n3")).charge == 0


@pytest.mark.parametrize(("co_ang", "charge"), [(1.35, -2), (1.22, 0)])
def test_bond_lengths_tell_hydroquinone_from_quinone(co_ang: float, charge: int) -> None:
    fragment = embedded("[O-]c1ccc([O-])cc1")
    ends = [{int(fragment.numbers[a]), int(fragment.numbers[b])} for a, b in fragment.pairs]
    lengths = np.array([co_ang if e == {6, 8} else 1.39 if e == {6} else 1.08 for e in ends])
    if charge == 0:  # quinoid: the two C-C bonds beside no C-O are short, the others long
        at_oxygen = {k for (a, b), e in zip(fragment.pairs, ends, strict=True) if e == {6, 8} for k in (a, b)}
        inner = [
            e == {6} and a not in at_oxygen and b not in at_oxygen
            for (a, b), e in zip(fragment.pairs, ends, strict=True)
        ]
        lengths = np.where([e == {6} for e in ends], np.where(inner, 1.34, 1.48), lengths)
    assert molecule(Fragment(fragment.numbers, fragment.pairs, lengths, fragment.donors)).charge == charge


def without_hydrogens(fragment: Fragment, count: int) -> Fragment:
    hydrogens = np.nonzero(fragment.numbers == 1)[0][:count]
    keep = np.setdiff1d(np.arange(len(fragment.numbers)), hydrogens)
    new = {int(old): k for k, old in enumerate(keep)}
    rows = [k for k, (a, b) in enumerate(fragment.pairs) if a in new and b in new]
    pairs = tuple((new[fragment.pairs[k][0]], new[fragment.pairs[k][1]]) for k in rows)
    return Fragment(fragment.numbers[keep], pairs, fragment.lengths[rows], fragment.donors[keep])


@pytest.mark.parametrize("count", [1, 4])
def test_missing_hydrogen_is_refused(count: int) -> None:
    with pytest.raises(Refused) as refusal:
        molecule(without_hydrogens(embedded(LINKERS["terephthalate"]), count))
    assert refusal.value.reason in (DecomposeReason.RADICAL, DecomposeReason.ODD_CHEMISTRY)
    assert "hydrogen missing" in refusal.value.detail


@pytest.mark.parametrize(
    ("smiles", "name"),
    [
        ("[C-]#[C-]", "bare acetylide"),
        ("C1OO1", "dioxirane"),
        ("C[N-]C", "amide ion"),
        ("CC([O-])[O-]", "geminal diolate"),
        ("C12C3C1C23", "three-membered rings"),
        ("C=C=C", "allene"),
        ("CP(C)(C)=C", "phosphorus-carbon"),
    ],
)
def test_groups_that_only_faulty_files_have_are_refused(smiles: str, name: str) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    numbers = tuple(a.GetAtomicNum() for a in mol.GetAtoms())
    pairs = tuple((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds())
    orders = tuple(int(b.GetBondTypeAsDouble()) for b in mol.GetBonds())
    charges = tuple(a.GetFormalCharge() for a in mol.GetAtoms())
    with pytest.raises(Refused, match=name) as refusal:
        linker_molecule(smiles, numbers, pairs, Lewis(orders, charges))
    assert refusal.value.reason is DecomposeReason.ODD_CHEMISTRY


def test_carbon_monoxide_is_written_with_a_triple_bond() -> None:
    carbonyl = Fragment(np.array([8, 6]), ((0, 1),), np.array([1.14]), np.array([False, True]))
    assert molecule(carbonyl).key == "[C-]#[O+]"


def test_too_many_neighbours_are_refused() -> None:
    methane_and_one = Fragment(
        np.array([6, 1, 1, 1, 1, 1]), tuple((0, k) for k in range(1, 6)), np.full(5, 1.1), np.zeros(6, bool)
    )
    with pytest.raises(Refused) as refusal:
        perceive(methane_and_one)
    assert refusal.value.reason is DecomposeReason.VALENCE


def test_element_without_a_rule_is_refused() -> None:
    with pytest.raises(Refused) as refusal:
        perceive(Fragment(np.array([6, 2]), ((0, 1),), np.array([1.5]), np.zeros(2, bool)))
    assert refusal.value.reason is DecomposeReason.UNKNOWN_ELEMENT


def test_skeleton_does_not_depend_on_the_numbering() -> None:
    texts = set()
    for seed in range(5):
        fragment = embedded(LINKERS["nitroisophthalate"], seed)
        texts.add(skeleton(fragment.numbers.tolist(), fragment.pairs)[0])
    assert len(texts) == 1


def test_orders_and_charges_balance_every_valence() -> None:
    fragment = embedded(LINKERS["nitroisophthalate"])
    lewis: Lewis = perceive(fragment)
    bonded = np.zeros(len(fragment.numbers), int)
    for (a, b), order in zip(fragment.pairs, lewis.orders, strict=True):
        bonded[[a, b]] += order
    neutral = np.array([{1: 1, 6: 4, 7: 3, 8: 2}[int(z)] for z in fragment.numbers])
    assert (bonded == neutral + np.array(lewis.charges)).all()


def test_rotatable_bonds_have_a_heavy_atom_or_the_hydrogen_of_a_donor_beyond_both_ends() -> None:
    # biphenyl-4,4'-dicarboxylate turns about three bonds and its hydroxyl; methyl and ring bonds do not count
    mol = Chem.AddHs(Chem.MolFromSmiles("Cc1cc(C(=O)[O-])ccc1-c1ccc(C(=O)[O-])c(O)c1"))
    found = rotatable_bonds(mol)
    assert len(found) == 4
    assert all(mol.GetBondBetweenAtoms(int(q[k]), int(q[k + 1])) is not None for q in found for k in range(3))
