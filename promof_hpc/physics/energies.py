"""Energies that compare: E_form against the elements, E_rel against a per-element baseline of relaxed real MOFs.

Both are eV/atom and both mean something only with references of the same potential and weights (`ReferenceSet`).
E_form alone rewards oxygen- and fluorine-rich chemistry; E_rel compares structures of different composition.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from promof_hpc.errors import Refused, UsageError
from promof_hpc.store.schema import Outcome, Row

FORMAT = "promof-reference/1"
LEAST_STRUCTURES = 5  # an element in fewer of them has no baseline
BELOW_LOWEST_EV = 0.05  # E_min lies this far below the lowest E_rel of the set: the reward's logarithm diverges there
RIDGE_STRENGTHS = tuple(10.0**k for k in range(-9, 0))
SHIPPED = Path(__file__).parent.parent / "data" / "reference"
NO_REFERENCE = "no reference set for this potential and its weights: make one with `promof reference build`"


class Missing(StrEnum):
    """Why a structure has no E_form or no E_rel."""

    ELEMENTAL_REFERENCE = "no_elemental_reference"
    BASELINE = "no_baseline"


@dataclass(frozen=True)
class Baseline:
    """The energy per atom that a composition has among real MOFs: linear in the fractions of the elements.

    Attributes:
        coefficients: eV/atom by symbol.
        too_rare: elements without a coefficient, with the number of structures they were seen in.
        ridge: strength of the ridge term, the one of `RIDGE_STRENGTHS` with the least error.
        loo_rmse_ev_per_atom: root mean square leave-one-out error.
        structures: number of structures that were fitted.
    """

    coefficients: dict[str, float]
    too_rare: dict[str, int]
    ridge: float
    loo_rmse_ev_per_atom: float
    structures: int


@dataclass(frozen=True)
class RelaxedMof:
    """A member of a reference set.

    Attributes:
        name: its name in the library.
        counts: atoms of each element in the cell, by symbol.
        energy_ev_per_atom: potential energy after relaxation.
        volume_change: relative change of the volume in the relaxation.
        e_rel_ev_per_atom: above the baseline; NaN where an element has none.
    """

    name: str
    counts: dict[str, int]
    energy_ev_per_atom: float
    volume_change: float
    e_rel_ev_per_atom: float = math.nan


@dataclass(frozen=True)
class ReferenceSet:
    """Everything that turns a potential's energies into E_form and E_rel.

    Attributes:
        potential: id of the potential.
        weights_sha256: digest of its weights.
        relax_sha256: digest of the relaxation settings that made the set.
        elemental_ev_per_atom: energy of each element's reference state, by symbol.
        baseline: fitted to `mofs`.
        e_min_ev_per_atom: the lowest E_rel less `BELOW_LOWEST_EV`.
        e_rel_percentiles: E_rel in eV/atom at `p10`, `p50`, `p90`.
        volume_drift_percentiles: relative volume change of real MOFs at `p10`, `p50`, `p90`.
        mofs: the members, sorted by name.
    """

    potential: str
    weights_sha256: str
    relax_sha256: str
    elemental_ev_per_atom: dict[str, float]
    baseline: Baseline
    e_min_ev_per_atom: float
    e_rel_percentiles: dict[str, float]
    volume_drift_percentiles: dict[str, float]
    mofs: tuple[RelaxedMof, ...]

    def percentile(self, e_rel_ev_per_atom: float) -> float:
        """Share of the reference MOFs with a lower E_rel, in %."""
        known = [m.e_rel_ev_per_atom for m in self.mofs if not math.isnan(m.e_rel_ev_per_atom)]
        return 100.0 * sum(value < e_rel_ev_per_atom for value in known) / len(known)

    def to_json(self) -> str:
        """The set as JSON text, one line a MOF; `from_json` gives an equal set back."""
        content = asdict(self)
        mofs = ",\n".join(json.dumps(_without_nan(m), sort_keys=True) for m in content.pop("mofs"))
        head = json.dumps({"format": FORMAT, **content}, indent=1, sort_keys=True, ensure_ascii=False)
        return f'{head[:-2]},\n "mofs": [\n{mofs}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> ReferenceSet:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not such a text.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"not in the format {FORMAT}")
        try:
            baseline = Baseline(**content.pop("baseline"))
            mofs = tuple(RelaxedMof(**_with_nan(m)) for m in content.pop("mofs"))
            return cls(baseline=baseline, mofs=mofs, **content)
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from error


def fit_baseline(compositions: Sequence[Mapping[str, int]], energies_ev: Sequence[float]) -> Baseline:
    """Ridge regression of the energy per atom on the fractions of the elements, every structure with equal weight.

    Coefficients are drawn towards the mean energy per atom. An element in fewer than `LEAST_STRUCTURES` of the
    structures gets none, and the structures that hold it are left out.

    Args:
        compositions: atoms of each element in the cell, by symbol.
        energies_ev: energy of the cell.

    Raises:
        ValueError: no structure is left.
    """
    kept, rare = _without_rare_elements(compositions)
    if not kept:
        raise ValueError(f"a baseline needs elements that stand in {LEAST_STRUCTURES} structures or more")
    symbols = sorted({e for k in kept for e in compositions[k]})
    atoms = np.array([sum(compositions[k].values()) for k in kept])
    fractions = np.array([[compositions[k].get(e, 0) for e in symbols] for k in kept]) / atoms[:, None]
    per_atom = np.array([energies_ev[k] for k in kept]) / atoms
    mean = float(per_atom.mean())
    fits = [(*_ridge(fractions, per_atom - mean, strength), strength) for strength in RIDGE_STRENGTHS]
    coefficients, rmse, strength = min(fits, key=lambda fit: fit[1])
    return Baseline(
        {e: float(c + mean) for e, c in zip(symbols, coefficients, strict=True)}, rare, strength, rmse, len(kept)
    )


def _without_rare_elements(compositions: Sequence[Mapping[str, int]]) -> tuple[list[int], dict[str, int]]:
    """Indices of the structures of frequent elements only, and how often the rare ones were seen at first."""
    seen = _occurrences(compositions)
    kept = list(range(len(compositions)))
    while True:
        left = _occurrences([compositions[k] for k in kept])
        rare = {e for e, n in left.items() if n < LEAST_STRUCTURES}
        if not rare:
            return kept, {e: n for e, n in sorted(seen.items()) if e not in left}
        kept = [k for k in kept if not rare & set(compositions[k])]


def _occurrences(compositions: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {e: sum(e in c for c in compositions) for e in {e for c in compositions for e in c}}


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Coefficients of the ridge regression of y [S] on x [S, E] and its leave-one-out error.

    The error of a structure left out follows from the hat matrix H: residual / (1 - H_ii) (Allen's PRESS,
    Technometrics 16, 125, 1974).
    """
    inverse = np.linalg.inv(x.T @ x + strength * len(y) * np.eye(x.shape[1]))
    coefficients = inverse @ x.T @ y
    leverage = np.einsum("se,ef,sf->s", x, inverse, x)
    left_out = (y - x @ coefficients) / np.maximum(1.0 - leverage, 1e-9)
    return coefficients, float(np.sqrt(np.mean(left_out**2)))


