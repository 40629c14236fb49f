from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import spglib

from promof_hpc.errors import Refused
from promof_hpc.screen.cif import block_names, read_cif
from promof_hpc.screen.contacts import same_atoms
from promof_hpc.screen.refusals import ReadLimits, ReadReason
from promof_hpc.structure import Structure, canonical, primitive
from tests.cif_text import F_TRANSLATIONS, ROCKSALT, cif

CASES = Path(__file__).parents[1] / "data" / "cases"


def read(text: str | bytes) -> Structure:
    (found,) = read_cif(text.encode() if isinstance(text, str) else text)
    return found.structure


def case(name: str) -> Structure:
    return read((CASES / name).read_bytes())


def reason(text: str | bytes) -> ReadReason:
    with pytest.raises(Refused) as caught:
        read(text)
    assert caught.value.detail
    return ReadReason(caught.value.reason)


@pytest.mark.parametrize(
    ("name", "formula", "volume", "density"),
    [
        ("C000_base_pmx1.cif", "C48H24O26Zn8", 4328.4, 0.591),
        ("C000_base_pmx2.cif", "C16H10Al2O10", 724.4, 0.954),
        ("C000_base_pmx3.cif", "C4N4Zn2", 209.1, 1.865),
        ("C003_hm_only.cif", "C192H96O104Zn32", 17313.7, 0.591),
        ("C003_hm_only_old_name.cif", "C192H96O104Zn32", 17313.7, 0.591),
        ("C007_stale_symmetry_name.cif", "C32H20Al4O20", 1448.9, 0.954),
        ("C009_uncertainties.cif", "C16H10Al2O10", 724.4, 0.954),
        ("C021_solvent_in_pores.cif", "C48H30O29Zn8", 4328.4, 0.611),
        ("C029_sc_carbon.cif", "C", 1000.0, 0.020),
        ("C029_bcc_carbon_primitive.cif", "C", 500.0, 0.040),
    ],
)
def test_case_files_are_read_to_their_known_contents(name: str, formula: str, volume: float, density: float) -> None:
    structure = case(name)
    assert structure.formula == formula
    assert structure.volume == pytest.approx(volume, abs=0.15)
    assert structure.density == pytest.approx(density, abs=1e-3)


@pytest.mark.parametrize("name", ["C003_hm_only.cif", "C003_hm_only_old_name.cif"])
def test_space_group_name_alone_gives_the_listed_crystal(name: str) -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.io.ase import AseAtomsAdaptor

    reduced = primitive(case(name))
    assert len(reduced) == 106
    ours, listed = (AseAtomsAdaptor.get_structure(s.to_ase()) for s in (reduced, case("C000_base_pmx1.cif")))
    assert StructureMatcher(primitive_cell=False).get_rms_dist(ours, listed)[1] < 1e-3


def test_identity_operators_win_over_a_stale_name_and_atoms_stay_as_listed() -> None:
    rows = [
        line.split()[2:5] for line in (CASES / "C007_stale_symmetry_name.cif").read_text().splitlines()[18:] if line
    ]
    assert np.allclose(case("C007_stale_symmetry_name.cif").fractional, np.array(rows, float))


def test_stale_name_is_mentioned_in_the_notes() -> None:
    (found,) = read_cif(CASES / "C007_stale_symmetry_name.cif")
    assert "I m a m" in found.notes[0]


def test_uncertainties_and_unknown_occupancies_change_nothing() -> None:
    noisy, clean = case("C009_uncertainties.cif"), case("C000_base_pmx2.cif")
    assert np.array_equal(noisy.numbers, clean.numbers)
    assert np.allclose(noisy.cell, clean.cell)
    assert np.allclose(noisy.fractional, clean.fractional, atol=1e-9)


def test_sc_carbon_has_one_primitive_cell_in_three_descriptions() -> None:
    names = ("C029_sc_carbon.cif", "C029_sc_carbon_2x1x1.cif", "C029_sc_carbon_skewed.cif")
    cells = [canonical(primitive(case(n))).cell for n in names]
    for cell in cells:
        assert np.allclose(cell, 10 * np.eye(3), atol=1e-4)


