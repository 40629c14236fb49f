from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from promof_hpc.assembly.node_library import NodeLibrary
from promof_hpc.assembly.prepared import PreparedMof
from promof_hpc.assembly.prepared_shard import read_prepared
from promof_hpc.chem.blocks import Kind
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.policy.linker_swap import LinkerSwap, bindings_of

DATA = Path(str(files("promof_hpc"))) / "data" / "small_mofs"


@pytest.fixture(scope="module")
def mofs() -> list[PreparedMof]:
    return read_prepared(DATA / "train" / "00000.h5", molecules=False)


def charge_of(mof: PreparedMof) -> dict[str, int]:
    return {b.key: b.charge for b in mof.decomposition.blocks}


def test_exchanged_sets_are_valid_balanced_and_often_new(mofs):
    swap, generator = LinkerSwap(mofs), torch.Generator().manual_seed(0)
    nodes, seen = NodeLibrary.read(DATA / "nodes.h5").by_key, {m.sequence for m in mofs}
    charges = {key: charge for m in mofs for key, charge in charge_of(m).items()}
    atoms = {b.key: len(b.numbers) for m in mofs for b in m.decomposition.blocks}
    new = 0
    for place, mof in enumerate(mofs):
        text, count = swap(place, generator)
        found, given = parse_sequence(text, nodes), parse_sequence(mof.sequence)
        assert found.sequence == text
        assert found.nodes == given.nodes
        assert len(found.linkers) == len(given.linkers)
        assert count == sum(atoms[key] for key in (*found.nodes, *found.linkers))
        assert sum(charges[k] for k in found.linkers) == sum(charges[k] for k in given.linkers)
        new += text not in seen
    assert new > 0.2 * len(mofs)


def test_equal_linkers_stay_equal(mofs):
    swap, generator = LinkerSwap(mofs), torch.Generator().manual_seed(1)
    for place, mof in enumerate(mofs[:50]):
        given = Counter(parse_sequence(mof.sequence).linkers)
        found = Counter(parse_sequence(swap(place, generator)[0]).linkers)
        assert len(found) <= len(given)
        assert max(found.values()) >= max(given.values())


def test_bindings_count_the_contacts_of_each_linker(mofs):
    for mof in mofs[:20]:
        blocks = mof.decomposition.blocks
        sizes = Counter(c.linker for c in mof.decomposition.contacts)
        for key, binding in bindings_of(mof).items():
            mine = {sizes[k] for k, b in enumerate(blocks) if b.kind is Kind.ORGANIC and b.key == key}
            assert {len(contacts) for _, contacts in binding} == mine


def test_a_linker_without_its_like_stays(mofs):
    one = next(m for m in mofs if len(bindings_of(m)) == 1)
    assert LinkerSwap([one])(0, torch.Generator().manual_seed(0))[0] == one.sequence
