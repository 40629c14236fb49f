import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from promof_hpc.chem.blocks import DecomposeReason
from promof_hpc.chem.fingerprint import distance, distances, fingerprint, structure_fingerprint
from promof_hpc.chem.sequence import ComponentSet, SequenceReason, component_set
from promof_hpc.errors import Refused
from promof_hpc.structure import Structure
from tests.prepared import prepared

TEREPHTHALATE, FUMARATE = "O=C([O-])c1ccc(C(=O)[O-])cc1", "O=C([O-])C=CC(=O)[O-]"


def test_distances_of_small_sets_are_those_worked_out_by_hand():
    a, b = frozenset({1, 2, 3, -30}), frozenset({2, 3, 4, -29})
    assert distance(a, b) == pytest.approx(1 - 2 / 6)
    assert distance(a, a) == 0.0
    assert distance(a, frozenset()) == 1.0
    assert distance(frozenset(), frozenset()) == 0.0


@given(st.lists(st.frozensets(st.integers(-5, 5)), min_size=1, max_size=6))
def test_all_distances_at_once_are_those_of_each_pair(fingerprints):
    expected = [[distance(a, b) for b in fingerprints] for a in fingerprints]
    np.testing.assert_allclose(distances(fingerprints), expected, atol=1e-12)


def test_no_fingerprints_have_no_distances():
    assert distances([]).shape == (0, 0)


def test_linkers_differ_as_rdkit_says():
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    bits = [generator.GetSparseFingerprint(Chem.MolFromSmiles(s)) for s in (TEREPHTHALATE, FUMARATE)]
    mine = [frozenset(b for b in fingerprint(ComponentSet((), (s,)))) for s in (TEREPHTHALATE, FUMARATE)]
    assert distance(*mine) == pytest.approx(1 - DataStructs.TanimotoSimilarity(*bits), abs=1e-12)
    assert 0.3 < distance(*mine) < 0.9


def test_metals_count_once_by_element_and_other_atoms_of_a_node_do_not():
    zinc, oxo, copper = (
        fingerprint(ComponentSet((node,), (TEREPHTHALATE,))) for node in ("[Zn]", "[Zn][Zn][Zn][Zn][O]", "[Cu][Cu]")
    )
    assert zinc == oxo
    assert zinc - copper == {-30}
    assert copper - zinc == {-29}


def test_copies_and_their_order_do_not_matter():
    once = fingerprint(ComponentSet(("[Zn]", "[Cu][Cu]"), (TEREPHTHALATE, FUMARATE)))
    assert once == fingerprint(ComponentSet(("[Cu][Cu]", "[Zn]", "[Zn]"), (FUMARATE, TEREPHTHALATE, FUMARATE)))


def test_a_crystal_has_the_fingerprint_of_its_component_set():
    mof = prepared("FIQCEN").decomposition
    assert structure_fingerprint(mof.structure) == fingerprint(component_set(mof))


def test_what_has_no_component_set_is_refused():
    helium = Structure(np.array([2], np.int32), np.zeros((1, 3)), np.eye(3) * 5)
    with pytest.raises(Refused) as refusal:
        structure_fingerprint(helium)
    assert refusal.value.reason is DecomposeReason.NO_METAL


@pytest.mark.parametrize(
    ("components", "reason"),
    [
        (ComponentSet(("[Zn]",), ("(((",)), SequenceReason.UNREADABLE_LINKER),
        (ComponentSet(("[Zn]",), ("",)), SequenceReason.UNREADABLE_LINKER),
        (ComponentSet(("[Xx]",), (FUMARATE,)), SequenceReason.UNKNOWN_NODE),
        (ComponentSet(("zinc",), (FUMARATE,)), SequenceReason.UNKNOWN_NODE),
    ],
)
def test_keys_that_cannot_be_read_are_refused(components, reason):
    with pytest.raises(Refused) as refusal:
        fingerprint(components)
    assert refusal.value.reason is reason
