"""Proposals in a candidate shard: everything comes back as it was, and the farm finds its batches."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from promof_hpc.design.campaign.issuing import issue
from promof_hpc.design.campaign.proposal_shard import proposal_shard, read_asked, read_proposals
from promof_hpc.design.strategy import Proposal, Proposals, Round
from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import cut_batches, read_entries, structure_at
from promof_hpc.store.shard import read_shard, write_shard
from promof_hpc.structure import canonical
from tests.runs import crystal

TARGETS = [{"pld_ang": 6.0}]
CRYSTALS = [canonical(crystal(k, 3)) for k in range(4)]
REAL = st.floats(-1e6, 1e6) | st.just(math.nan)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


def _identify(structure):
    return structure.digest()[:16]


def _through_a_file(path, proposals, room=99, asked=None):
    asked = asked or Round(3, 7, room, 12, TARGETS)
    issued = issue(proposals.items, _identify, set(), room)
    batches = cut_batches([len(c.structure) for c in issued.candidates], 2, 1000)
    shard = proposal_shard(asked, proposals, issued, batches, {"strategy": "test"})
    assert write_shard(path, shard)
    return read_shard(path)


def _back(shard):
    where = {str(e): k for k, e in enumerate(shard.arrays["evaluation_id"])}
    return read_proposals(shard, lambda e: structure_at(shard, where[e]))


@st.composite
def proposals(draw):
    count = draw(st.integers(0, 8))
    items = []
    for k in range(count):
        refused = draw(st.booleans())
        items.append(
            Proposal(
                name=f"p{k}",
                group=draw(st.integers(0, 3)),
                target=draw(st.integers(0, 2)),
                sequence=draw(WORDS),
                structure=None if refused else CRYSTALS[draw(st.integers(0, 3))],
                refusal="clash" if refused else "",
                detail=draw(WORDS) if refused else "",
                gate_score=draw(st.floats(0, 1)),
                start=draw(WORDS),
                misfit=draw(REAL),
                snap_energy_ang2=draw(REAL),
                displacement_ang=draw(REAL),
            )
        )
    kinds = st.sampled_from([np.float32, np.float64, np.int64, np.int8, np.bool_])
    trace = draw(st.dictionaries(
        st.text("abcxyz_", min_size=1, max_size=6),
        kinds.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)))
        | st.lists(WORDS, max_size=5), max_size=4,
    ))  # fmt: skip
    return Proposals(tuple(items), trace)


def _same(a, b):
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@settings(deadline=None, max_examples=60)
@given(given_=proposals())
def test_proposals_and_trace_come_back_as_they_were(tmp_path_factory, given_):
    back = _back(_through_a_file(tmp_path_factory.mktemp("shard") / "candidates.h5", given_))
    assert len(back.items) == len(given_.items)
    for sent, got in zip(given_.items, back.items, strict=True):
        for f in fields(Proposal):
            if f.name != "structure":
                assert _same(getattr(sent, f.name), getattr(got, f.name)), f.name
        assert (sent.structure is None) == (got.structure is None)
        if sent.structure is not None:
            assert sent.structure.digest() == got.structure.digest()
    assert set(back.trace) == set(given_.trace)
    for name, column in given_.trace.items():
        got = back.trace[name]
        if isinstance(column, list):
            assert got == column
        else:
            assert got.dtype == column.dtype
            np.testing.assert_array_equal(got, column)


def test_what_was_asked_comes_back(tmp_path):
    asked = Round(4, 11, 5, 59, TARGETS)
    shard = _through_a_file(tmp_path / "c.h5", Proposals(()), asked=asked)
    assert read_asked(shard, TARGETS) == asked


def test_the_same_proposals_give_the_same_digest_and_others_another(tmp_path):
    items = tuple(Proposal(f"p{k}", 0, 0, "", c) for k, c in enumerate(CRYSTALS))
    first = _through_a_file(tmp_path / "a.h5", Proposals(items, {"x": np.arange(3)}))
    assert first.digest() == _through_a_file(tmp_path / "b.h5", Proposals(items, {"x": np.arange(3)})).digest()
    assert first.digest() != _through_a_file(tmp_path / "c.h5", Proposals(items, {"x": np.arange(1, 4)})).digest()


def test_the_farm_finds_every_new_structure_in_a_batch_and_no_refused_one(tmp_path):
    items = [Proposal("a", 0, 0, "", CRYSTALS[0]), Proposal("b", 0, 0, "", None, "clash", "too near", 0.3),
             Proposal("c", 1, 0, "", CRYSTALS[1]), Proposal("d", 1, 0, "", CRYSTALS[0]),
             Proposal("e", 2, 0, "", CRYSTALS[2])]  # fmt: skip
    shard = _through_a_file(tmp_path / "c.h5", Proposals(tuple(items)), room=2)
    rows = [row for plan in batches_of(shard, 3) for row in plan.members]
    assert rows == [0, 1]
    entries = {e.name: e for e in read_entries(shard)}
    assert entries["a"].evaluation_id == entries["d"].evaluation_id != ""
    assert (entries["b"].refusal, entries["b"].detail) == ("clash", "too near")
    assert entries["e"].refusal == "over_budget"
    assert [p.structure is None for p in _back(shard).items] == [False, True, False, False, True]


def test_a_round_without_structures_has_no_batches(tmp_path):
    refused = tuple(Proposal(f"p{k}", 0, 0, "", None, "clash") for k in range(3))
    shard = _through_a_file(tmp_path / "c.h5", Proposals(refused))
    assert batches_of(shard, 3) == []
    assert len(_back(shard).items) == 3


@pytest.mark.parametrize("column", ["numbers", "evaluation_id", "proposal_group"])
def test_a_trace_column_never_takes_the_place_of_ours(tmp_path, column):
    items = (Proposal("a", 5, 0, "", CRYSTALS[0]),)
    back = _back(_through_a_file(tmp_path / "c.h5", Proposals(items, {column: np.array([1.5])})))
    assert back.items[0].group == 5
    assert back.trace[column].tolist() == [1.5]
