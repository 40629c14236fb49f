"""The folded budget: exact under every order of commits, deaths and repetitions."""

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.store.budget import all_committed, batches_of, fold
from promof_hpc.store.candidates import cut_batches
from promof_hpc.store.claims import Owner, claim
from promof_hpc.store.results import seal
from promof_hpc.store.run_dir import read_round
from promof_hpc.store.schema import Outcome
from promof_hpc.store.verify import verify
from tests.runs import add_round, commit, new_run


def test_an_empty_run_has_spent_nothing(tmp_path):
    ledger = fold(new_run(tmp_path / "r"), 64)
    assert (ledger.budget, ledger.issued, ledger.committed, ledger.wasted) == (64, 0, 0, 0)
    assert ledger.finished


def test_the_same_id_in_two_batches_is_charged_once_and_the_second_is_waste(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b"])
    add_round(run, 1, ["b", "c"])
    commit(run, "00000-00000")
    commit(run, "00001-00000")
    ledger = fold(run, None)
    assert (ledger.issued, ledger.committed, ledger.wasted) == (3, 3, 1)


def test_filtered_and_refused_rows_are_not_charged(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b"])
    commit(run, "00000-00000", Outcome.FILTERED, charged=False)
    ledger = fold(run, None)
    assert (ledger.committed, ledger.uncharged) == (0, 2)
    assert ledger.finished


def test_in_flight_counts_members_of_live_claims_that_are_not_committed(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b", "c", "d"])
    assert claim(run, "00000-00001", Owner.here(), 60)
    assert fold(run, None).in_flight == 2
    commit(run, "00000-00001")
    assert fold(run, None).in_flight == 0


def test_all_is_committed_when_every_batch_of_every_round_has_its_file(tmp_path):
    run = new_run(tmp_path / "r")
    assert all_committed(run)
    add_round(run, 0, ["a", "b", "c"])
    add_round(run, 1, ["d"])
    for name in ("00000-00000", "00001-00000", "00000-00001"):
        assert not all_committed(run)
        commit(run, name)
    assert all_committed(run)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_interleaving_of_commits_and_repeats_gives_the_same_ledger(data):
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder) / "r")
        ids = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
        again = data.draw(st.lists(st.sampled_from(ids), max_size=4, unique=True))
        add_round(run, 0, ids)
        if again:
            add_round(run, 1, again)
        batches = [p.name for n in run.round_numbers() for p in batches_of(read_round(run, n), n)]
        for batch in data.draw(st.permutations(batches + batches[:2])):
            commit(run, batch)
            ledger = fold(run, len(ids))
            assert ledger.committed <= ledger.issued == len(ids)
        assert ledger.committed == len(ids)
        assert ledger.wasted == len(again)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 8), st.integers(50, 600))
def test_batches_hold_every_structure_once_within_both_limits(atoms, structures, total):
    batches = cut_batches(atoms, structures, total)
    assert sorted(k for b in batches for k in b) == list(range(len(atoms)))
    for b in batches:
        assert len(b) <= structures
        assert len(b) == 1 or sum(atoms[k] for k in b) <= total


def test_verify_names_what_is_missing_and_what_is_damaged(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b", "c", "d", "e", "f"])
    commit(run, "00000-00000")
    commit(run, "00000-00001")
    path = run.result("00000-00001")
    path.write_bytes(path.read_bytes()[:500])
    found = verify(run)
    assert found.missing == ["00000-00002"]
    assert [f.path for f in found.findings] == [str(path)]
    shard = read_round(run, 0)
    assert set(found.redo) == set(shard.arrays["evaluation_id"][2:])
    assert not found.sound


def test_verify_sees_a_shard_that_was_exchanged_after_sealing(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b"])
    commit(run, "00000-00000")
    assert seal(run, 0)
    assert not seal(run, 0)
    assert verify(run).sound
    run.result("00000-00000").unlink()
    commit(run, "00000-00000", Outcome.MAX_STEPS)
    assert "sealed" in verify(run).findings[0].problem


def test_verify_survives_a_shard_whose_reading_never_ends(tmp_path):
    run = new_run(tmp_path / "r")
    add_round(run, 0, ["a", "b", "c", "d"])
    commit(run, "00000-00001")
    os.mkfifo(run.result("00000-00000"))  # nobody ever writes into it
    found = verify(run, timeout_s=8.0)
    assert [(f.path, f.problem) for f in found.findings] == [
        (str(run.result("00000-00000")), "reading it did not end in time")
    ]
    assert found.missing == []
    assert len(found.redo) == 2
