from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from promof_hpc.errors import PromofError, Refused, UsageError
from promof_hpc.screen import archive
from promof_hpc.screen.library import Entry, Library, scan, visible
from promof_hpc.screen.refusals import ReadReason
from promof_hpc.structure import canonical
from tests.cif_text import cif
from tests.runs import add_round, commit, crystal, new_run

CASES = Path(__file__).parents[1] / "data" / "cases"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def names(found: Library) -> list[str]:
    return [entry.name for entry in found.entries]


def refusal(found: Library, name: str) -> Refused:
    (entry,) = [e for e in found.entries if e.name == name]
    with pytest.raises(Refused) as caught:
        entry.read()
    assert name in caught.value.detail
    return caught.value


def test_case_folder_is_listed_in_a_fixed_order_with_frames_and_without_other_files() -> None:
    found = names(scan(CASES))
    assert found[:2] == ["C000_base_pmx1", "C000_base_pmx2"]
    assert "C025_bad_among_good#bad-nan" in found
    assert found == names(scan(str(CASES)))
    assert len(set(found)) == len(found) == 21


def test_left_handed_cell_is_the_same_structure() -> None:
    left, right = (scan(CASES / f"C014_{hand}_handed.extxyz").entries[0] for hand in ("left", "right"))
    assert left.read().digest() == right.read().digest()
    assert left.read().volume == pytest.approx(724.4, abs=0.1)
    assert np.linalg.det(left.read().cell) > 0


def test_bad_members_are_refused_and_their_neighbours_are_read() -> None:
    found = scan(CASES / "C025_bad_among_good.extxyz")
    assert refusal(found, "C025_bad_among_good#bad-nan").reason is ReadReason.NOT_FINITE
    assert refusal(found, "C025_bad_among_good#bad-dense").reason is ReadReason.OVERLAP
    good = [e.read() for e in found.entries if "good-" in e.name.partition("#")[2]]
    assert [s.formula for s in good] == ["C4N4Zn2", "C16H10Al2O10", "C4N4Zn2"]
    assert good[1].digest() == scan(CASES / "C014_right_handed.extxyz").entries[0].read().digest()


def test_primitive_cell_is_taken_unless_told_otherwise() -> None:
    entry = scan(CASES / "C003_hm_only.cif").entries[0]
    assert len(entry.read()) == 106
    assert len(entry.read(primitive=False)) == 424


def test_entries_survive_the_way_to_another_process() -> None:
    for entry in scan(CASES).entries:
        assert pickle.loads(pickle.dumps(entry)) == entry


def test_same_stem_in_two_folders_gives_two_names(tmp_path: Path) -> None:
    for folder in ("a", "b", "b/c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.cif").write_text(cif())
    (tmp_path / "x.cif").write_text(cif())
    (tmp_path / "x.CIF").write_text(cif())
    assert names(scan(tmp_path)) == ["a/x", "b/c/x", "b/x", "x", "x~2"]


def test_names_are_text_that_can_be_printed(tmp_path: Path) -> None:
    strange = ["<b>bold</b>", "ü 漢", "a b", "new\nline", "\x1b[31mred", "‮txt", "x" * 200, "a~2"]
    for k, stem in enumerate(strange):
        folder = tmp_path / f"{k}" / os.path.dirname(stem)
        folder.mkdir(parents=True)
        (tmp_path / f"{k}" / f"{stem}.cif").write_text(cif())
    (tmp_path / os.fsdecode(b"latin-\xfc.cif")).write_text(cif())
    found = scan(tmp_path)
    for entry in found.entries:
        assert entry.name.encode("utf-8").decode().isprintable()
        assert entry.read().formula == "MgO"
    assert {"0/<b>bold</b>", "1/ü 漢", "2/a b", r"3/new\nline", r"latin-\xfc"} <= set(names(found))
    assert len(set(names(found))) == len(strange) + 1


def test_escaped_names_that_meet_stay_distinct(tmp_path: Path) -> None:
    for stem in ("a\tb", r"a\tb", r"a\tb~2"):
        (tmp_path / f"{stem}.cif").write_text(cif())
    assert sorted(names(scan(tmp_path))) == [r"a\tb", r"a\tb~2", r"a\tb~2~2"]


def test_visible_leaves_ordinary_text_alone() -> None:
    assert visible("MOF-5 (ü) 100 % <x>") == "MOF-5 (ü) 100 % <x>"


def test_file_that_changes_or_goes_after_the_scan_is_refused(tmp_path: Path) -> None:
    for stem in ("gone", "grown", "touched", "still"):
        (tmp_path / f"{stem}.cif").write_text(cif())
    found = scan(tmp_path)
    (tmp_path / "gone.cif").unlink()
    (tmp_path / "grown.cif").write_text(cif() + "# more\n")
    os.utime(tmp_path / "touched.cif", ns=(1, 1))
    for stem in ("gone", "grown", "touched"):
        assert refusal(found, stem).reason is ReadReason.CHANGED
    assert {e.name: e for e in found.entries}["still"].read().formula == "MgO"


def test_links_to_files_are_followed_and_odd_files_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text(cif())
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "link.cif").symlink_to(outside)
    (folder / "nowhere.cif").symlink_to(tmp_path / "nothing")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.cif")
    (folder / "folder.cif").mkdir()
    (folder / "._link.cif").write_bytes(b"\0\1")
    found = scan(folder)
    assert names(found) == ["link", "nowhere", "pipe"]
    assert found.entries[0].read().formula == "MgO"
    assert refusal(found, "nowhere").reason is ReadReason.CHANGED
    assert refusal(found, "pipe").reason is ReadReason.UNREADABLE


