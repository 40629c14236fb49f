from dataclasses import replace

import h5py
import numpy as np
import pytest
from rdkit import Chem

from promof_hpc.assembly.build import assemble
from promof_hpc.assembly.prepared import crystal_parts, matched_parts
from promof_hpc.assembly.prepared_shard import read_prepared, write_prepared
from promof_hpc.store.shard import CorruptShard, Shard, write_shard
from tests.prepared import prepared

NAMES = ("EDUSIF", "FIQCEN", "FIFPAM", "NUZSAD")


@pytest.fixture(scope="module")
def mofs():
    return [prepared(name, conformers=True) for name in NAMES]


def test_mofs_come_back_from_a_shard_as_they_were(mofs, tmp_path):
    assert write_prepared(tmp_path / "s.h5", mofs, {"source": "test"})
    for before, after in zip(mofs, read_prepared(tmp_path / "s.h5"), strict=True):
        assert (after.name, after.sequence, after.net_key, after.signature) == (
            before.name,
            before.sequence,
            before.net_key,
            before.signature,
        )
        assert after.properties == before.properties
        was, now = before.decomposition, after.decomposition
        assert now.edges == was.edges
        assert (now.dimensionality, now.components, now.split_metals) == (3, was.components, was.split_metals)
        np.testing.assert_allclose(now.structure.positions, was.structure.positions, atol=1e-10)
        np.testing.assert_array_equal(now.structure.numbers, was.structure.numbers)
        for a, b in zip(was.contacts, now.contacts, strict=True):
            assert (a.node, a.linker) == (b.node, b.linker)
            for name in ("shift", "donors", "elements"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            for name in ("sites", "behind", "linker_behind"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-5)


def test_linkers_come_back_as_the_same_molecules(mofs, tmp_path):
    write_prepared(tmp_path / "s.h5", mofs, {})
    for before, after in zip(mofs, read_prepared(tmp_path / "s.h5"), strict=True):
        for a, b in zip(before.decomposition.blocks, after.decomposition.blocks, strict=True):
            assert a.key == b.key
            assert (a.mol is None) == (b.mol is None)
            if b.mol is not None:
                assert Chem.MolToSmiles(Chem.RemoveHs(b.mol), isomericSmiles=False) == a.key
                assert Chem.GetFormalCharge(b.mol) == a.charge
                np.testing.assert_array_equal(a.torsions, b.torsions)
    assert all(b.mol is None for m in read_prepared(tmp_path / "s.h5", molecules=False) for b in m.decomposition.blocks)


def test_crystals_are_assembled_from_a_shard_within_1e_10_ang(mofs, tmp_path):
    write_prepared(tmp_path / "s.h5", mofs, {})
    for before, after in zip(mofs, read_prepared(tmp_path / "s.h5"), strict=True):
        built = assemble(crystal_parts(after.decomposition), after.decomposition.structure.cell)
        expected = np.concatenate([b.positions for b in before.decomposition.blocks])
        np.testing.assert_allclose(built.positions, expected, atol=1e-10)


def test_a_matched_block_lies_where_its_rmsd_says(mofs, tmp_path):
    write_prepared(tmp_path / "s.h5", mofs, {})
    linkers = 0
    for mof in read_prepared(tmp_path / "s.h5"):
        for block, fit in zip(mof.decomposition.blocks, mof.matched, strict=True):
            if fit is None:
                continue
            heavy = block.numbers > 1
            placed = fit.local @ fit.rotation.T + fit.centroid
            distance = np.linalg.norm(placed - block.positions, axis=1)[heavy]
            assert np.sqrt((distance**2).mean()) == pytest.approx(fit.rmsd_ang, abs=1e-4)
            linkers += 1
    assert linkers > 8


def test_a_mof_without_full_match_says_so(mofs):
    assert not mofs[0].fully_matched
    with pytest.raises(ValueError, match="no matched geometry"):
        matched_parts(mofs[0])
    assert not replace(mofs[0], matched=()).fully_matched


def test_an_empty_shard_is_a_shard(tmp_path):
    write_prepared(tmp_path / "s.h5", [], {})
    assert read_prepared(tmp_path / "s.h5") == []


def test_another_kind_of_shard_and_a_damaged_one_are_refused(mofs, tmp_path):
    write_shard(tmp_path / "other.h5", Shard({"x": np.zeros(3)}))
    with pytest.raises(CorruptShard, match="promof prep"):
        read_prepared(tmp_path / "other.h5")
    write_prepared(tmp_path / "s.h5", mofs, {})
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["atom_local"][3, 1] += 0.01
    with pytest.raises(CorruptShard, match="damaged"):
        read_prepared(tmp_path / "s.h5")