def e_form(counts: Mapping[str, int], energy_ev: float, elemental_ev_per_atom: Mapping[str, float]) -> float:
    """Energy of a cell against its elements, in eV/atom.

    Raises:
        Refused: an element has no reference.
    """
    absent = sorted(set(counts) - set(elemental_ev_per_atom))
    if absent:
        raise Refused(Missing.ELEMENTAL_REFERENCE, f"no reference energy of {', '.join(absent)}")
    return (energy_ev - sum(n * elemental_ev_per_atom[e] for e, n in counts.items())) / sum(counts.values())


def e_rel(counts: Mapping[str, int], energy_ev: float, baseline: Baseline) -> float:
    """Energy of a cell above the baseline of real MOFs, in eV/atom.

    Raises:
        Refused: an element has no baseline.
    """
    absent = sorted(set(counts) - set(baseline.coefficients))
    if absent:
        seen = ", ".join(f"{e} (in {baseline.too_rare.get(e, 0)} reference MOFs)" for e in absent)
        raise Refused(Missing.BASELINE, f"no baseline of {seen}; {LEAST_STRUCTURES} are needed")
    return (energy_ev - sum(n * baseline.coefficients[e] for e, n in counts.items())) / sum(counts.values())


def build_reference_set(
    potential: str,
    weights_sha256: str,
    relax_sha256: str,
    elemental_ev_per_atom: Mapping[str, float],
    mofs: Sequence[RelaxedMof],
) -> ReferenceSet:
    """Fit the baseline to relaxed MOFs and take the statistics that rewards and reports need.

    Raises:
        ValueError: too few MOFs for any baseline.
    """
    cell_energies = [m.energy_ev_per_atom * sum(m.counts.values()) for m in mofs]
    baseline = fit_baseline([m.counts for m in mofs], cell_energies)
    members = []
    for mof, energy in sorted(zip(mofs, cell_energies, strict=True), key=lambda pair: pair[0].name):
        known = set(mof.counts) <= set(baseline.coefficients)
        value = e_rel(mof.counts, energy, baseline) if known else math.nan
        members.append(
            RelaxedMof(mof.name, dict(mof.counts), mof.energy_ev_per_atom, mof.volume_change, round(value, 6))
        )
    values = np.array([m.e_rel_ev_per_atom for m in members])
    values = values[~np.isnan(values)]
    return ReferenceSet(
        potential, weights_sha256, relax_sha256, dict(sorted(elemental_ev_per_atom.items())), baseline,
        float(values.min()) - BELOW_LOWEST_EV, _percentiles(values),
        _percentiles(np.array([m.volume_change for m in members])), tuple(members),
    )  # fmt: skip


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90)}