@pytest.mark.parametrize("what", ["folder", "zip", "tar", "extxyz"])
def test_empty_library_is_a_usage_error_with_a_remedy(tmp_path: Path, what: str) -> None:
    path = tmp_path / f"empty.{what}"
    if what == "folder":
        path.mkdir()
        (path / "readme.txt").write_text("none")
    elif what == "zip":
        zipfile.ZipFile(path, "w").close()
    elif what == "tar":
        tarfile.open(path, "w").close()
    else:
        path.write_text("\n\n")
    with pytest.raises(UsageError, match="holds no structures; put files"):
        scan(path)


def test_unknown_library_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "my_mofs.zip").touch()
    with pytest.raises(UsageError, match=r"Did you mean .*my_mofs\.zip\?"):
        scan(tmp_path / "my_mof.zip")
    with pytest.raises(UsageError, match="Did you mean coremof:2019-ASR"):
        scan("coremof:2019-ASK")
    with pytest.raises(UsageError, match="Did you mean coremof:2019-ASR"):
        scan("coremof-2019-ASR")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="Give a folder, a file"):
        scan(tmp_path / "notes.txt")


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that the path's ending says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
        return path
    kind = {".gz": "gz", ".xz": "xz", ".bz2": "bz2"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{kind}") as opened:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_archive_reads_as_the_folder_that_it_packs(tmp_path: Path, ending: str) -> None:
    files = {f"mofs/{p.name}": p.read_bytes() for p in sorted(CASES.iterdir())} | {"mofs/readme.md": b"none"}
    found, folder = scan(pack(tmp_path / f"a.{ending}", files)), scan(CASES)
    assert names(found) == [f"mofs/{name}" for name in names(folder)]
    for ours, plain in list(zip(found.entries, folder.entries, strict=True))[:4]:
        assert ours.read().digest() == plain.read().digest()


def test_archive_is_unpacked_once_and_nothing_lies_outside_the_cache(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar.gz", {"x.cif": cif().encode(), "../up.cif": cif().encode(), "/abs.cif": b"data_"})
    found = scan(path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar.gz"}
    assert names(found) == ["../up", "/abs", "x"]
    (first,) = [m for m in archive.unpack(path, lambda name: name.endswith("x.cif")) if m.file]
    assert Path(first.file).is_relative_to(archive.cache_folder())
    before = Path(first.file).stat().st_ino
    assert names(scan(path)) == names(found)
    assert Path(first.file).stat().st_ino == before


def test_archive_that_is_replaced_is_unpacked_again(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"x.cif": cif().encode()})
    assert scan(path).entries[0].read().formula == "MgO"
    path.unlink()
    pack(path, {"x.cif": cif(("Si1 Si 0 0 0",)).encode(), "y.cif": b""})
    assert scan(path).entries[0].read().formula == "Si"


def test_two_processes_that_unpack_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", {"x.cif": cif().encode()})
    rename = Path.rename

    def rename_second(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert scan(path).entries[0].read().formula == "MgO"  # another process publishes first
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_second)
    assert scan(path).entries[0].read().formula == "MgO"
    assert not list((archive.cache_folder() / "archives").glob(".unpacking-*"))


def test_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        scan(pack(tmp_path / "a.zip", {"x.cif": cif().encode()}))


def test_full_disk_while_unpacking_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", {"x.cif": cif().encode()})

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match="No space left on device"):
        scan(path)
    assert not list((archive.cache_folder() / "archives").iterdir())


def test_ase_database_rows_are_read_and_molecules_refused(tmp_path: Path) -> None:
    from ase.build import bulk, molecule
    from ase.db import connect

    path = tmp_path / "my rows (ü).db"
    with connect(path) as database:
        database.write(bulk("NaCl", "rocksalt", a=5.64))
        database.write(molecule("H2O"))
        database.write(bulk("Cu", cubic=True))
    found = scan(path)
    assert names(found) == [f"my rows (ü)#{k}" for k in (1, 2, 3)]
    assert found.entries[0].read().formula == "ClNa"
    assert refusal(found, "my rows (ü)#2").reason is ReadReason.NON_PERIODIC
    assert len(found.entries[2].read()) == 1


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + bytes(100)])
def test_file_that_is_no_database_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(UsageError, match="no ASE database"):
        scan(tmp_path / "x.db")


def _outcome(entry: Entry) -> str:
    try:
        return "" if len(entry.read()) else "no atoms"
    except Refused as refused:
        return refused.reason


def test_core_mof_is_a_library_by_name() -> None:
    found = scan("coremof:2019-ASR")
    assert len(found) == 12_020
    entry = {e.name: e for e in found.entries}["FIQCEN_clean"]  # HKUST-1
    assert entry.read().formula == "C72H24Cu12O48"
    outcomes = [_outcome(entry) for entry in random.Random(0).sample(found.entries, 40)]
    assert set(outcomes) <= {"", ReadReason.OVERLAP}  # unresolved disorder
    assert outcomes.count("") >= 34
    assert len(scan("coremof:2019-ASR")) == 12_020


def test_the_bundled_mofs_are_the_library_demo() -> None:
    found = scan("demo")
    assert len(found) == 22
    assert all(_outcome(entry) == "" for entry in found.entries)


def test_a_run_directory_and_a_shard_of_it_are_libraries(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    add_round(run, 0, ["a", "b", "c"])
    commit(run, "00000-00000")
    assert names(scan(run.path)) == ["entry-a", "entry-b"]
    assert scan(run.path).entries[0].read().counts == canonical(crystal(0)).counts
    assert names(scan(run.candidates(0))) == ["candidates#a", "candidates#b", "candidates#c"]
    run.result("00000-00000").write_bytes(b"\x89HDF junk")
    with pytest.raises(PromofError, match="cannot be read"):
        scan(run.path)
