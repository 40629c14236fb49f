"""Inputs that break readers: each is read right or refused for a typed reason, its neighbours untouched."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from promof_hpc.errors import Refused
from promof_hpc.screen import archive
from promof_hpc.screen.library import Library, scan
from promof_hpc.screen.refusals import ReadReason as R
from tests.cif_text import ROCKSALT, cif

GOOD = cif()
WHOLE = "Mg4O4"
P1 = ("x,y,z",)
HM = "_symmetry_space_group_name_H-M"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def atoms(
    *sites: str, operators: tuple[str, ...] = P1, columns: str | None = None, cell: str = "4 4 4 90 90 90"
) -> str:
    return cif(sites, operators=operators, cell=cell, **({"columns": columns} if columns else {}))


OCC = "label type_symbol fract_x fract_y fract_z occupancy"
LABEL = "label fract_x fract_y fract_z"

# what is read, and the formula of the cell as it must come out
READ: dict[str, tuple[str | bytes, str]] = {
    "BOM": (b"\xef\xbb\xbf" + GOOD.encode(), WHOLE),
    "CRLF": (GOOD.replace("\n", "\r\n"), WHOLE),
    "old Mac line ends": (GOOD.replace("\n", "\r"), WHOLE),
    "BOM and CRLF": (b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(), WHOLE),
    "UTF-16": (GOOD.encode("utf-16"), WHOLE),
    "Latin-1 comment": (b"# M\xfcller, 25 \xb0C\n" + GOOD.encode("latin-1"), WHOLE),
    "DOS end of file": (GOOD + "\x1a", WHOLE),
    "hard spaces": (GOOD.replace("Mg1 Mg", "Mg1\xa0Mg"), WHOLE),
    "no last line end": (GOOD.rstrip(), WHOLE),
    "capital tags": (GOOD.replace("_cell_length_a", "_CELL_LENGTH_A").replace("data_x", "DATA_x"), WHOLE),
    "dotted tags of the newer dictionary": (
        GOOD.replace("_atom_site_", "_atom_site.").replace("_cell_", "_cell."),
        WHOLE,
    ),
    "operators only": (GOOD, WHOLE),
    "name only": (cif(operators=(), extra=[f"{HM} 'F m -3 m'"]), WHOLE),
    "name without quotes": (cif(operators=(), extra=[f"{HM} F m -3 m"]), WHOLE),
    "old name only": (cif(operators=(), extra=[f"{HM} Fm3m"]), WHOLE),
    "Hall symbol only": (cif(operators=(), extra=["_space_group_name_Hall '-F 4 2 3'"]), WHOLE),
    "number only": (cif(operators=(), extra=["_space_group_IT_number 225"]), WHOLE),
    "unknown name beside operators": (cif(extra=[f"{HM} 'my own group'"]), WHOLE),
    "question mark as name": (cif(extra=[f"{HM} ?"]), WHOLE),
    "no symmetry at all": (atoms("Mg1 Mg 0 0 0", operators=()), "Mg"),
    "operators with decimals and capitals": (
        cif(operators=("X,Y,Z", "x,0.5+y,.5+z", "x+1/2,+y,z+1/2", "1/2+x,1/2+y,z")),
        WHOLE,
    ),
    "uncertainties in brackets": (
        atoms(
            "Mg1 Mg 0.0(1) 0 0 1.00(2)", "O1 O 0.5000(12) 0.5 0.5 1", columns=OCC, cell="3(1) 3.0(2) 3 90 90.0(3) 90"
        ),
        "MgO",
    ),
    "unknown occupancies": (atoms("Mg1 Mg 0 0 0 ?", "O1 O 0.5 0.5 0.5 .", columns=OCC), "MgO"),
    "unwrapped fractions": (atoms("Mg1 Mg -3 7 1", "O1 O 2.5 -0.5 -1.5", columns=None), "MgO"),
    "deuterium": (atoms("O1 O 0 0 0", "D1 D 0.24 0 0", "D2 D 0 0.24 0"), "H2O"),
    "ions as type symbols": (atoms("Zn1 Zn2+ 0 0 0", "O1 O2- 0.5 0.5 0.5"), "OZn"),
    "charges the other way round": (atoms("Zn1 Zn+2 0 0 0", "O1 O-2 0.5 0.5 0.5"), "OZn"),
    "capital type symbols": (atoms("Zn1 ZN 0 0 0", "O1 O 0.5 0.5 0.5"), "OZn"),
    "labels without type symbols": (atoms("Zn1 0 0 0", "O1A 0.5 0.5 0.5", "OW2 0.5 0.5 0", columns=LABEL), "O2Zn"),
    "type symbol unknown for one": (atoms("Zn1 ? 0 0 0", "O1 O 0.5 0.5 0.5"), "OZn"),
    "dummy site at a pore centre": (
        atoms("Zn1 Zn 0 0 0 .", "X1 X 0.5 0.5 0.5 dum", columns="label type_symbol fract_x fract_y fract_z calc_flag"),
        "Zn",
    ),
    "one atom": (atoms("Cu1 Cu 0 0 0"), "Cu"),
    "left-handed order of axes": (atoms("Mg1 Mg 0 0 0", cell="5 4 3 80 85 100"), "Mg"),
    "block name with HTML": (cif(block="<script>alert(1)</script>"), WHOLE),
    "comment of a megabyte": ("#" + "x" * 2**20 + "\n" + GOOD, WHOLE),
    "gzip": (gzip.compress(GOOD.encode()), WHOLE),
}

# what is refused, and why
REFUSED: dict[str, tuple[str | bytes, R]] = {
    "empty": (b"", R.EMPTY),
    "white space": (b"\n \r\n\t", R.EMPTY),
    "BOM alone": (b"\xef\xbb\xbf", R.EMPTY),
    "binary": (bytes(range(256)) * 40, R.BINARY),
    "binary after a good head": (GOOD.encode() + b"\0\0\0", R.BINARY),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(64), R.BINARY),
    "web page": (b"<!DOCTYPE html><html>Please log in</html>", R.NOT_A_CIF),
    "another format": (b"8\nLattice=...\nMg 0 0 0\n", R.NOT_A_CIF),
    "broken in the middle": (GOOD.replace("loop_", "loop_ loop_", 1), R.MALFORMED),
    "row with a value too many": (GOOD.replace("O1 O", "O1 O O") + "_cell_volume 74\n", R.MALFORMED),
    "cut in a row": (GOOD[:-8], R.TRUNCATED),
    "cut in a number": (atoms("Mg1 Mg 0 0 0.1234", "O1 O 0.5 0.5 0.5678").rstrip()[:-2], R.TRUNCATED),
    "cut in a symbol": (
        atoms("0 0 0 Mg1 Mg", "0.5 0.5 0.5 Cl1 Cl", columns="fract_x fract_y fract_z label type_symbol").rstrip()[:-1],
        R.TRUNCATED,
    ),
    "cut in a text field": ("data_x\n_a\n;text\n", R.TRUNCATED),
    "cut in a quotation": ("data_x\n_a 'te", R.TRUNCATED),
    "cut in the tags": (GOOD[: GOOD.index("_atom_site_fract_y") + 5], R.TRUNCATED),
    "gzip cut": (gzip.compress(GOOD.encode())[:-20], R.TRUNCATED),
    "gzip bomb": (gzip.compress(bytes(80 * 2**20)), R.ARCHIVE_BOMB),
    "only a head": ("data_x\n", R.NO_ATOMS),
    "no atoms": (cif(()), R.NO_ATOMS),
    "no y": (atoms("Mg1 Mg 0 0", columns="label type_symbol fract_x fract_z"), R.NO_ATOMS),
    "Cartesian coordinates only": (GOOD.replace("_fract_", "_Cartn_"), R.NO_ATOMS),
    "no cell": (GOOD.replace("_cell_length_b", "_other_length_b"), R.NO_CELL),
    "unknown angle": (GOOD.replace("_cell_angle_gamma 90", "_cell_angle_gamma ?"), R.NO_CELL),
    "cell of zero": (cif(cell="0 4 4 90 90 90"), R.CONTRADICTION),
    "negative cell": (cif(cell="-4 4 4 90 90 90"), R.CONTRADICTION),
    "impossible angles": (cif(cell="4 4 4 30 30 170"), R.CONTRADICTION),
    "flat cell": (cif(cell="4 4 4 90 90 0.01"), R.CONTRADICTION),
    "cell not a number": (cif(cell="4,2 4 4 90 90 90"), R.NO_CELL),
    "cell infinite": (cif(cell="inf 4 4 90 90 90"), R.NO_CELL),
    "molecule in a dummy cell of 1 Å": (
        atoms("O1 O 0 0 0", "H1 H 0.9 0.3 0.6", cell="1 1 1 90 90 90"),
        R.CONTRADICTION,
    ),
    "molecule in a huge box": (atoms("O1 O 0 0 0", cell="90 90 90 90 90 90"), R.CONTRADICTION),
    "NaN coordinate": (atoms("Mg1 Mg 0 nan 0"), R.NOT_FINITE),
    "infinite coordinate": (atoms("Mg1 Mg 0 1e999 0"), R.NOT_FINITE),
    "unknown coordinate": (atoms("Mg1 Mg 0 ? 0"), R.NOT_FINITE),
    "decimal comma": (atoms("Mg1 Mg 0 0,5 0"), R.NOT_FINITE),
    "partial occupancy": (atoms("Mg1 Mg 0 0 0 0.5", columns=OCC), R.PARTIAL_OCCUPANCY),
    "occupancy of zero": (atoms("Mg1 Mg 0 0 0 0", columns=OCC), R.PARTIAL_OCCUPANCY),
    "occupancy no number": (atoms("Mg1 Mg 0 0 0 full", columns=OCC), R.MALFORMED),
    "duplicated atom": (atoms("Mg1 Mg 0 0 0", "Mg2 Mg 0 0 0"), R.OVERLAP),
    "overlap": (atoms("Mg1 Mg 0 0 0", "O1 O 0.1 0 0"), R.OVERLAP),
    "overlap across the cell edge": (atoms("Mg1 Mg 0.99 0 0", "O1 O 0.01 0 0"), R.OVERLAP),
    "split about a mirror": (atoms("Mg1 Mg 0.04 0 0", operators=("x,y,z", "-x,y,z")), R.OVERLAP),
    "unknown element": (atoms("Q1 Qq 0 0 0"), R.UNKNOWN_ELEMENT),
    "placeholder X": (atoms("X1 X 0 0 0"), R.UNKNOWN_ELEMENT),
    "label that may be calcium or carbon": (atoms("CA1 0 0 0", columns=LABEL), R.UNKNOWN_ELEMENT),
    "label of digits": (atoms("17 0 0 0", columns=LABEL), R.UNKNOWN_ELEMENT),
    "unknown name only": (cif(operators=(), extra=[f"{HM} 'F x y z'"]), R.SYMMETRY_UNKNOWN),
    "number with several settings": (cif(operators=(), extra=["_space_group_IT_number 14"]), R.SYMMETRY_UNKNOWN),
    "number that does not exist": (cif(operators=(), extra=["_space_group_IT_number 231"]), R.SYMMETRY_UNKNOWN),
    "name and number differ": (
        cif(operators=(), extra=[f"{HM} 'F m -3 m'", "_space_group_IT_number 1"]),
        R.CONTRADICTION,
    ),
    "operator that is none": (cif(operators=("x,y,z", "a,b,c")), R.SYMMETRY_UNKNOWN),
    "operator with a factor": (cif(operators=("x,y,z", "2*x,y,z")), R.SYMMETRY_UNKNOWN),
    "operator with a bad fraction": (cif(operators=("x,y,z", "x+1/5,y,z")), R.SYMMETRY_UNKNOWN),
    "operator missing": (cif(operators=("x,y,z", "-y,x,z")), R.SYMMETRY_UNKNOWN),
    "operators that do not fit the cell": (cif(operators=("x,y,z", "-x,y,-z"), cell="4 4 4 80 85 70"), R.CONTRADICTION),
    "asymmetric unit called P1": (cif(operators=P1, extra=[f"{HM} 'F m -3 m'"]), R.CONTRADICTION),
    "formula of another crystal": (cif(extra=["_chemical_formula_sum 'Mg O H2'"]), R.CONTRADICTION),
    "volume of another cell": (cif(extra=["_cell_volume 18.5"]), R.CONTRADICTION),
    "modulated": (cif(extra=["_cell_modulation_dimension 1"]), R.SYMMETRY_UNKNOWN),
}

XYZ_CELL = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3'
XYZ_REFUSED: dict[str, tuple[str | bytes, R]] = {
    "no lattice": ("1\nplain\nMg 0 0 0\n", R.NON_PERIODIC),
    "a slab": (f'1\n{XYZ_CELL} pbc="T T F"\nMg 0 0 0\n', R.NON_PERIODIC),
    "NaN": (f"1\n{XYZ_CELL}\nMg 0 nan 0\n", R.NOT_FINITE),
    "NaN in the cell": (f"1\n{XYZ_CELL}\nMg 0 0 0\n".replace("4 0 0 0 4", "nan 0 0 0 4", 1), R.NOT_FINITE),
    "zero cell": ('1\nLattice="0 0 0 0 0 0 0 0 0" pbc="T T T"\nMg 0 0 0\n', R.CONTRADICTION),
    "unknown element": (f"1\n{XYZ_CELL}\nQq 0 0 0\n", R.UNKNOWN_ELEMENT),
    "fewer atoms than it says": (f"3\n{XYZ_CELL}\nMg 0 0 0\n", R.TRUNCATED),
    "a count of a billion": (f"1000000000\n{XYZ_CELL}\nMg 0 0 0\n", R.TOO_BIG),
    "no atoms": (f"0\n{XYZ_CELL}\n", R.NO_ATOMS),
    "no count": ("Mg 0 0 0\n", R.MALFORMED),
    "words for numbers": (f"1\n{XYZ_CELL}\nMg a b c\n", R.MALFORMED),
    "short lattice": ('1\nLattice="4 0 0 0 4" pbc="T T T"\nMg 0 0 0\n', R.MALFORMED),
    "binary": (bytes(range(256)) * 10, R.MALFORMED),
    "empty": (b"", R.EMPTY),
}


def library_of(folder: Path, content: str | bytes, ending: str = "cif") -> Library:
    """The content as `odd`, between two good neighbours."""
    for stem in ("aa_good", "zz_good"):
        (folder / f"{stem}.cif").write_text(GOOD)
    (folder / f"odd.{ending}").write_bytes(content.encode() if isinstance(content, str) else content)
    found = scan(folder)
    assert [e.name for e in found.entries] == ["aa_good", "odd", "zz_good"]
    for k in (0, 2):
        assert found.entries[k].read().formula == "MgO"
    return found


@pytest.mark.parametrize("what", READ)
def test_odd_file_is_read_right(tmp_path: Path, what: str) -> None:
    content, formula = READ[what]
    loaded = library_of(tmp_path, content).entries[1].load()
    assert loaded.structure.formula == formula


@pytest.mark.parametrize("what", REFUSED)
def test_bad_file_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    content, reason = REFUSED[what]
    _check_refusal(library_of(tmp_path, content), reason)


@pytest.mark.parametrize("what", XYZ_REFUSED)
def test_bad_frame_is_refused_with_its_reason(tmp_path: Path, what: str) -> None:
    content, reason = XYZ_REFUSED[what]
    _check_refusal(library_of(tmp_path, content, "extxyz"), reason)


def _check_refusal(found: Library, reason: R) -> None:
    with pytest.raises(Refused) as caught:
        found.entries[1].read()
    assert caught.value.reason is reason
    name, _, detail = caught.value.detail.partition(": ")
    assert name == "odd"
    assert "; " in detail, "what is wrong, then the remedy"
    assert "\n" not in detail
    assert len(detail) < 300


def test_at_least_sixty_inputs_are_tried() -> None:
    assert len(READ) + len(REFUSED) + len(XYZ_REFUSED) >= 100


@pytest.mark.parametrize("size", [100_000_000, 5_000_000_000])
def test_huge_cif_is_refused_at_once(tmp_path: Path, size: int) -> None:
    (tmp_path / "huge.cif").write_text(GOOD)
    with (tmp_path / "huge.cif").open("r+b") as file:
        file.truncate(size)  # sparse: no disk is filled
    start = time.monotonic()
    with pytest.raises(Refused) as caught:
        scan(tmp_path).entries[0].read()
    assert caught.value.reason is R.TOO_BIG
    assert time.monotonic() - start < 5


def test_several_blocks_are_several_entries_and_a_bad_one_stops_no_other(tmp_path: Path) -> None:
    blocks = [cif(block="a"), cif(("Q1 Qq 0 0 0",), block="b"), cif(("Mg1 Mg 0 0 0",), block="a/../<i>")]
    (tmp_path / "x.cif").write_text("data_global\n_audit_author 'nobody'\n" + "".join(blocks))
    first, second, third = scan(tmp_path).entries
    assert [e.name for e in (first, second, third)] == ["x#a", "x#b", "x#a/../<i>"]
    assert first.read().formula == "MgO"
    with pytest.raises(Refused) as caught:
        second.read()
    assert caught.value.reason is R.UNKNOWN_ELEMENT
    assert third.read().formula == "Mg"


def _zip(path: Path, fill: Callable[[zipfile.ZipFile], None]) -> Library:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("good.cif", GOOD)
        fill(opened)
        opened.writestr("last.cif", GOOD)
    return _with_good_neighbours(path)


def _tar(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Library:
    with tarfile.open(path, "w:gz") as opened:
        opened.addfile(*_tarred("good.cif", GOOD.encode()))
        fill(opened)
        opened.addfile(*_tarred("last.cif", GOOD.encode()))
    return _with_good_neighbours(path)


def _tarred(
    name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, io.BytesIO(data)


def _with_good_neighbours(path: Path) -> Library:
    found = scan(path)
    by_name = {e.name: e for e in found.entries}
    assert by_name["good"].read().formula == by_name["last"].read().formula == "MgO"
    return found


def _reasons(found: Library) -> dict[str, R]:
    reasons = {}
    for entry in found.entries:
        try:
            entry.read()
        except Refused as refused:
            reasons[entry.name] = R(refused.reason)
    return reasons


HOSTILE_PATHS = ["../up.cif", "/etc/abs.cif", "a/../../up.cif", "C:/x.cif", "..\\up.cif"]


@pytest.mark.parametrize("pack", [_zip, _tar])
def test_members_that_leave_the_archive_are_refused(tmp_path: Path, pack: Callable[..., Library]) -> None:
    def fill(opened: zipfile.ZipFile | tarfile.TarFile) -> None:
        for name in HOSTILE_PATHS:
            if isinstance(opened, zipfile.ZipFile):
                opened.writestr(name, GOOD)
            else:
                opened.addfile(*_tarred(name, GOOD.encode()))

    found = pack(tmp_path / ("a.zip" if pack is _zip else "a.tar.gz"), fill)
    assert set(_reasons(found).values()) == {R.UNSAFE_PATH}
    assert len(_reasons(found)) == len(HOSTILE_PATHS)
    assert not (tmp_path.parent / "up.cif").exists()


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    def fill(opened: tarfile.TarFile) -> None:
        opened.addfile(_tarred("soft.cif", b"", tarfile.SYMTYPE, "/etc/passwd")[0])
        opened.addfile(_tarred("hard.cif", b"", tarfile.LNKTYPE, "good.cif")[0])
        opened.addfile(_tarred("pipe.cif", b"", tarfile.FIFOTYPE)[0])

    found = _tar(tmp_path / "a.tar.gz", fill)
    assert _reasons(found) == {"soft": R.LINK, "hard": R.LINK, "pipe": R.UNREADABLE}


def test_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    def fill(opened: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("soft.cif")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")

    assert _reasons(_zip(tmp_path / "a.zip", fill)) == {"soft": R.LINK}


def test_bomb_in_a_zip_is_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    found = _zip(tmp_path / "a.zip", lambda opened: opened.writestr("bomb.cif", bytes(100 * 2**20)))
    assert _reasons(found) == {"bomb": R.TOO_BIG}


def test_bomb_in_a_tar_ends_the_archive_with_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as opened:
        opened.addfile(*_tarred("good.cif", GOOD.encode()))
        opened.addfile(*_tarred("bomb.bin", bytes(140 * 2**20)))
        opened.addfile(*_tarred("last.cif", GOOD.encode()))
    found = scan(path)
    assert _reasons(found) == {archive.REST: R.ARCHIVE_BOMB}
    assert "good" in [e.name for e in found.entries]


def test_many_small_members_beyond_the_limit_end_with_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for k in range(30):
            opened.writestr(f"{k:02d}.cif", GOOD)
    members = archive.unpack(path, lambda name: True, limits=archive.ArchiveLimits(members=20))
    assert len(members) == 21
    assert members[-1].reason == R.ARCHIVE_BOMB


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.xz"])
def test_archive_cut_short_gives_what_is_whole_and_a_refusal(tmp_path: Path, ending: str) -> None:
    import random

    path = tmp_path / f"a.{ending}"
    filler = random.Random(0).randbytes(200_000)  # does not pack
    with tarfile.open(path, f"w:{ending.partition('.')[2]}") as opened:
        opened.addfile(*_tarred("good.cif", GOOD.encode()))
        opened.addfile(*_tarred("filler.bin", filler))
        opened.addfile(*_tarred("last.cif", GOOD.encode()))
    path.write_bytes(path.read_bytes()[:150_000])
    assert _reasons(scan(path)) == {archive.REST: R.TRUNCATED}


def test_damaged_member_of_a_zip_costs_only_itself(tmp_path: Path) -> None:
    found = _zip(tmp_path / "a.zip", lambda opened: opened.writestr("bad.cif", cif(("Si1 Si 0 0 0",))))
    path = tmp_path / "b.zip"
    data = bytearray((tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        at = opened.getinfo("bad.cif").header_offset + 60
    data[at] ^= 0xFF
    path.write_bytes(data)
    assert not _reasons(found)
    assert _reasons(_with_good_neighbours(path)) == {"bad": R.TRUNCATED}


def test_names_of_any_kind_in_archives_are_kept_as_text(tmp_path: Path) -> None:
    strange = {"<img src=x>.cif": "<img src=x>", "x" * 300 + ".cif": "x" * 300, "a b/c d.cif": "a b/c d"}

    def fill(opened: tarfile.TarFile) -> None:
        for name in strange:
            opened.addfile(*_tarred(name, GOOD.encode()))
        opened.addfile(*_tarred("latin-\udcfc.cif", GOOD.encode()))
        opened.addfile(*_tarred("good.cif", GOOD.encode()))

    found = _tar(tmp_path / "a.tar.gz", fill)
    assert not _reasons(found)
    assert {e.name for e in found.entries} == {*strange.values(), r"latin-\xfc", "good", "good~2", "last"}


def test_mixed_case_of_all_hostile_files_in_one_folder_never_raises_anything_untyped(tmp_path: Path) -> None:
    for k, (content, _) in enumerate({**READ, **REFUSED}.values()):
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / f"{k:03d}.cif").write_bytes(data)
    found = scan(tmp_path)
    assert len(found) == len(READ) + len(REFUSED)
    assert len(_reasons(found)) == len(REFUSED)


def test_random_damage_is_never_an_untyped_failure() -> None:
    import random

    from promof_hpc.screen.cif import read_cif

    rng = random.Random(7)
    base = bytearray(cif(ROCKSALT, extra=["_chemical_formula_sum 'Mg O'", "_cell_formula_units_Z 4"]).encode())
    for _ in range(600):
        damaged = bytearray(base)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            (found,) = read_cif(bytes(damaged))
        except Refused:
            continue
        assert found.structure.counts == {"Mg": 4, "O": 4}
