"""`promof evaluate` on inputs that break other tools: the right value or a typed refusal, never another crystal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "data" / "cases"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def evaluate(*arguments, code=0):
    """Rows of `promof evaluate ... --json` by name."""
    command = [sys.executable, "-m", "hpc.cli", "evaluate", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=CASES, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def pores():
    """Every case that is about reading and pores, in one call."""
    files = [*sorted(CASES.glob("C029*.cif")), *sorted(CASES.glob("C003*.cif")), *sorted(CASES.glob("C000*.cif")),
             CASES / "C007_stale_symmetry_name.cif", CASES / "C009_uncertainties.cif",
             CASES / "C021_solvent_in_pores.cif"]  # fmt: skip
    return evaluate(*files, "--stages", "read,validity,pores")


@pytest.mark.parametrize(("name", "lcd", "pld"), [
    ("C029_sc_carbon", 13.9205, 10.7421), ("C029_sc_carbon_skewed", 13.9205, 10.7421),
    ("C029_sc_carbon_2x1x1", 13.9205, 10.7421), ("C029_bcc_carbon_primitive", 7.7803, 7.2066),
])  # fmt: skip
def test_pores_of_closed_forms(pores, name, lcd, pld):
    assert pores[name]["lcd_ang"] == pytest.approx(lcd, abs=0.01)
    assert pores[name]["pld_ang"] == pytest.approx(pld, abs=0.01)


@pytest.mark.parametrize(("name", "atoms", "volume", "density", "lcd", "pld"), [
    ("C000_base_pmx1", 106, 4328.4, 0.591, 15.10, 7.92), ("C000_base_pmx2", 38, 724.4, 0.954, 7.20, 7.0),
    ("C000_base_pmx3", 10, 209.1, 1.865, 2.10, 1.36),
])  # fmt: skip
def test_base_crystals_have_their_known_values(pores, name, atoms, volume, density, lcd, pld):
    row = pores[name]
    assert row["atoms"] == atoms
    assert row["volume_ang3"] == pytest.approx(volume, abs=0.1)
    assert row["density_g_per_cm3"] == pytest.approx(density, abs=2e-3)
    assert row["lcd_ang"] == pytest.approx(lcd, abs=0.02)
    assert row["pld_ang"] == pytest.approx(pld, abs=0.05)


@pytest.mark.parametrize("name", ["C003_hm_only", "C003_hm_only_old_name"])
def test_symmetry_by_name_only_gives_the_whole_crystal(pores, name):
    row = pores[name]
    assert row["formula"] == "C48H24O26Zn8"
    assert row["volume_ang3"] == pytest.approx(4328.4, abs=0.5)
    assert row["lcd_ang"] == pytest.approx(15.10, abs=0.02)


def test_a_stale_symmetry_name_does_not_double_the_atoms(pores):
    row = pores["C007_stale_symmetry_name"]
    assert row["atoms"] == 76
    assert "overlap" not in row["checks_failed"]


def test_uncertainties_and_missing_occupancies_lose_no_atoms(pores):
    assert pores["C009_uncertainties"]["atoms"] == 38
    assert pores["C009_uncertainties"]["lcd_ang"] == pytest.approx(pores["C000_base_pmx2"]["lcd_ang"], abs=1e-3)


def test_solvent_in_the_pores_is_named(pores):
    row = pores["C021_solvent_in_pores"]
    assert row["atoms"] == 115
    assert "lone_molecule" in row["checks_failed"]
    assert "H2O" in row["checks_failed"]
    assert row["lcd_ang"] == pytest.approx(8.37, abs=0.1)
    # a grid of 0.15 Å gives 4.9, of 0.06 Å 5.05, of 0.0375 Å 5.07: lower bounds of the exact 5.11
    assert 5.07 < row["pld_ang"] < 5.13


@pytest.mark.parametrize("potential", ["sevennet-0", "chgnet-0.3.0", "lennard-jones"])
def test_a_left_handed_cell_is_the_same_crystal_for_every_potential(potential):
    rows = evaluate("C014_left_handed.extxyz", "C014_right_handed.extxyz", "--stages", "read,energy",
                    "--potential", potential)  # fmt: skip
    left, right = rows["C014_left_handed"], rows["C014_right_handed"]
    assert left["evaluation_id"] == right["evaluation_id"]
    assert left["energy_ev_per_atom"] == right["energy_ev_per_atom"]
    assert left["volume_ang3"] == pytest.approx(724.4, abs=0.1)
    if potential == "sevennet-0":
        assert left["energy_ev_per_atom"] == pytest.approx(-7.042495, abs=1e-4)


def test_bad_members_neither_kill_nor_poison_the_good_ones():
    rows = evaluate("C025_bad_among_good.extxyz", "--stages", "read,energy", code=1)
    assert len(rows) == 6
    outcomes = [row["outcome"] for row in rows.values()]
    assert sorted(outcomes) == ["measured"] * 3 + ["refused"] * 3
    reasons = " ".join(row["reason"] for row in rows.values())
    for word in ("not_finite", "overlap", "Og"):
        assert word in reasons


def test_a_wrong_lattice_with_zero_forces_is_relaxed_and_the_output_says_how():
    row = evaluate("C026_wrong_lattice_zero_force.extxyz")["C026_wrong_lattice_zero_force"]
    assert row["outcome"] == "converged"
    assert row["steps"] >= 2
    assert row["energy_start_ev_per_atom"] == pytest.approx(-5.9014, abs=1e-3)
    assert row["energy_ev_per_atom"] == pytest.approx(-5.9775, abs=1e-3)
    per_formula = row["volume_relaxed_ang3"] * 2 / row["atoms"]
    assert (4 * per_formula) ** (1 / 3) == pytest.approx(4.256, abs=5e-3)
    command = [sys.executable, "-m", "hpc.cli", "evaluate", "C026_wrong_lattice_zero_force.extxyz"]
    text = subprocess.run(command, env=ENVIRONMENT, cwd=CASES, capture_output=True, text=True, timeout=300, check=True)
    assert "stress <= 0.2 GPa" in text.stdout
