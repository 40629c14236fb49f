"""E_form, E_rel, the baseline and the reference set against refits by hand, and the elements against tables."""

import dataclasses
import math

import numpy as np
import pytest
from ase.data import atomic_numbers

from promof_hpc.errors import Refused, UsageError
from promof_hpc.physics import energies
from promof_hpc.physics.elements import BOND_LENGTHS_ANG, MOLECULAR, WITHOUT, elemental_structures
from promof_hpc.physics.energies import (
    BELOW_LOWEST_EV,
    Missing,
    ReferenceSet,
    RelaxedMof,
    build_reference_set,
    composition,
    e_form,
    e_rel,
    fit_baseline,
    load_reference,
    score,
)
from promof_hpc.physics.neighbours import directed_pairs
from promof_hpc.store.schema import Outcome, Row

TRUE = {"C": -8.2, "H": -4.1, "O": -6.0, "Zn": -2.5}


def library(count=40, noise=0.0, seed=0):
    """Compositions and cell energies that are linear in them, with noise in eV/atom."""
    rng = np.random.default_rng(seed)
    counts = [{e: int(n) for e, n in zip(TRUE, rng.integers(1, 30, 4), strict=True)} for _ in range(count)]
    cells = [sum(n * TRUE[e] for e, n in c.items()) + sum(c.values()) * noise * rng.normal() for c in counts]
    return counts, cells


def mofs(noise=0.02):
    counts, cells = library(noise=noise)
    return [
        RelaxedMof(f"mof-{k:02}", c, e / sum(c.values()), 0.01 * math.sin(k))
        for k, (c, e) in enumerate(zip(counts, cells, strict=True))
    ]


def reference_set():
    return build_reference_set("sevennet-0", "ab" * 32, "cd" * 32, {"C": -9.2, "H": -3.3, "O": -4.9}, mofs())


def test_a_linear_library_gives_its_coefficients_back():
    baseline = fit_baseline(*library())
    assert baseline.coefficients == pytest.approx(TRUE, abs=1e-4)
    assert baseline.loo_rmse_ev_per_atom < 1e-4


def test_leave_one_out_error_is_that_of_refits_without_each_structure():
    counts, cells = library(12, noise=0.05)
    baseline = fit_baseline(counts, cells)
    symbols = sorted(TRUE)
    atoms = np.array([sum(c.values()) for c in counts])
    x = np.array([[c[e] for e in symbols] for c in counts]) / atoms[:, None]
    y = np.array(cells) / atoms
    y = y - y.mean()
    errors = []
    for k in range(len(y)):
        rest = np.arange(len(y)) != k
        penalty = baseline.ridge * len(y) * np.eye(4)
        refit = np.linalg.solve(x[rest].T @ x[rest] + penalty, x[rest].T @ y[rest])
        errors.append(y[k] - x[k] @ refit)
    assert baseline.loo_rmse_ev_per_atom == pytest.approx(float(np.sqrt(np.mean(np.square(errors)))), rel=1e-8)


def test_elements_in_too_few_structures_have_no_baseline_and_do_not_spoil_the_others():
    counts, cells = library()
    for k in range(4):
        counts[k] = {**counts[k], "Np": 1}
        cells[k] += 1e4
    baseline = fit_baseline(counts, cells)
    assert baseline.too_rare == {"Np": 4}
    assert baseline.structures == 36
    assert baseline.coefficients == pytest.approx(TRUE, abs=1e-4)


def test_leaving_structures_out_can_make_another_element_too_rare():
    counts, cells = library(20)
    for k in range(6):
        counts[k] = {**counts[k], "Cd": 1, **({"Np": 1} if k < 3 else {})}
    assert fit_baseline(counts, cells).too_rare == {"Cd": 6, "Np": 3}


def test_a_library_of_rare_elements_only_is_refused():
    with pytest.raises(ValueError, match="5 structures"):
        fit_baseline([{"C": 1}], [-1.0])


def test_formation_energy_is_counted_from_the_elements():
    assert e_form({"H": 2, "O": 1}, -14.0, {"H": -3.0, "O": -5.0}) == pytest.approx(-1.0)
    assert e_form({"H": 4, "O": 2}, -28.0, {"H": -3.0, "O": -5.0}) == pytest.approx(-1.0)
    with pytest.raises(Refused, match="Og") as missing:
        e_form({"H": 1, "Og": 1}, -1.0, {"H": -3.0})
    assert missing.value.reason is Missing.ELEMENTAL_REFERENCE


def test_relative_energy_is_what_stands_above_the_baseline():
    baseline = fit_baseline(*library())
    counts = {"C": 8, "H": 4, "O": 5, "Zn": 2}
    at_baseline = sum(n * TRUE[e] for e, n in counts.items())
    assert e_rel(counts, at_baseline + 1.9, baseline) == pytest.approx(0.1, abs=1e-4)
    with pytest.raises(Refused, match=r"Cd \(in 0 reference MOFs\)") as missing:
        e_rel({"Cd": 1}, -1.0, baseline)
    assert missing.value.reason is Missing.BASELINE


