"""The table of a screening and the files made from it, read back by the programs that people use."""

import json
import math

import ase.io
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Structure as PymatgenStructure

from promof_hpc.errors import UsageError
from promof_hpc.screen.structure_text import cif_text, extxyz_frame, safe_stems
from promof_hpc.screen.table import export, make_table, rank_table, ranking_column, write_extxyz, write_tables
from promof_hpc.store.candidates import Entry
from promof_hpc.store.schema import FIELDS, Outcome
from promof_hpc.structure import Structure
from tests.report_data import diamond, finished, report

ODD_NAMES = ("plain", "with space", 'a "quoted" one', "back\\slash", "naïve 名前", "it's", "a=b {c} [d]")


def by_name(table):
    return table.set_index("name")


def test_every_entry_has_one_line_whatever_became_of_it():
    entries = [
        Entry("good", "1"), Entry("bad", "", "overlap", "O4 and O16 are 0.50 Å apart"), Entry("waits", "2"),
        Entry("beyond", "", "over_budget", "the budget was used up before this entry"),
    ]  # fmt: skip
    table = by_name(make_table(entries, [finished("1")], "lib"))
    assert table["outcome"].to_dict() == {
        "good": "converged", "bad": "unreadable", "waits": "pending", "beyond": "over_budget",
    }  # fmt: skip
    assert table.loc["bad", "reason"] == "overlap: O4 and O16 are 0.50 Å apart"
    assert set(table["source"]) == {"lib"}
    assert {f.name for f in FIELDS} <= set(table.columns)


def test_duplicates_share_an_evaluation_and_have_a_line_each():
    table = make_table([Entry("a", "1"), Entry("b", "1")], [finished("1")])
    assert list(table["name"]) == ["a", "b"]
    assert list(table["e_rel_ev_per_atom"]) == [0.03, 0.03]


def test_what_was_not_computed_is_missing_and_never_minus_one():
    row = finished("1", steps=-1, bonds_broken=-1, pld_ang=math.nan, pore_dimensionality=0)
    line = make_table([Entry("a", "1"), Entry("refused", "", "empty", "")], [row]).iloc[0]
    assert line["steps"] is pd.NA
    assert line["bonds_broken"] is pd.NA
    assert math.isnan(line["pld_ang"])
    assert line["pore_dimensionality"] == 0


def test_places_go_to_converged_unflagged_structures_by_e_rel():
    rows = [
        finished("worst", e_rel_ev_per_atom=0.2), finished("best", e_rel_ev_per_atom=-0.1),
        finished("no-h", e_rel_ev_per_atom=-0.5, h_complete=0),
        finished("broken", e_rel_ev_per_atom=-0.4, bonds_broken=2),
        finished("check", e_rel_ev_per_atom=-0.3, checks_failed="over_coordinated_c; no_hydrogen"),
        finished("harmless", e_rel_ev_per_atom=0.1, checks_failed="no_hydrogen"),
        finished("steps", e_rel_ev_per_atom=-0.9, outcome=Outcome.MAX_STEPS),
        finished("unknown", e_rel_ev_per_atom=math.nan),
    ]  # fmt: skip
    table = make_table([Entry(r.evaluation_id, r.evaluation_id) for r in rows], rows)
    placed = table[table["place"].notna()]
    assert list(placed["name"]) == ["best", "harmless", "worst"]
    assert list(placed["place"]) == [1, 2, 3]
    assert list(table["name"])[3:] == ["unknown", "no-h", "broken", "check", "steps"]
    assert by_name(table).loc["check", "flags"] == "over_coordinated_c"


