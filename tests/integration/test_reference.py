"""`promof reference build` and its use: relaxed on the farm, fitted, grown, and refused to strangers."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ase.io import read, write

from promof_hpc.physics.energies import ReferenceSet

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "promof_hpc" / "data" / "demo"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def promof(*arguments, cwd, code=0):
    done = subprocess.run([sys.executable, "-m", "hpc.cli", *map(str, arguments)], cwd=cwd, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=500, check=False)  # fmt: skip
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A library of seven descriptions of one small MOF, a little strained each."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "mofs").mkdir()
    atoms = read(DEMO / "LIKFOB_clean.cif")
    for k in range(7):
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] * (1 + 0.002 * k), scale_atoms=True)
        write(folder / "mofs" / f"m{k}.cif", strained)
    promof("reference", "build", "mofs", "--run", "runs/ref", "--count", 6, cwd=folder)
    return folder


def test_a_reference_set_turns_energies_into_e_form_and_e_rel(place):
    reference = ReferenceSet.from_json((place / "runs/ref/reference.json").read_text())
    assert len(reference.mofs) == 6
    assert {"C", "H", "O", "Zn"} <= set(reference.elemental_ev_per_atom)
    assert "6 MOFs" in (place / "runs/ref/reference.md").read_text()
    use = ("--stages", "read,energy", "--set", "reference=runs/ref/reference.json")
    promof("screen", "mofs", "--run", "runs/use", *use, cwd=place)
    table = pd.read_parquet(place / "runs/use/report/table.parquet").set_index("name")
    assert table["e_rel_ev_per_atom"].abs().max() < 0.5  # unrelaxed, so a little above
    assert (table["e_form_ev_per_atom"] < 0).all()


def test_asked_for_more_it_grows_by_what_is_missing(place):
    before = {p: p.stat().st_mtime_ns for p in (place / "runs/ref/rounds").rglob("*.h5")}
    promof("reference", "build", "mofs", "--run", "runs/ref", "--count", 7, cwd=place)
    after = {p: p.stat().st_mtime_ns for p in (place / "runs/ref/rounds").rglob("*.h5")}
    assert before.items() <= after.items()
    assert len(ReferenceSet.from_json((place / "runs/ref/reference.json").read_text()).mofs) == 7


def test_the_reference_of_another_potential_is_refused(place):
    message = promof("evaluate", "mofs/m0.cif", "--potential", "chgnet-0.3.0", "--stages", "read,energy", "--set",
                     "reference=runs/ref/reference.json", cwd=place, code=2)  # fmt: skip
    assert "was made with sevennet-0" in message
    assert "promof reference build" in message