def test_reference_set_holds_the_percentiles_and_the_lowest_energy_of_its_members():
    reference = reference_set()
    values = sorted(m.e_rel_ev_per_atom for m in reference.mofs)
    assert reference.e_min_ev_per_atom == pytest.approx(values[0] - BELOW_LOWEST_EV, abs=1e-6)
    assert reference.e_rel_percentiles["p50"] == pytest.approx(float(np.median(values)), abs=1e-6)
    assert reference.percentile(values[0]) == 0.0
    assert reference.percentile(values[-1] + 1) == 100.0
    assert reference.percentile(values[20]) == 50.0
    assert -0.01 <= reference.volume_drift_percentiles["p10"] < reference.volume_drift_percentiles["p90"] <= 0.01


def test_reference_set_survives_json_with_its_gaps():
    rare = RelaxedMof("rare", {"C": 1, "Np": 1}, -5.0, 0.0)
    reference = build_reference_set("sevennet-0", "ab" * 32, "cd" * 32, {"C": -9.2}, [*mofs(), rare])
    text = reference.to_json()
    again = ReferenceSet.from_json(text)
    assert "NaN" not in text
    assert again.to_json() == text
    assert math.isnan(again.mofs[-1].e_rel_ev_per_atom)
    assert again.mofs[:-1] == reference.mofs[:-1]
    assert again.baseline == reference.baseline
    with pytest.raises(ValueError, match="format"):
        ReferenceSet.from_json("{}")


def test_reference_of_other_weights_is_never_used(tmp_path, monkeypatch):
    reference = reference_set()
    path = tmp_path / "sevennet-0.json"
    path.write_text(reference.to_json())
    assert load_reference(str(path), "sevennet-0", "ab" * 32) == reference
    with pytest.raises(UsageError, match="promof reference build"):
        load_reference(str(path), "sevennet-0", "ff" * 32)
    with pytest.raises(UsageError, match="chgnet"):
        load_reference(str(path), "chgnet-0.3.0", "ab" * 32)
    monkeypatch.setattr(energies, "SHIPPED", tmp_path)
    assert load_reference("shipped", "sevennet-0", "ab" * 32) == reference
    assert load_reference("shipped", "sevennet-0", "ff" * 32) is None
    assert load_reference("shipped", "lennard-jones", "ab" * 32) is None
    assert load_reference("none", "sevennet-0", "ab" * 32) is None


@pytest.mark.parametrize("content", ["", "[]", '{"format": "promof-reference/1"}', None])
def test_unreadable_reference_is_a_usage_error_with_the_remedy(tmp_path, content):
    path = tmp_path / "reference.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match="promof reference build"):
        load_reference(str(path), "sevennet-0", "ab" * 32)


def row(formula, energy, outcome=Outcome.CONVERGED):
    return Row("id", outcome, formula=formula, atoms=sum(composition(formula).values()), energy_ev_per_atom=energy)


def test_scoring_fills_both_energies_and_the_percentile():
    reference = reference_set()
    counts = composition("C8H4O5")
    scored = score(row("C8H4O5", -6.5), reference)
    assert scored.e_form_ev_per_atom == pytest.approx(e_form(counts, -6.5 * 17, reference.elemental_ev_per_atom))
    assert scored.e_rel_ev_per_atom == pytest.approx(e_rel(counts, -6.5 * 17, reference.baseline))
    assert scored.e_rel_percentile == reference.percentile(scored.e_rel_ev_per_atom)
    assert scored.energy_note == ""


def test_what_cannot_be_scored_says_why():
    reference = reference_set()
    zinc = score(row("C8H4O5Zn", -6.5), reference)
    assert math.isnan(zinc.e_form_ev_per_atom)
    assert not math.isnan(zinc.e_rel_ev_per_atom)
    assert "no reference energy of Zn" in zinc.energy_note
    uranium = score(row("C8H4O5U", -6.5), reference)
    assert math.isnan(uranium.e_rel_percentile)
    assert "no baseline of U" in uranium.energy_note
    assert "promof reference build" in score(row("C8H4O5", -6.5), None).energy_note
    assert "not relaxed" in score(row("C8H4O5", -6.5, Outcome.MEASURED), reference).energy_note
    assert score(row("C8H4O5", math.nan, Outcome.NAN), reference).energy_note == ""