def test_without_e_rel_the_ranking_goes_by_e_form_and_without_both_by_pores():
    rows = [
        finished("a", e_rel_ev_per_atom=math.nan, e_form_ev_per_atom=-0.1, pld_ang=9.0),
        finished("b", e_rel_ev_per_atom=math.nan, e_form_ev_per_atom=-0.7, pld_ang=2.0),
    ]
    entries = [Entry("a", "a"), Entry("b", "b")]
    table = make_table(entries, rows)
    assert ranking_column(table) == "e_form_ev_per_atom"
    assert list(table["name"]) == ["b", "a"]
    without = rank_table(table.drop(columns="place").assign(e_form_ev_per_atom=math.nan))
    assert ranking_column(without) == "pld_ang"
    assert list(without["name"]) == ["a", "b"]


def test_table_of_no_entries_and_of_refusals_only():
    assert len(make_table([], [])) == 0
    table = make_table([Entry("a", "", "empty", "the file is empty")], [])
    assert table["place"].isna().all()


def test_parquet_and_csv_say_the_same_and_columns_carry_units(tmp_path):
    rows = [finished("1"), finished("2", pld_ang=math.nan, steps=-1, reason='comma, "quote" and\nline')]
    data = report(["a", "b, c"], rows, [Entry("no", "", "empty", "nothing in it")])
    write_tables(data, tmp_path)
    parquet, csv = pd.read_parquet(tmp_path / "table.parquet"), pd.read_csv(tmp_path / "table.csv")
    assert list(parquet.columns) == list(csv.columns) == list(data.entries.columns)
    for column in ("name", "outcome", "formula", "reason"):
        assert list(parquet[column].fillna("")) == list(csv[column].fillna(""))
    for column in ("place", "atoms", "steps", "pld_ang", "e_rel_ev_per_atom"):
        a, b = (t[column].to_numpy(np.float64, na_value=np.nan) for t in (parquet, csv))
        np.testing.assert_allclose(a, b, rtol=1e-7)
    field = pq.read_schema(tmp_path / "table.parquet").field("e_rel_ev_per_atom")
    assert field.metadata[b"unit"] == b"eV/atom"
    described = json.loads((tmp_path / "columns.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in described] == list(csv.columns)
    assert all(c["meaning"] for c in described)


def test_written_structures_come_back_from_ase_with_name_energy_and_positions(tmp_path):
    rows = [finished(f"{k}", energy_ev_per_atom=-7.0 - k) for k in range(len(ODD_NAMES))]
    write_tables(report(list(ODD_NAMES), rows), tmp_path)
    frames = ase.io.read(tmp_path / "relaxed.extxyz", ":")
    assert [f.info["name"] for f in frames] == list(ODD_NAMES)
    for k, frame in enumerate(frames):
        assert frame.get_potential_energy() == pytest.approx(8 * (-7.0 - k))
        assert frame.pbc.all()
        np.testing.assert_allclose(frame.positions, diamond(1.01).positions, atol=1e-7)
        np.testing.assert_allclose(frame.cell[:], diamond(1.01).cell, atol=1e-7)
    assert frames[0].info["e_rel_ev_per_atom"] == 0.03


def test_structures_of_failed_evaluations_are_not_passed_on_as_relaxed(tmp_path):
    outcomes = [Outcome.CONVERGED, Outcome.EXPLODED, Outcome.NAN, Outcome.FILTERED, Outcome.MAX_STEPS]
    rows = [finished(str(k), outcome=o) for k, o in enumerate(outcomes)]
    write_tables(report([str(o) for o in outcomes], rows), tmp_path)
    names = [f.info["name"] for f in ase.io.read(tmp_path / "relaxed.extxyz", ":")]
    assert names == ["converged", "max_steps"]


def test_a_run_without_structures_writes_an_empty_file(tmp_path):
    write_tables(report([], [], [Entry("no", "", "empty", "")]), tmp_path)
    assert (tmp_path / "relaxed.extxyz").read_text() == ""


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_cif_gives_pymatgen_and_ase_the_same_crystal_and_not_its_mirror_image(tmp_path, handedness):
    rng = np.random.default_rng(3)
    cell = handedness * np.array([[9.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-2.0, 1.0, 7.0]])
    fractional = rng.uniform(0.3, 0.7, (5, 3))
    s = Structure(np.array([30, 8, 6, 7, 1], np.int32), fractional @ cell, cell)
    path = tmp_path / "x.cif"
    path.write_text(cif_text(s, "x y\nz", ["two\nlines"]), encoding="utf-8")
    read = ase.io.read(path)
    assert list(read.numbers) == list(s.numbers)
    assert read.get_volume() == pytest.approx(s.volume, rel=1e-8)
    difference = np.sort(read.get_all_distances()) - np.sort(s.to_ase().get_all_distances())
    assert np.abs(difference).max() < 1e-6
    hand = [np.linalg.det(p[1:4] - p[0]) for p in (read.positions, s.positions)]
    assert hand[0] == pytest.approx(hand[1], abs=1e-5)
    other = PymatgenStructure.from_file(path)
    order = np.argsort(s.numbers), np.argsort([site.specie.Z for site in other])
    mine, theirs = s.to_ase().get_all_distances(mic=True), other.distance_matrix
    np.testing.assert_allclose(theirs[np.ix_(order[1], order[1])], mine[np.ix_(order[0], order[0])], atol=1e-6)


def test_export_writes_the_best_first_under_safe_names(tmp_path):
    rows = [finished(str(k), e_rel_ev_per_atom=e) for k, e in enumerate((0.3, 0.1, 0.2))]
    data = report(["../../etc/passwd", "a/b", "a b"], rows)
    assert export(data, tmp_path / "cifs", "cif") == "3 CIF files"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a_b-2.cif", "a_b.cif", "cifs", "etc_passwd.cif"]
    assert export(data, tmp_path / "top", "extxyz", top=2) == "relaxed.extxyz with 2 structures"
    assert [f.info["name"] for f in ase.io.read(tmp_path / "top/relaxed.extxyz", ":")] == ["a/b", "a b"]
    assert export(data, tmp_path / "tables", "csv", top=1) == "table.csv with 1 line"
    assert list(pd.read_csv(tmp_path / "tables/table.csv")["name"]) == ["a/b"]


def test_export_of_the_top_counts_duplicates_once(tmp_path):
    rows = [finished("1", e_rel_ev_per_atom=0.1), finished("2", e_rel_ev_per_atom=0.2)]
    data = report(["a", "b"], rows)
    table = make_table([Entry("a", "1"), Entry("again", "1"), Entry("b", "2")], rows)
    again = report(["a", "b"], rows, entries=table, finals=data.finals)
    assert export(again, tmp_path, "cif", top=2) == "2 CIF files"


def test_export_refuses_a_file_as_folder_and_an_unknown_format(tmp_path):
    data = report(["a"], [finished("1")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        export(data, tmp_path / "file", "cif")
    with pytest.raises(UsageError, match="cif, extxyz, csv, parquet"):
        export(data, tmp_path, "pdf")


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "relaxed.extxyz"
    write_extxyz([("old", finished("1"), diamond())], path)
    before = path.read_bytes()

    def broken():
        yield "new", finished("2"), diamond()
        raise MemoryError

    with pytest.raises(MemoryError):
        write_extxyz(broken(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["relaxed.extxyz"]


@given(st.lists(st.text(max_size=300), unique=True, max_size=30))
def test_file_names_are_safe_and_distinct_for_any_text(names):
    stems = safe_stems(names)
    assert list(stems) == names
    assert len({stem.lower() for stem in stems.values()}) == len(names)
    for stem in stems.values():
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+=-")
        assert stem[0] not in ".-"
        assert len(stem) <= 110


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=' "\\'), min_size=1, max_size=40))
def test_any_name_survives_the_comment_line(tmp_path_factory, name):
    path = tmp_path_factory.getbasetemp() / "frame.extxyz"
    path.write_text(extxyz_frame(diamond(), {"name": f"x{name}x"}), encoding="utf-8")
    assert ase.io.read(path).info["name"] == " ".join(f"x{name}x".split())
