"""The one door to physics: a batch of structures in, typed rows out. Farms and strategies know nothing else."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np

from promof_hpc.config import EvaluationSettings, Stage
from promof_hpc.errors import Refused
from promof_hpc.physics.potential import Potential
from promof_hpc.physics.relax import (
    Relaxation,
    compute_or_halve,
    largest_force,
    largest_stress_gpa,
    relax,
)
from promof_hpc.store.schema import Candidate, Evaluation, Outcome, Row
from promof_hpc.structure import Structure

OVERLAP_ANG = 0.6  # two nuclei closer than this are no structure; shorter than H-H (0.74 Å)


class Unscorable(StrEnum):
    """Why a potential cannot score a structure."""

    UNSUPPORTED_ELEMENT = "unsupported_element"
    TOO_LARGE = "too_large"
    OVERLAP = "overlap"


def evaluation_id(structure: Structure, potential: Potential, settings: EvaluationSettings) -> str:
    """Digest of everything that the result depends on: stored arrays, potential, weights, settings (32 hex digits)."""
    parts = (structure.digest(), potential.id, potential.weights_sha256, settings.digest())
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def evaluate(
    batch: Sequence[Candidate],
    settings: EvaluationSettings,
    potential: Potential,
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """Take each structure through the stages of `settings`.

    Args:
        heartbeat: called often; whatever it raises ends the batch without a result.

    Returns:
        one evaluation a candidate, in order; a structure's own trouble becomes its outcome, never an exception.
    """
    begin = time.perf_counter()
    rows = [_describe(c, settings, potential, heartbeat) for c in batch]
    ends = [c.structure for c in batch]
    ready = [k for k, row in enumerate(rows) if row.outcome is Outcome.MEASURED]
    if Stage.RELAX in settings.stages:
        _relax_group(batch, rows, ends, ready, settings, potential, heartbeat)
    elif Stage.ENERGY in settings.stages:
        _score_group(batch, rows, ready, potential)
    for row in rows:
        row.wall_s = round(row.wall_s if row.wall_s == row.wall_s else time.perf_counter() - begin, 3)
    return [Evaluation(row, end) for row, end in zip(rows, ends, strict=True)]


def crashed(candidate: Candidate, reason: str, outcome: Outcome = Outcome.CRASHED) -> Evaluation:
    """The row of a structure that took its process down (charged: its potential calls were spent)."""
    s = candidate.structure
    return Evaluation(Row(candidate.evaluation_id, outcome, reason, True, s.formula, len(s)), s)


def _describe(
    candidate: Candidate, settings: EvaluationSettings, potential: Potential, heartbeat: Callable[[], None]
) -> Row:
    """The cheap stages of one structure; the outcome is `measured` while nothing stands against going on."""
    s = candidate.structure
    row = Row(candidate.evaluation_id, Outcome.MEASURED, formula=s.formula, atoms=len(s))
    row.volume_ang3, row.density_g_per_cm3 = s.volume, s.density
    heartbeat()
    try:
        refuse_unscorable(s, settings, potential)
        if Stage.VALIDITY in settings.stages:
            _check_validity(row, s)
        _apply_gates(row, settings)
        if row.outcome is Outcome.MEASURED and Stage.PORES in settings.stages:
            from promof_hpc.physics.pores import pores

            found = pores(s)
            row.lcd_ang, row.pld_ang, row.pore_dimensionality = found.lcd_ang, found.pld_ang, found.dimensionality
            _apply_gates(row, settings)
    except Refused as refusal:
        row.outcome, row.reason = Outcome.REFUSED, f"{refusal.reason}: {refusal.detail}"
    except Exception as error:
        row.outcome, row.reason = Outcome.CRASHED, f"{type(error).__name__}: {error}"
    return row


def refuse_unscorable(s: Structure, settings: EvaluationSettings, potential: Potential) -> None:
    """Turn away what the potential cannot score.

    Raises:
        Refused: an element it was not trained on, too many atoms, or overlapping nuclei.
    """
    from ase.data import chemical_symbols

    if Stage.RELAX not in settings.stages and Stage.ENERGY not in settings.stages:
        return
    foreign = sorted(set(s.numbers.tolist()) - potential.elements)
    if foreign:
        names = ", ".join(chemical_symbols[z] for z in foreign)
        raise Refused(Unscorable.UNSUPPORTED_ELEMENT, f"{potential.id} was not trained on {names}")
    if potential.max_atoms is not None and len(s) > potential.max_atoms:
        raise Refused(Unscorable.TOO_LARGE, f"{len(s)} atoms, {potential.id} takes {potential.max_atoms}")
    distance = shortest_distance(s)
    if distance < OVERLAP_ANG:
        raise Refused(Unscorable.OVERLAP, f"two atoms are {distance:.2f} Å apart")


def shortest_distance(s: Structure) -> float:
    """Shortest distance between two atoms, images included, in Å; at most 2 Å is looked for (inf beyond)."""
    from matscipy.neighbours import neighbour_list

    distances = neighbour_list("d", positions=s.positions, cell=s.cell, pbc=[True] * 3, cutoff=2.0)
    return float(np.min(distances, initial=np.inf))


def _check_validity(row: Row, s: Structure) -> None:
    from promof_hpc.chem.decompose import node_class
    from promof_hpc.chem.validity import check

    checks = check(s)
    row.h_complete = int(checks.h_complete)
    row.checks_failed = "; ".join(checks.failed)
    row.framework_class = node_class(s)


def _apply_gates(row: Row, settings: EvaluationSettings) -> None:
    """Stop at the first threshold that fails, of those whose column is known by now."""
    for gate in settings.where:
        value = float(getattr(row, gate.column))
        if value == -1 or np.isnan(value):
            continue
        if not gate.holds(value) and row.outcome is Outcome.MEASURED:
            row.outcome, row.reason = Outcome.FILTERED, f"{gate.column} is {value:.4g}, asked for {gate}"


def _relax_group(
    batch: Sequence[Candidate],
    rows: list[Row],
    ends: list[Structure],
    ready: list[int],
    settings: EvaluationSettings,
    potential: Potential,
    heartbeat: Callable[[], None],
) -> None:
    """Relax the members `ready`, in one lockstep where the potential is faster for many."""
    groups = [ready] if potential.batched else [[k] for k in ready]
    for group in groups:
        begin = time.perf_counter()
        try:
            relaxations = relax([batch[k].structure for k in group], potential, settings.relax, heartbeat)
        except Exception as error:
            if len(group) > 1:  # find the culprit: one after the other
                for k in group:
                    _relax_group(batch, rows, ends, [k], settings, potential, heartbeat)
                continue
            k = group[0]
            rows[k] = replace(rows[k], outcome=Outcome.CRASHED, charged=True, reason=f"{type(error).__name__}: {error}")
            continue
        for k, relaxation in zip(group, relaxations, strict=True):
            _take_relaxation(rows[k], relaxation, batch[k].structure)
            ends[k] = relaxation.structure
            if Stage.PORES in settings.stages and relaxation.outcome in (Outcome.CONVERGED, Outcome.MAX_STEPS):
                _measure_end(rows[k], relaxation.structure)
            rows[k].wall_s = time.perf_counter() - begin


def _take_relaxation(row: Row, relaxation: Relaxation, before: Structure) -> None:
    from promof_hpc.chem.bonds import compare_bonds

    row.outcome, row.reason, row.charged = relaxation.outcome, relaxation.reason, True
    row.steps, row.force_calls = relaxation.steps, relaxation.force_calls
    if relaxation.start is None or relaxation.last is None:
        return
    n, after = len(before), relaxation.structure
    row.energy_start_ev_per_atom = relaxation.start.energy / n
    row.fmax_start_ev_per_ang = largest_force(relaxation.start)
    row.energy_ev_per_atom = relaxation.last.energy / n
    row.fmax_ev_per_ang = largest_force(relaxation.last)
    row.stress_gpa = largest_stress_gpa(relaxation.last)
    row.volume_relaxed_ang3, row.volume_change = after.volume, after.volume / before.volume - 1.0
    if row.outcome in (Outcome.CONVERGED, Outcome.MAX_STEPS):
        change = compare_bonds(before, after)
        row.bonds_broken = change.broken
        if change.disconnected:
            row.outcome, row.reason = Outcome.DISCONNECTED, change.reason


def _measure_end(row: Row, end: Structure) -> None:
    from promof_hpc.physics.pores import pores

    try:
        found = pores(end)
    except Exception as error:
        row.reason = f"{row.reason}; pores of the relaxed structure: {type(error).__name__}: {error}".strip("; ")
        return
    row.lcd_relaxed_ang, row.pld_relaxed_ang = found.lcd_ang, found.pld_ang
    row.pore_dimensionality_relaxed = found.dimensionality


def _score_group(batch: Sequence[Candidate], rows: list[Row], ready: list[int], potential: Potential) -> None:
    """Single points of the members `ready`."""
    groups = [ready] if potential.batched else [[k] for k in ready]
    for group in groups:
        predictions = compute_or_halve([batch[k].structure for k in group], potential) if group else []
        for k, prediction in zip(group, predictions, strict=True):
            row = rows[k]
            row.charged, row.force_calls = True, 1
            if prediction is None:
                row.outcome, row.reason = Outcome.OOM, "does not fit in the device's memory"
            elif not np.isfinite(prediction.energy):
                row.outcome, row.reason = Outcome.NAN, "the potential returned a value that is not a number"
            else:
                row.energy_start_ev_per_atom = row.energy_ev_per_atom = prediction.energy / row.atoms
                row.fmax_start_ev_per_ang = row.fmax_ev_per_ang = largest_force(prediction)
                row.stress_gpa = largest_stress_gpa(prediction)
