"""Assessing assembly on held-out sets: records a set and method, resumable, and a table that counts them right."""

import json

import pytest

from hpc.assessment import assess
from promof_hpc.design.comparing.assessment import AssessSettings, Geometry, Record, table
from promof_hpc.errors import UsageError

SETTINGS = AssessSettings(tries=4)


@pytest.fixture(scope="module")
def assessed(tmp_path_factory):
    out = tmp_path_factory.mktemp("assess") / "out"
    assert assess("shipped", "shipped", out, "random,net,net_flow", 2, 1, SETTINGS) == 0
    return out


def test_every_set_and_method_has_a_record(assessed):
    records = [Record.from_json(p.read_text(encoding="utf-8")) for p in sorted(assessed.glob("*.json"))]
    assert len(records) == 6
    assert {r.method for r in records} == {"random", "net", "net_flow"}
    for record in records:
        assert record.refused or 1 <= len(record.gate) <= 4
        assert set(record.match) <= set(range(len(record.gate)))


def test_a_repeated_assessment_does_only_what_is_missing(assessed):
    before = {p.name: p.stat().st_mtime_ns for p in assessed.glob("*.json")}
    gone = assessed / "net-0001.json"
    text = gone.read_text(encoding="utf-8")
    gone.unlink()
    assert assess("shipped", "shipped", assessed, "random,net,net_flow", 2, 1, SETTINGS) == 0
    assert gone.read_text(encoding="utf-8") == text
    untouched = {p.name: p.stat().st_mtime_ns for p in assessed.glob("*.json") if p != gone}
    assert untouched == {n: t for n, t in before.items() if n != gone.name}


def test_other_settings_in_one_folder_are_refused(assessed):
    with pytest.raises(UsageError, match="other settings"):
        assess("shipped", "shipped", assessed, "net", 2, 1, AssessSettings(tries=5))


def test_raw_and_snapped_flow_finish_the_same_poses_and_blocks_may_be_realised_from_the_set_alone(tmp_path):
    settings = AssessSettings(tries=2, flow_steps=2, geometry=Geometry.REALISED)
    assert assess("shipped", "shipped", tmp_path / "out", "raw_flow,flow", 2, 1, settings) == 0
    records = {p.stem: Record.from_json(p.read_text(encoding="utf-8")) for p in (tmp_path / "out").glob("*.json")}
    assert sorted(records) == ["flow-0000", "flow-0001", "raw_flow-0000", "raw_flow-0001"]
    tried = [k for k in ("0000", "0001") if not records[f"flow-{k}"].refused]
    assert tried
    for k in tried:
        assert len(records[f"flow-{k}"].gate) == len(records[f"raw_flow-{k}"].gate) == 2
    assert assess("shipped", "shipped", tmp_path / "raw", "raw_flow", 2, 1, settings) == 0
    for k in ("0000", "0001"):
        alone = Record.from_json((tmp_path / "raw" / f"raw_flow-{k}.json").read_text(encoding="utf-8"))
        assert alone == records[f"raw_flow-{k}"]


def test_an_unknown_method_or_geometry_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="nets"):
        assess("shipped", "shipped", tmp_path / "out", "nets", 1, 1, SETTINGS)
    with pytest.raises(UsageError, match="unknown geometry 'cubic'; known: crystal, matched, realised"):
        Geometry("cubic")


def test_the_table_counts_the_first_try_that_succeeds():
    records = [
        Record("a", "net", 4, (False, True, False, True), (3,), ()),
        Record("b", "net", 12, (True,), (), (0,)),
        Record("c", "net", 12, refused="no net of this signature"),
    ]
    whole = table(records)[0]
    assert whole["sets"] == 3
    assert [whole[f"gate@{n}"] for n in (1, 4)] == [1 / 3, 2 / 3]
    assert [whole[f"match@{n}"] for n in (1, 4)] == [0.0, 1 / 3]
    assert whole["metal_match@1"] == 1 / 3
    assert json.dumps(whole)
