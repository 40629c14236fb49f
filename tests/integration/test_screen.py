"""`promof screen` and the reading verbs as a user runs them, on real MOFs."""

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest

from tests.commands import ROOT, promof
from tests.disks import small_disk

DEMO = ROOT / "promof_hpc" / "data" / "demo"
SMALL = ("LIKFOB_clean", "YUKVAC_clean", "XAXBAB_clean", "TAFPOG_clean", "UXEDEH_clean")
QUICK = ("--potential", "lennard-jones", "--set", "evaluation.relax.max_steps=3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small library of real MOFs and two broken files, screened once."""
    folder = tmp_path_factory.mktemp("screen")
    library = folder / "mofs"
    library.mkdir()
    for name in SMALL:
        shutil.copy(DEMO / f"{name}.cif", library)
    (library / "empty.cif").write_text("")
    (library / "cut.cif").write_text((DEMO / "LIKFOB_clean.cif").read_text()[:900])
    promof("screen", "mofs", "--run", "runs/one", "--ranks", 2, *QUICK, cwd=folder)
    return folder


def test_the_table_has_a_typed_row_for_every_entry(place):
    table = pd.read_parquet(place / "runs/one/report/table.parquet").set_index("name")
    assert set(table.index) == {*SMALL, "empty", "cut"}
    assert set(table.loc[list(SMALL), "outcome"]) <= {"converged", "max_steps", "disconnected", "exploded", "collapsed"}
    assert set(table.loc[["empty", "cut"], "outcome"]) == {"unreadable"}
    assert table.loc["empty", "reason"].startswith("empty")
    assert table.loc["LIKFOB_clean", "pld_ang"] > 0
    assert table.loc["LIKFOB_clean", "framework_class"] == "discrete"
    csv = pd.read_csv(place / "runs/one/report/table.csv").set_index("name")
    assert csv.loc["LIKFOB_clean", "pld_ang"] == pytest.approx(table.loc["LIKFOB_clean", "pld_ang"])


def test_structures_are_readable_by_ase_and_pymatgen(place):
    from ase.io import read
    from pymatgen.core import Structure

    table = pd.read_parquet(place / "runs/one/report/table.parquet")
    finished = set(table.loc[table["outcome"].isin(["converged", "max_steps"]), "name"])
    assert finished
    images = read(place / "runs/one/report/relaxed.extxyz", ":")
    assert {a.info["name"] for a in images} == finished
    promof("export", "runs/one", "--out", "cifs", "--format", "cif", cwd=place)
    written = sorted((place / "cifs").glob("*.cif"))
    assert len(written) == len(finished)
    assert {Structure.from_file(p).num_sites for p in written} == {len(a) for a in images}


def test_running_again_does_nothing_and_another_configuration_is_refused(place):
    shards = {p: p.stat().st_mtime_ns for p in (place / "runs/one/rounds").rglob("*.h5")}
    promof("screen", "mofs", "--run", "runs/one", "--ranks", 2, *QUICK, cwd=place)
    assert shards == {p: p.stat().st_mtime_ns for p in (place / "runs/one/rounds").rglob("*.h5")}
    message = promof("screen", "mofs", "--run", "runs/one", cwd=place, code=2)
    assert "another configuration" in message
    assert "--run" in message


def test_reading_verbs_answer_in_json(place):
    status = json.loads(promof("status", "runs/one", "--json", cwd=place))
    assert status["state"] == "done"
    assert status["entries"] == 7
    assert sum(status["refused"].values()) == 2
    ledger = json.loads(promof("budget", "runs/one", "--json", cwd=place))
    assert (ledger["issued"], ledger["committed"], ledger["in_flight"], ledger["wasted"]) == (5, 5, 0, 0)
    assert ledger["budget"] is None
    assert json.loads(promof("verify", "runs/one", "--json", cwd=place))["sound"]


def test_a_damaged_shard_is_found_deleted_and_redone(place):
    shutil.copytree(place / "runs/one", place / "runs/hurt")
    shard = sorted((place / "runs/hurt/rounds/00000/results").glob("*.h5"))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    found = promof("verify", "runs/hurt", cwd=place, code=1)
    assert found == ""  # findings go to standard output
    shard.unlink()
    assert "evaluations to do" in promof("verify", "runs/hurt", cwd=place, code=3)
    promof("resume", "runs/hurt", cwd=place)
    drop = ["wall_s", "rank", "host"]
    one, hurt = (pd.read_parquet(place / f"runs/{n}/report/table.parquet").drop(columns=drop) for n in ("one", "hurt"))
    pd.testing.assert_frame_equal(one, hurt)


def test_gates_stop_before_the_potential_and_are_not_charged(place):
    promof("screen", "mofs", "--run", "runs/gate", "--where", "pld_ang > 3.3", *QUICK, cwd=place)
    table = pd.read_parquet(place / "runs/gate/report/table.parquet").set_index("name").loc[list(SMALL)]
    narrow = table["pld_ang"] <= 3.3
    assert narrow.any()
    assert (table.loc[narrow, "outcome"] == "filtered").all()
    assert not table.loc[narrow, "charged"].any()
    ledger = json.loads(promof("budget", "runs/gate", "--json", cwd=place))
    assert ledger["committed"] == int((~narrow).sum())


def test_a_budget_limits_the_evaluations(place):
    promof("screen", "mofs", "--run", "runs/few", "--set", "budget=3", *QUICK, cwd=place)
    ledger = json.loads(promof("budget", "runs/few", "--json", cwd=place))
    assert (ledger["budget"], ledger["issued"], ledger["committed"]) == (3, 3, 3)
    promof("resume", "runs/few", cwd=place)
    assert json.loads(promof("budget", "runs/few", "--json", cwd=place))["committed"] == 3


def test_exact_duplicates_are_evaluated_once_and_both_rows_stand(place):
    (place / "twice").mkdir()
    shutil.copy(DEMO / "LIKFOB_clean.cif", place / "twice/a.cif")
    shutil.copy(DEMO / "LIKFOB_clean.cif", place / "twice/b.cif")
    promof("screen", "twice", "--run", "runs/twice", *QUICK, cwd=place)
    table = pd.read_parquet(place / "runs/twice/report/table.parquet")
    assert sorted(table["name"]) == ["a", "b"]
    assert table["evaluation_id"].nunique() == 1
    assert json.loads(promof("budget", "runs/twice", "--json", cwd=place))["issued"] == 1


def test_a_library_that_changed_is_refused(place):
    shutil.copytree(place / "mofs", place / "moving")
    promof("init", "c.yaml", cwd=place)
    promof("screen", "moving", "--run", "runs/moving", *QUICK, cwd=place)
    (place / "runs/moving/ingested.json").unlink()
    (place / "moving/empty.cif").unlink()
    assert "has changed" in promof("resume", "runs/moving", cwd=place, code=2)


def test_a_run_is_resumed_from_any_folder(place, tmp_path):
    promof("screen", "mofs", "--run", "runs/moved", "--stages", "read", cwd=place)
    shutil.rmtree(place / "runs/moved/rounds/00000")
    (place / "runs/moved/ingested.json").unlink()
    promof("resume", place / "runs/moved", cwd=tmp_path)
    assert json.loads(promof("status", place / "runs/moved", "--json", cwd=tmp_path))["state"] == "done"


def test_our_own_shards_are_a_library(place):
    promof("screen", "runs/one", "--run", "runs/again", "--stages", "read,validity", cwd=place)
    table = pd.read_parquet(place / "runs/again/report/table.parquet")
    assert len(table) == len(SMALL)


@pytest.mark.parametrize(("arguments", "words"), [
    (("screen", "nowhere"), ("nowhere",)),
    (("screen", "mofs", "--potential", "sevenet-0"), ("did you mean 'sevennet-0'",)),
    (("screen", "mofs", "--set", "farm.rank=2"), ("did you mean 'ranks'",)),
    (("screen", "mofs", "--where", "pld > 3"), ("cannot be a gate", "pld_ang")),
    (("screen", "mofs", "--potential", "uma"), ("--weights",)),
    (("status", "mofs"), ("not a run directory",)),
    (("export", "runs/one", "--format", "xls"), ("cif, extxyz, csv, parquet",)),
])  # fmt: skip
def test_mistakes_get_one_sentence_and_exit_code_2(place, arguments, words):
    message = promof(*arguments, cwd=place, code=2)
    for word in words:
        assert word in message
    assert not (place / "runs" / "nowhere").exists()


def test_a_read_only_run_directory_is_one_sentence(place):
    if os.geteuid() == 0:
        target = "/proc/promof-run"
    else:
        (place / "locked").mkdir(mode=0o500)
        target = place / "locked/run"
    message = promof("screen", "mofs", "--run", target, *QUICK, cwd=place, code=1)
    assert "--run" in message


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 300 kB; needs the right to mount."""
    with small_disk(tmp_path / "disk", "300k") as folder:
        yield folder


def test_a_full_disk_is_one_sentence_and_after_making_room_resume_finishes(place, tiny_disk):
    (tiny_disk / "ballast").write_bytes(b"x" * 180_000)
    message = promof("screen", "mofs", "--run", tiny_disk / "run", *QUICK, cwd=place, code=1)
    assert "full" in message
    (tiny_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=30m", tiny_disk], check=True)
    if (tiny_disk / "run/config.yaml").exists():
        promof("resume", tiny_disk / "run", cwd=place)
    else:
        promof("screen", "mofs", "--run", tiny_disk / "run", *QUICK, cwd=place)
    assert json.loads(promof("verify", tiny_disk / "run", "--json", cwd=place))["redo"] == []


def test_export_of_the_table_and_prune(place):
    promof("export", "runs/one", "--out", "tables", "--format", "csv", cwd=place)
    assert (place / "tables/table.csv").exists()
    assert "can be removed" in promof("prune", "runs/one", cwd=place)
    promof("prune", "runs/one", "--yes", cwd=place)
    assert json.loads(promof("verify", "runs/one", "--json", cwd=place))["sound"]


def test_preparation_from_the_command_line_names_every_rejection_and_goes_on(place):
    text = promof("prep", "mofs", "--out", "prepared", cwd=place)
    assert "of 7 MOFs prepared" in text
    rejected = pd.read_csv(place / "prepared/rejections.csv").set_index("name")
    assert rejected.loc["empty", "reason"] == "empty"
    assert rejected.loc["cut", "reason"] == "truncated"
    assert rejected.loc["TAFPOG_clean", "reason"] == "rod"
    shards = {p: p.stat().st_mtime_ns for p in (place / "prepared").rglob("*.h5")}
    promof("prep", "mofs", "--out", "prepared", cwd=place)
    assert shards == {p: p.stat().st_mtime_ns for p in (place / "prepared").rglob("*.h5")}


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(place):
    device = ("--set", "evaluation.potential.device=cuda", "--potential", "lennard-jones")
    assert "no GPU" in promof("screen", "mofs", "--run", "runs/gpu", *device, cwd=place, code=1)
    assert "no GPU" in promof("evaluate", "mofs/LIKFOB_clean.cif", *device, cwd=place, code=1)
