from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from promof_hpc.assembly.linker_library import LinkerLibrary
from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.conformer import embed
from promof_hpc.chem.donors import REACHES, DonorGraph, donor_graph, patterns, smiles_molecule, sorted_split
from promof_hpc.store.shard import CorruptShard
from tests.prepared import prepared
from tests.training_set import shipped_training

TEREPHTHALATE = "O=C([O-])c1ccc(C(=O)[O-])cc1"
TRIMESATE = "O=C([O-])c1cc(C(=O)[O-])cc(C(=O)[O-])c1"
METHYLIMIDAZOLATE = "Cc1ncc[n-]1"
PAIR = (8, 8)


@lru_cache
def known() -> LinkerLibrary:
    """HKUST-1, MOF-5 and ZIF-8."""
    return LinkerLibrary.of([prepared(name) for name in ("FIQCEN", "EDUSIF", "OFERUN")])


@lru_cache
def shipped() -> LinkerLibrary:
    return LinkerLibrary.of(shipped_training())


def _renumbered(mof: PreparedMof, seed: int) -> PreparedMof:
    """The MOF with the atoms of every linker in another order."""
    generator = np.random.default_rng(seed)
    found = mof.decomposition
    blocks, new_place = [], []
    for block in found.blocks:
        order = generator.permutation(len(block.numbers)) if block.mol else np.arange(len(block.numbers))
        new_place.append(np.argsort(order))
        mol = Chem.RenumberAtoms(block.mol, order.tolist()) if block.mol else None
        blocks.append(replace(block, mol=mol, numbers=block.numbers[order], local=block.local[order]))
    contacts = tuple(replace(c, donors=new_place[c.linker][c.donors].astype(np.int32)) for c in found.contacts)
    return replace(mof, decomposition=replace(found, blocks=tuple(blocks), contacts=contacts))


def test_carboxylates_of_known_mofs_bind_by_both_oxygens_of_one_carbon():
    for key, carboxylates in ((TRIMESATE, 3), (TEREPHTHALATE, 2)):
        ((split, count),) = known().linkers[key]
        mol = smiles_molecule(key)
        assert count == 1
        assert len(split) == carboxylates
        for donors in split:
            carbons = [{n.GetIdx() for n in mol.GetAtomWithIdx(d).GetNeighbors()} for d in donors]
            assert [mol.GetAtomWithIdx(d).GetSymbol() for d in donors] == ["O", "O"]
            assert carbons[0] == carbons[1]


def test_an_imidazolate_binds_by_each_nitrogen_alone():
    ((split, _),) = known().linkers[METHYLIMIDAZOLATE]
    numbers = donor_graph(METHYLIMIDAZOLATE).numbers
    assert patterns(split, numbers) == ((7,), (7,))
    assert split[0] != split[1]


