"""Our relaxer with our SevenNet-0 against ASE's LBFGS with sevenn's own calculator, on real MOFs."""

import random
import warnings

import numpy as np
import pytest
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS

from promof_hpc.chem.bonds import bonds, compare_bonds
from promof_hpc.chem.validity import check
from promof_hpc.config import RelaxSettings
from promof_hpc.errors import Refused
from promof_hpc.physics.registry import load_potential
from promof_hpc.physics.relax import relax
from promof_hpc.screen.library import scan
from promof_hpc.structure import Structure


@pytest.fixture(scope="module")
def potential():
    return load_potential("sevennet-0")


@pytest.fixture(scope="module")
def calculator():
    from sevenn.calculator import SevenNetCalculator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SevenNetCalculator("7net-0", device="cpu")


def _compare(structure, potential, calculator, max_steps):
    ours = relax([structure], potential, RelaxSettings(max_steps=max_steps, fmax_ev_per_ang=0.05, stress_gpa=0.2))[0]
    atoms = structure.to_ase()
    atoms.calc = calculator
    # the same number of steps: the two stop by slightly different rules (force and stress against one number for both)
    LBFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.2).run(fmax=0.0, steps=ours.steps)
    theirs = Structure.from_ase(atoms)
    n = len(structure)
    assert ours.last.energy / n == pytest.approx(atoms.get_potential_energy() / n, abs=1e-3)
    mine, his = bonds(ours.structure), bonds(theirs)
    assert {*zip(mine.i.tolist(), mine.j.tolist(), map(tuple, mine.shift.tolist()), strict=True)} == {
        *zip(his.i.tolist(), his.j.tolist(), map(tuple, his.shift.tolist()), strict=True)
    }
    assert compare_bonds(structure, ours.structure).broken == compare_bonds(structure, theirs).broken
    # single precision and a hundred steps along flat directions: the cells agree to a percent, the energies to 1 meV
    assert np.allclose(np.linalg.norm(ours.structure.cell, axis=1), np.linalg.norm(theirs.cell, axis=1), rtol=0.01)
    return ours


def test_a_small_real_mof_relaxes_as_with_ase(potential, calculator):
    entry = next(e for e in scan("demo").entries if e.name == "LIKFOB_clean")
    _compare(entry.read(), potential, calculator, 25)


def _drawn(count=8):
    """H-complete MOFs of at most 80 atoms, drawn with a seed."""
    entries = list(scan("coremof:2019-ASR").entries)
    random.Random(2026).shuffle(entries)
    for entry in entries:
        try:
            structure = entry.read()
        except Refused:
            continue
        if len(structure) <= 80 and (found := check(structure)).h_complete and not found.failed:
            yield pytest.param(structure, id=entry.name)
            count -= 1
        if not count:
            return


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_known_and_drawn_mofs_relax_as_with_ase(potential, calculator):
    named = {e.name: e for e in scan("demo").entries}
    chosen = [(n, named[n].read()) for n in ("MOF-5_EDUSIF_clean", "HKUST-1_FIQCEN_clean")]
    chosen += [(p.id, p.values[0]) for p in _drawn()]
    assert len(chosen) == 10
    for name, structure in chosen:
        ours = _compare(structure, potential, calculator, 100)
        energy = ours.last.energy / len(structure)
        print(f"{name}: {len(structure)} atoms, {ours.outcome} after {ours.steps} steps, {energy:.4f} eV/atom")