def load_reference(reference: str, potential: str, weights_sha256: str) -> ReferenceSet | None:
    """The reference set of a potential.

    Args:
        reference: `shipped`, `none`, or a file made by `promof reference build`.

    Returns:
        None for `none`, and for `shipped` where none is shipped for these weights.

    Raises:
        UsageError: the file cannot be read, or belongs to another potential or other weights.
    """
    if reference == "none":
        return None
    path = SHIPPED / f"{potential}.json" if reference == "shipped" else Path(reference)
    if reference == "shipped" and not path.is_file():
        return None
    try:
        found = ReferenceSet.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read the reference set {path} ({error}); `promof reference build` makes one."
        ) from error
    if (found.potential, found.weights_sha256) == (potential, weights_sha256):
        return found
    if reference == "shipped":
        return None
    raise UsageError(
        f"The reference set {path} was made with {found.potential} (weights {found.weights_sha256[:12]}…), this run "
        f"uses {potential} ({weights_sha256[:12]}…); make one with `promof reference build` or set reference: none."
    )


def score(row: Row, reference: ReferenceSet | None, relax_sha256: str = "") -> Row:
    """Fill a row's E_form, E_rel and percentile, and say in `energy_note` what is missing or differs, and why.

    Args:
        relax_sha256: digest of the settings that the row was relaxed with, to be compared with the reference's.
    """
    if math.isnan(row.energy_ev_per_atom):
        return row
    if reference is None:
        row.energy_note = NO_REFERENCE
        return row
    counts = composition(row.formula)
    energy = row.energy_ev_per_atom * sum(counts.values())
    notes = ["of the structure as given, not relaxed"] if row.outcome is Outcome.MEASURED else []
    if row.outcome is not Outcome.MEASURED and relax_sha256 not in ("", reference.relax_sha256):
        notes.append("relaxed with other settings than the reference set")
    try:
        row.e_form_ev_per_atom = e_form(counts, energy, reference.elemental_ev_per_atom)
    except Refused as missing:
        notes.append(missing.detail)
    try:
        row.e_rel_ev_per_atom = e_rel(counts, energy, reference.baseline)
        row.e_rel_percentile = reference.percentile(row.e_rel_ev_per_atom)
    except Refused as missing:
        notes.append(missing.detail)
    row.energy_note = "; ".join(notes)
    return row


def composition(formula: str) -> dict[str, int]:
    """Atoms of each element of a formula such as `C24H12O13Zn4`, by symbol."""
    from ase.formula import Formula

    return {str(symbol): int(n) for symbol, n in Formula(formula).count().items()}


def _without_nan(mof: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in mof.items()}


def _with_nan(mof: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in mof.items()}