DENSITIES = {
    # g/cm³, CRC Handbook of Chemistry and Physics
    "Li": 0.534, "B": 2.46, "C": 2.26, "Na": 0.97, "Mg": 1.74, "Al": 2.70, "Si": 2.33, "P": 2.69, "S": 2.07,
    "Ca": 1.54, "Ti": 4.51, "Cr": 7.15, "Mn": 7.3, "Fe": 7.87, "Co": 8.86, "Ni": 8.90, "Cu": 8.96, "Zn": 7.13,
    "Ga": 5.91, "Ge": 5.32, "As": 5.75, "Se": 4.81, "Zr": 6.52, "Mo": 10.2, "Ag": 10.5, "Cd": 8.69, "In": 7.31,
    "Sn": 5.77, "Sb": 6.68, "Te": 6.23, "La": 6.15, "Sm": 7.52, "Eu": 5.24, "Gd": 7.90, "Hf": 13.3, "W": 19.3,
    "Pt": 21.5, "Au": 19.3, "Hg": 14.2, "Tl": 11.8, "Pb": 11.3, "Bi": 9.79, "Th": 11.7, "Pa": 15.4, "U": 19.1,
}  # fmt: skip
NEIGHBOURS = {"B": 5.5, "C": 3, "P": 3, "S": 2, "Ga": 1, "As": 3, "Se": 2, "Sn": 4, "Sb": 3, "Te": 2, "U": 4}


def test_elements_have_the_densities_of_the_tables():
    structures = elemental_structures()
    found = {symbol: structures[symbol].density for symbol in DENSITIES}
    assert found == pytest.approx(DENSITIES, rel=0.04)


def test_elements_have_the_coordination_their_structures_are_known_for():
    structures = elemental_structures()
    for symbol, expected in NEIGHBOURS.items():
        distances = np.sort(directed_pairs(structures[symbol], 4.5).distances)
        shell = 1.05 if symbol == "Ga" else 1.15  # one short bond and six at 1.10 times its length
        assert (distances < shell * distances[0]).sum() / len(structures[symbol]) == pytest.approx(expected), symbol
    for symbol in MOLECULAR:
        assert directed_pairs(structures[symbol], 4.0).distances == pytest.approx([BOND_LENGTHS_ANG[symbol]] * 2)


def test_every_element_of_the_default_potential_has_a_reference_or_a_reason():
    from promof_hpc.physics.chgnet import MPTRJ_ELEMENTS

    structures = elemental_structures()
    assert {atomic_numbers[e] for e in (*structures, *WITHOUT)} == MPTRJ_ELEMENTS
    assert not set(structures) & set(WITHOUT)
    assert all(set(s.counts) == {symbol} for symbol, s in structures.items())
    assert max(map(len, structures.values())) <= 32


@pytest.mark.parametrize(("formula", "prototype", "a", "experiment"), [
    ("MgO", "rocksalt", 4.25, -3.11), ("ZnO", "zincblende", 4.62, -1.81), ("CaO", "rocksalt", 4.83, -3.28),
    ("NaCl", "rocksalt", 5.69, -2.13),
])  # fmt: skip
def test_formation_energies_with_sevennet_are_near_experiment(formula, prototype, a, experiment):
    """Enthalpies of formation in eV/atom (CRC Handbook); PBE without corrections underbinds oxides by up to 0.5."""
    from ase.build import bulk

    from promof_hpc.physics.registry import load_potential
    from promof_hpc.structure import Structure

    potential = load_potential("sevennet-0")
    counts = composition(formula)
    elemental = {
        symbol: potential.compute([s])[0].energy / len(s)
        for symbol, s in elemental_structures().items()
        if symbol in counts
    }
    compound = Structure.from_ase(bulk(formula, prototype, a))
    energy = potential.compute([compound])[0].energy
    assert e_form(counts, energy, elemental) == pytest.approx(experiment, abs=0.5)
    assert e_form(counts, energy, elemental) < -1.0


def test_a_members_numbers_are_all_in_the_reference_set():
    kept = {m.name: m for m in reference_set().mofs}
    for mof in mofs():
        assert dataclasses.replace(kept[mof.name], e_rel_ev_per_atom=0) == dataclasses.replace(mof, e_rel_ev_per_atom=0)


def test_rows_relaxed_with_other_settings_than_the_reference_say_so() -> None:
    mofs = [RelaxedMof(f"m{k}", {"C": 6 + k, "H": 4, "Zn": 1}, -6.0 - 0.01 * k, 0.0) for k in range(6)]
    reference = build_reference_set("p", "w", "settings-a", {"C": -9.0, "H": -3.0, "Zn": -1.0}, mofs)
    row = Row("id", Outcome.CONVERGED, formula="C6H4Zn", atoms=11, energy_ev_per_atom=-6.0)
    assert "other settings" in score(dataclasses.replace(row), reference, "settings-b").energy_note
    assert score(dataclasses.replace(row), reference, "settings-a").energy_note == ""
