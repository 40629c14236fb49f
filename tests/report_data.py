"""Builders of report content for tests: rows with chosen values, small real crystals."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from ase.build import bulk

from promof_hpc.report.data import BestStructure, Final, ReportData
from promof_hpc.screen.table import make_table
from promof_hpc.store.candidates import Entry
from promof_hpc.store.schema import Outcome, Row
from promof_hpc.structure import Structure

DONE = Row(
    "", Outcome.CONVERGED, charged=True, formula="C8", atoms=8, h_complete=1, volume_ang3=45.4, density_g_per_cm3=3.5,
    lcd_ang=6.0, pld_ang=4.0, pore_dimensionality=3, energy_ev_per_atom=-7.0, e_form_ev_per_atom=-0.2,
    e_rel_ev_per_atom=0.03, e_rel_percentile=40.0, volume_relaxed_ang3=46.0, volume_change=0.013, bonds_broken=0,
    lcd_relaxed_ang=6.1, pld_relaxed_ang=4.1, fmax_ev_per_ang=0.04, steps=20, force_calls=21, rank=0, host="node01",
)  # fmt: skip


def finished(key: str, **values: object) -> Row:
    """The row of a good structure, with some values changed."""
    return replace(DONE, evaluation_id=key, **values)


def diamond(stretch: float = 1.0) -> Structure:
    """Eight carbon atoms; every bond is 1.545 Å long times `stretch`."""
    atoms = bulk("C", cubic=True)
    atoms.set_cell(atoms.cell[:] * stretch, scale_atoms=True)
    return Structure.from_ase(atoms)


def report(names: Sequence[str], rows: Sequence[Row], refused: Sequence[Entry] = (), **content: object) -> ReportData:
    """A report on rows under names, every finished one with a diamond as its structure."""
    entries = [Entry(name, row.evaluation_id) for name, row in zip(names, rows, strict=True)]
    table = make_table([*entries, *refused], rows, "test")

    def finals() -> Iterator[Final]:
        return ((name, row, diamond(1.01)) for name, row in zip(names, rows, strict=True))

    given = {"title": "A report", "provenance": {}, "entries": table, "finals": finals, **content}
    return ReportData(**given)  # type: ignore[arg-type]


def best(name: str, row: Row) -> BestStructure:
    return BestStructure(name, row, diamond(), diamond(1.01))


def many(count: int, seed: int = 0) -> list[Row]:
    """Rows with random energies and pores, every tenth of them exploded."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, (energy, pore) in enumerate(zip(rng.gamma(2, 0.04, count), rng.gamma(3, 2, count), strict=True)):
        row = finished(f"{k:032x}", e_rel_ev_per_atom=float(energy), pld_ang=float(pore), pld_relaxed_ang=float(pore))
        rows.append(row if k % 10 else replace(row, outcome=Outcome.EXPLODED, reason=f"volume +{k} % at step {k}"))
    return rows