def spglib_operators(hall_number: int) -> list[str]:
    """Operators from spglib's database as CIF text: the oracle for names, which gemmi's table resolves."""
    data = spglib.get_symmetry_from_database(hall_number)
    triplets = []
    for rotation, translation in zip(data["rotations"], data["translations"], strict=True):
        parts = []
        for row, shift in zip(rotation, translation, strict=True):
            terms = "".join(f"{'+' if c > 0 else '-'}{axis}" for c, axis in zip(row, "xyz", strict=True) if c)
            parts.append(f"{terms}+{round(shift * 24)}/24" if round(shift * 24) else terms)
        triplets.append(",".join(parts))
    return triplets


# number in Hall's order, name as files write it, cell that fits
GROUPS = [
    (2, "P -1", "9 10 11 80 95 105"),
    (81, "P 21/c", "9 10 11 90 105 90"),
    (82, "P2(1)/n", "9 10 11 90 105 90"),
    (73, "P 1 2/n 1", "9 10 11 90 105 90"),
    (112, "P 21 21 2", "9 10 11 90 90 90"),
    (115, "P_21_21_21", "9 10 11 90 90 90"),
    (290, "Pbca", "9 10 11 90 90 90"),
    (304, "Cmce", "9 10 11 90 90 90"),
    (427, "I 41/a m d :2", "9 9 14 90 90 90"),
    (458, "R -3 m H", "12 12 20 90 90 120"),
    (458, "R-3m", "12 12 20 90 90 120"),
    (459, "R-3m", "14 14 14 80 80 80"),
    (488, "P 63/m m c", "12 12 20 90 90 120"),
    (523, "Fm3m", "18 18 18 90 90 90"),
    (526, "F d -3 m Z", "18 18 18 90 90 90"),
    (530, "I a -3 d", "14 14 14 90 90 90"),
]


@pytest.mark.parametrize(("hall_number", "name", "cell"), GROUPS, ids=[f"{g[0]}-{g[1]}" for g in GROUPS])
def test_name_alone_and_operators_alone_give_one_crystal(hall_number: int, name: str, cell: str) -> None:
    info = spglib.get_spacegroup_type(hall_number)
    site = ("Zn1 Zn 0.05 0.17 0.29",)
    by_operators = read(cif(site, cell=cell, operators=spglib_operators(hall_number)))
    by_name = read(cif(site, cell=cell, operators=(), extra=[f"_symmetry_space_group_name_H-M '{name}'"]))
    by_hall = read(cif(site, cell=cell, operators=(), extra=[f"_space_group_name_Hall '{info.hall_symbol}'"]))
    assert len(by_operators) == len(spglib_operators(hall_number))
    assert same_atoms(by_operators, by_name, 1e-6)
    assert same_atoms(by_operators, by_hall, 1e-6)
    found = spglib.get_spacegroup((by_name.cell, by_name.fractional, by_name.numbers), symprec=1e-3)
    assert f"({info.number})" in found


def test_site_on_a_special_position_printed_roughly_is_one_atom_put_right() -> None:
    structure = read(
        cif(
            ("Zn1 Zn 0.333 0.667 0.25", "C1 C 0 0 0"),
            cell="12 12 20 90 90 120",
            operators=(),
            extra=["_symmetry_space_group_name_H-M 'P 63/m m c'"],
        )
    )
    assert structure.counts == {"Zn": 2, "C": 2}
    zinc = structure.fractional[structure.numbers == 30]
    assert np.allclose(np.sort(zinc[:, 0]), [1 / 3, 2 / 3], atol=1e-6)


def test_asymmetric_unit_under_an_identity_list_is_refused_not_read_as_p1() -> None:
    text = (CASES / "C003_hm_only.cif").read_text()
    doubtful = text.replace("loop_\n_atom", "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\nloop_\n_atom", 1)
    assert doubtful != text
    assert reason(doubtful) is ReadReason.CONTRADICTION


def test_full_cell_under_an_identity_list_with_its_true_name_is_read() -> None:
    atoms = [f"Mg{k} Mg {p}" for k, p in enumerate(("0 0 0", "0 .5 .5", ".5 0 .5", ".5 .5 0"))]
    atoms += [f"O{k} O {p}" for k, p in enumerate((".5 .5 .5", ".5 0 0", "0 .5 0", "0 0 .5"))]
    text = cif(atoms, operators=("x,y,z",), extra=["_symmetry_space_group_name_H-M 'F m -3 m'"])
    assert read(text).counts == {"Mg": 4, "O": 4}