def test_donors_are_numbered_as_in_the_conformer_of_the_smiles():
    for key in (TRIMESATE, TEREPHTHALATE, METHYLIMIDAZOLATE):
        written, built = smiles_molecule(key), embed(key, 0).mol
        assert [a.GetAtomicNum() for a in written.GetAtoms()] == [a.GetAtomicNum() for a in built.GetAtoms()]
        bonds = [sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()) for mol in (written, built)]
        assert bonds[0] == bonds[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_library_does_not_depend_on_how_crystals_number_their_atoms(seed):
    mofs = list(shipped_training()[seed::12])
    before, after = (LinkerLibrary.of(m) for m in (mofs, [_renumbered(m, seed) for m in mofs]))
    assert before.linkers.keys() == after.linkers.keys()
    for key in before.linkers:
        graph = donor_graph(key)
        ways = [Counter({graph.split_key(s): n for s, n in lib.linkers[key]}) for lib in (before, after)]
        assert ways[0] == ways[1]
    assert {e: sorted(n for _, n in w) for e, w in before.environments.items()} == {
        e: sorted(n for _, n in w) for e, w in after.environments.items()
    }


SYMMETRIC = [TEREPHTHALATE, TRIMESATE, METHYLIMIDAZOLATE, "c1cnccn1", "C1N2CN3CN1CN(C2)C3", "O=P([O-])([O-])CC"]


def _automorphisms(key: str) -> list[tuple[int, ...]]:
    """All symmetries of the heavy atoms with their H counts, by RDKit's subgraph search."""
    graph = DonorGraph(smiles_molecule(key))
    plain = Chem.RWMol()
    for k in graph.heavy:
        atom = Chem.Atom(graph.numbers[k])
        atom.SetNoImplicit(True)
        atom.SetIsotope(1 + graph.hydrogens[k])
        plain.AddAtom(atom)
    for a in graph.heavy:
        for b in graph.neighbours[a]:
            if a < b:
                plain.AddBond(a, b, Chem.BondType.SINGLE)
    mol = plain.GetMol()
    return list(mol.GetSubstructMatches(mol, uniquify=False, maxMatches=100_000))


@given(st.sampled_from(SYMMETRIC), st.randoms(use_true_random=False))
def test_splits_share_a_key_exactly_if_a_symmetry_of_the_linker_exchanges_them(key, random):
    graph = donor_graph(key)

    def some() -> tuple[tuple[int, ...], ...]:
        return sorted_split(random.sample(graph.donors, random.randint(1, 2)) for _ in range(random.randint(1, 3)))

    first = some()
    turn = random.choice(_automorphisms(key))
    moved = sorted_split([turn[k] for k in group] for group in first)
    assert graph.split_key(first) == graph.split_key(moved)
    other = some()
    images = {sorted_split([t[k] for k in group] for group in first) for t in _automorphisms(key)}
    assert (graph.split_key(first) == graph.split_key(other)) == (other in images)


def test_a_linker_never_seen_is_bound_like_its_functional_groups():
    naphthalene = "O=C([O-])c1ccc2cc(C(=O)[O-])ccc2c1"
    best = known().options(naphthalene)[0]
    assert best.offers == (PAIR, PAIR)
    assert naphthalene not in known().linkers
    triazole = known().options("O=C([O-])c1ccc(-n2ccnc2)cc1")
    assert all(len(contact) <= 2 for o in triazole for contact in o.split)


def test_atoms_like_none_that_was_ever_bound_stay_free():
    nitro = "O=C([O-])c1ccc(C(=O)[O-])c([N+](=O)[O-])c1"
    mol = smiles_molecule(nitro)
    carboxylates = {k for match in mol.GetSubstructMatches(Chem.MolFromSmarts("C(=O)[O-]")) for k in match}
    options = known().options(nitro)
    assert options
    assert {k for o in options for contact in o.split for k in contact} <= carboxylates


@pytest.mark.parametrize("key", ["CCO", "C", "c1ccccc1", "C[N+](C)(C)C", "not a smiles", "", "[Og]", "[C-4]"])
def test_what_has_no_donor_that_training_knows_has_no_options(key):
    assert known().options(key) == ()


def test_chances_are_chances_and_sorted():
    for key in [*list(shipped().linkers)[::5], "O=C([O-])c1ccc(C(=O)[O-])c(F)c1"]:
        options = shipped().options(key)
        chances = np.exp([o.log_weight for o in options])
        assert (np.diff(chances) <= 1e-12).all()
        assert chances.sum() <= 1.0 + 1e-9
        assert len({o.offers for o in options}) == len(options)
        assert all(o.offers == patterns(o.split, donor_graph(key).numbers) for o in options)


def test_every_training_linker_can_do_what_it_does_in_its_crystal():
    for mof in shipped_training()[::3]:
        found = mof.decomposition
        for k, block in enumerate(found.blocks):
            if block.kind is Kind.ORGANIC:
                offered = sorted(tuple(sorted(c.elements.tolist())) for c in found.contacts if c.linker == k)
                assert tuple(offered) in {o.offers for o in shipped().options(block.key)}


@pytest.mark.parametrize("key", [TEREPHTHALATE, "c1ccc(-c2ccccn2)nc1", "O=C([O-])c1ccccn1", "c1nn[n-]n1"])
@pytest.mark.parametrize("reach", REACHES)
def test_groups_divide_the_donors_by_distance(key, reach):
    graph = donor_graph(key)
    mol = smiles_molecule(key)
    steps = Chem.GetDistanceMatrix(mol)
    groups = graph.groups(reach)
    assert sorted(k for g in groups for k in g.atoms) == sorted(graph.donors)
    for a, b in product(groups, repeat=2):
        nearest = min(steps[i, j] for i in a.atoms for j in b.atoms if a is not b or i != j or len(a.atoms) == 1)
        assert nearest > reach if a is not b else nearest <= reach


def test_the_library_comes_back_from_its_file(tmp_path):
    shipped().write(tmp_path / "linkers.h5", {})
    back = LinkerLibrary.read(tmp_path / "linkers.h5")
    assert back.linkers == shipped().linkers
    assert back.environments == shipped().environments
    assert back.options(TEREPHTHALATE) == shipped().options(TEREPHTHALATE)


def test_a_library_without_linkers_can_be_written_and_knows_nothing(tmp_path):
    LinkerLibrary.of([]).write(tmp_path / "linkers.h5", {})
    assert LinkerLibrary.read(tmp_path / "linkers.h5").options(TEREPHTHALATE) == ()


def test_another_file_is_refused_as_linker_library(tmp_path):
    NodeLibrary(()).write(tmp_path / "nodes.h5", {})
    with pytest.raises(CorruptShard, match="promof prep"):
        LinkerLibrary.read(tmp_path / "nodes.h5")
