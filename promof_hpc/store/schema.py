"""What one evaluation says: typed outcomes and the columns of a result row, with units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np

from promof_hpc.store.shard import Column
from promof_hpc.structure import Structure

NAN = math.nan
UNKNOWN = -1  # an integer that was not computed


class Outcome(StrEnum):
    """How an evaluation ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    EXPLODED = "exploded"
    COLLAPSED = "collapsed"
    DISCONNECTED = "disconnected"
    NAN = "nan"
    OOM = "oom"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    MEASURED = "measured"  # scored as it came, without relaxation
    FILTERED = "filtered"  # a threshold stopped it before the potential
    REFUSED = "refused"  # cannot be scored by this potential, with the reason


FAILED = frozenset(
    {Outcome.EXPLODED, Outcome.COLLAPSED, Outcome.DISCONNECTED, Outcome.NAN, Outcome.OOM, Outcome.TIMED_OUT}
    | {Outcome.CRASHED}
)
TRIPWIRE = frozenset({Outcome.NAN, Outcome.OOM, Outcome.CRASHED})  # more than half of the last 50 stops a job


def _column(meaning: str, unit: str = "", timing: bool = False, derived: bool = False) -> dict[str, Any]:
    return {"meaning": meaning, "unit": unit, "timing": timing, "derived": derived}


@dataclass
class Row:
    """One evaluation. Floats that were not computed are NaN, integers -1, text empty.

    Derived columns follow from the others and a reference set; shards do not store them, `energies.score` fills them.
    """

    evaluation_id: str = field(metadata=_column("digest of structure, potential, weights and settings"))
    outcome: Outcome = field(metadata=_column("how the evaluation ended"))
    reason: str = field(default="", metadata=_column("why, in words, where the outcome needs them"))
    charged: bool = field(default=False, metadata=_column("the potential was called: counts against the budget"))
    formula: str = field(default="", metadata=_column("Hill formula of the cell"))
    atoms: int = field(default=UNKNOWN, metadata=_column("atoms in the cell"))
    framework_class: str = field(default="", metadata=_column("discrete, rod, interpenetrated, ... or why unknown"))
    checks_failed: str = field(default="", metadata=_column("validity checks that failed, separated by '; '"))
    h_complete: int = field(default=UNKNOWN, metadata=_column("1 if no hydrogen seems to be missing"))
    volume_ang3: float = field(default=NAN, metadata=_column("cell volume as read", "Å³"))
    density_g_per_cm3: float = field(default=NAN, metadata=_column("mass density as read", "g/cm³"))
    lcd_ang: float = field(default=NAN, metadata=_column("largest cavity diameter as read", "Å"))
    pld_ang: float = field(default=NAN, metadata=_column("pore limiting diameter as read", "Å"))
    pore_dimensionality: int = field(default=UNKNOWN, metadata=_column("directions in which the pores run through"))
    energy_start_ev_per_atom: float = field(default=NAN, metadata=_column("potential energy as read", "eV/atom"))
    energy_ev_per_atom: float = field(default=NAN, metadata=_column("potential energy at the end", "eV/atom"))
    e_form_ev_per_atom: float = field(
        default=NAN, metadata=_column("energy against the elements", "eV/atom", derived=True)
    )
    e_rel_ev_per_atom: float = field(
        default=NAN, metadata=_column("energy above real MOFs' baseline", "eV/atom", derived=True)
    )
    e_rel_percentile: float = field(
        default=NAN, metadata=_column("of e_rel among the reference MOFs", "%", derived=True)
    )
    energy_note: str = field(default="", metadata=_column("why e_form or e_rel is missing", derived=True))
    fmax_start_ev_per_ang: float = field(default=NAN, metadata=_column("largest force as read", "eV/Å"))
    fmax_ev_per_ang: float = field(default=NAN, metadata=_column("largest force at the end", "eV/Å"))
    stress_gpa: float = field(default=NAN, metadata=_column("largest stress component at the end", "GPa"))
    steps: int = field(default=UNKNOWN, metadata=_column("relaxation steps"))
    force_calls: int = field(default=0, metadata=_column("calls of the potential for this structure"))
    volume_relaxed_ang3: float = field(default=NAN, metadata=_column("cell volume at the end", "Å³"))
    volume_change: float = field(default=NAN, metadata=_column("relative change of the volume"))
    bonds_broken: int = field(default=UNKNOWN, metadata=_column("bonds lost in the relaxation"))
    lcd_relaxed_ang: float = field(default=NAN, metadata=_column("largest cavity diameter at the end", "Å"))
    pld_relaxed_ang: float = field(default=NAN, metadata=_column("pore limiting diameter at the end", "Å"))
    pore_dimensionality_relaxed: int = field(default=UNKNOWN, metadata=_column("as above, at the end"))
    wall_s: float = field(default=NAN, metadata=_column("wall time of this evaluation", "s", timing=True))
    rank: int = field(default=UNKNOWN, metadata=_column("MPI rank that did it", timing=True))
    host: str = field(default="", metadata=_column("machine that did it", timing=True))


@dataclass(frozen=True)
class Candidate:
    """A structure to be evaluated, under the id it is charged to."""

    evaluation_id: str
    structure: Structure


@dataclass(frozen=True)
class Evaluation:
    """A row and the structure that the evaluation ended with."""

    row: Row
    structure: Structure


FIELDS = fields(Row)
STORED = tuple(f for f in FIELDS if not f.metadata["derived"])
TIMING_COLUMNS = tuple(f.name for f in FIELDS if f.metadata["timing"])
TEXT_COLUMNS = tuple(f.name for f in FIELDS if f.type in ("str", "Outcome"))


def to_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """The stored columns of rows, one array (or list of text) each, in row order."""
    dtypes = {"int": np.int64, "float": np.float64, "bool": np.bool_}
    columns: dict[str, Column] = {}
    for f in STORED:
        values = [getattr(row, f.name) for row in rows]
        columns[f.name] = [str(v) for v in values] if f.name in TEXT_COLUMNS else np.array(values, dtypes[str(f.type)])
    return columns


def from_columns(columns: Mapping[str, Column]) -> list[Row]:
    """The inverse of `to_columns`."""
    values = {f.name: columns[f.name] for f in STORED}
    rows = []
    for k in range(len(values["evaluation_id"])):
        cells: dict[str, Any] = {n: v[k] if isinstance(v, list) else v[k].item() for n, v in values.items()}
        cells["outcome"] = Outcome(cells["outcome"])
        rows.append(Row(**cells))
    return rows