def test_formula_decides_between_operators_and_name() -> None:
    extra = ["_symmetry_space_group_name_H-M 'F m -3 m'", "_chemical_formula_sum 'Mg O'", "_cell_formula_units_Z 1"]
    alone = cif(operators=("x,y,z",), extra=extra)
    assert read(alone).counts == {"Mg": 1, "O": 1}
    assert reason(alone.replace("units_Z 1", "units_Z 4")) is ReadReason.CONTRADICTION


def test_name_with_two_origins_is_settled_by_contacts_or_refused() -> None:
    name = ["_symmetry_space_group_name_H-M 'F d -3 m'"]
    silicon = cif(("Si1 Si 0.125 0.125 0.125",), cell="5.431 5.431 5.431 90 90 90", operators=(), extra=name)
    assert read(silicon.replace("0.125 0.125 0.125", "0 0 0").replace("F d -3 m", "F d -3 m:1")).counts == {"Si": 8}
    assert reason(silicon) is ReadReason.SYMMETRY_UNKNOWN
    weighed = silicon.replace("data_x\n", "data_x\n_exptl_crystal_density_diffrn 2.329\n")
    assert read(weighed).counts == {"Si": 8}


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("_chemical_formula_sum", "'Mg O2'"),
        ("_chemical_formula_sum", "'Mg O H'"),
        ("_cell_formula_units_Z", "2"),
        ("_cell_volume", "148.2"),
        ("_exptl_crystal_density_diffrn", "1.80"),
    ],
)
def test_declared_property_that_contradicts_the_atoms_is_refused(tag: str, value: str) -> None:
    right = {
        "_chemical_formula_sum": "'Mg O'",
        "_cell_formula_units_Z": "4",
        "_cell_volume": "74.088(3)",
        "_exptl_crystal_density_diffrn": "3.61",
    }
    assert read(cif(extra=[f"{t} {v}" for t, v in right.items()])).counts == {"Mg": 4, "O": 4}
    assert reason(cif(extra=[f"{t} {v}" for t, v in {**right, tag: value}.items()])) is ReadReason.CONTRADICTION


def test_second_reader_that_sees_other_atoms_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    from promof_hpc.screen import cif_block

    monkeypatch.setattr(cif_block, "_from_type", lambda symbol: {"Mg": 12, "O": 16}[symbol])  # our reader is wrong
    assert reason(cif()) is ReadReason.SECOND_READER


def test_several_blocks_are_separate_structures_and_blocks_without_atoms_none() -> None:
    text = "data_global\n_journal_name 'none'\n" + cif(block="a") + cif(ROCKSALT[:1], block="b") + cif(block="a")
    assert block_names(text.encode()) == ["a", "b", "a~2"]
    found = read_cif(text.encode())
    assert [f.block for f in found] == ["a", "b", "a~2"]
    assert [f.structure.formula for f in found] == ["Mg4O4", "Mg4", "Mg4O4"]
    (second,) = read_cif(text.encode(), block="b")
    assert second.structure.formula == "Mg4"


def test_no_cut_of_a_file_gives_other_atoms_than_a_prefix_of_its_rows() -> None:
    """A CIF cut at any byte is refused, or has exactly the rows that are complete."""
    data = (CASES / "C000_base_pmx2.cif").read_bytes()
    whole = read(data)
    start = data.index(b"Al1 Al")
    refused = 0
    for end in random.Random(1).sample(range(1, len(data)), 400):
        try:
            part = read(data[:end])
        except Refused:
            refused += 1
            continue
        assert end > start
        rows = len(part)
        assert np.array_equal(part.numbers, whole.numbers[:rows])
        assert np.array_equal(part.fractional, whole.fractional[:rows]), data[end - 20 : end]
    assert refused > 350


def test_five_thousand_atoms_are_read_and_a_larger_cell_is_refused() -> None:
    n = 5000
    grid = [(i % 20, i // 20 % 20, i // 400) for i in range(n)]
    atoms = [f"C{k} C {a / 20} {b / 20} {c / 13}" for k, (a, b, c) in enumerate(grid)]
    text = cif(atoms, cell="40 40 26 90 90 90", operators=("x,y,z",))
    assert len(read(text)) == n
    with pytest.raises(Refused) as caught:
        read_cif(text.encode(), limits=ReadLimits(atoms=4999))
    assert caught.value.reason is ReadReason.TOO_BIG


def test_listed_translations_must_close() -> None:
    assert reason(cif(operators=F_TRANSLATIONS[:3])) is ReadReason.SYMMETRY_UNKNOWN
