"""Rewards, gates and targets, computed by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.config import DesignConfig, RewardSettings, TaskSettings
from promof_hpc.design.campaign.issuing import IssueReason
from promof_hpc.design.judging.reward import (
    GATES,
    Repeats,
    Yardstick,
    judge,
    passed,
    stability,
)
from promof_hpc.design.judging.tasks import Energy, Pore, targets, task_of
from promof_hpc.design.strategy import Judged, Proposal, Round
from promof_hpc.physics.energies import ReferenceSet, RelaxedMof, build_reference_set, load_reference, score
from promof_hpc.physics.evaluate import Stage
from promof_hpc.store.schema import FAILED, Evaluation, Outcome, Row
from promof_hpc.structure import Structure

SEVENNET = "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36"
ONE_ATOM = Structure(np.array([30], np.int32), np.zeros((1, 3)), 3.0 * np.eye(3))
TARGETS = [{"pld_ang": 6.0, "atoms": 40.0}]


@pytest.fixture(scope="module")
def reference() -> ReferenceSet:
    found = load_reference("shipped", "sevennet-0", SEVENNET)
    assert found is not None
    return found


def judged(
    items: list[Proposal],
    rows: list[Row | None],
    measure: Yardstick,
    repeats: Repeats | None = None,
    wanted: list[dict[str, float]] | None = None,
    structure: Structure = ONE_ATOM,
) -> list[Judged]:
    asked = Round(0, 0, 10, 0, TARGETS if wanted is None else wanted)
    return judge(asked, items, [r and Evaluation(r, structure) for r in rows], measure, repeats)


def proposal(**given: object) -> Proposal:
    return replace(Proposal("r00000-s00-a00", 0, 0, "<BOS> [Zn] <SEP> c1ccccc1 <EOS>", ONE_ATOM), **given)


def row(reference: ReferenceSet | None, e_rel: float = 0.0, **given: object) -> Row:
    """A converged evaluation of ZnC2H2O4 with an energy `e_rel` above the baseline."""
    counts = {"C": 2, "H": 2, "O": 4, "Zn": 1}
    base = sum(n * reference.baseline.coefficients[e] for e, n in counts.items()) / 9 if reference else 0.0
    made = Row(
        "id", Outcome.CONVERGED, charged=True, formula="C2H2O4Zn", atoms=9, energy_ev_per_atom=base + e_rel,
        fmax_ev_per_ang=0.04, volume_change=0.05, bonds_broken=0, pld_relaxed_ang=6.1,
    )  # fmt: skip
    for name, value in given.items():
        setattr(made, name, value)
    return score(made, reference)


def yardstick(reference: ReferenceSet | None, **settings: object) -> Yardstick:
    return Yardstick(RewardSettings(**settings), Pore(6.0, 0.2), reference, frozenset({"known"}))


def test_reward_of_a_relaxed_structure_is_stability_plus_property(reference):
    (found,) = judged([proposal()], [row(reference, 0.03)], yardstick(reference))
    assert found.stability == pytest.approx(-math.log(0.03 - reference.e_min_ev_per_atom))
    assert found.property == pytest.approx(-0.1)
    assert found.reward == pytest.approx(found.stability - 0.1)
    assert found.stable
    assert found.success
    weighted = yardstick(reference, stability_weight=2.0, property_weight=0.5)
    (other,) = judged([proposal()], [row(reference, 0.03)], weighted)
    assert other.reward == pytest.approx(2 * found.stability - 0.05)


def test_logarithm_ends_at_its_least_distance():
    assert stability(-0.30, -0.24) == stability(-0.235, -0.24) == pytest.approx(-math.log(0.01))
    assert stability(0.76, -0.24) == pytest.approx(0.0)
    assert math.isnan(stability(math.nan, -0.24))


@pytest.mark.parametrize(("pld", "expected"), [(6.0, 0.0), (4.5, -1.5), (0.0, -5.0), (12.0, -5.0), (math.nan, -5.0)])
def test_pore_part_is_a_clipped_ramp(pld, expected):
    assert Pore(6.0, 0.2).reward(row(None, pld_relaxed_ang=pld), {}) == pytest.approx(expected)


def test_pore_follows_the_target_that_its_set_was_written_for(reference):
    wanted = [{"pld_ang": 6.0}, {"pld_ang": 4.0}]
    items = [proposal(), proposal(target=1)]
    rows = [row(reference), row(reference)]
    found = judged(items, rows, yardstick(reference), wanted=wanted)
    assert [j.property for j in found] == pytest.approx([-0.1, -2.1])
    assert [j.success for j in found] == [True, False]


@pytest.mark.parametrize("outcome", sorted(FAILED))
def test_failures_get_the_floor(reference, outcome):
    (found,) = judged([proposal()], [row(reference, outcome=outcome)], yardstick(reference))
    assert found.reward == -10.0
    assert not found.stable


def test_rejects_of_the_gate_lie_below_the_floor_by_how_far_off_they_are():
    scores = [0.0, 0.4, 0.95]
    items = [proposal(structure=None, refusal="overlap", gate_score=s) for s in scores]
    found = judged(items, [None] * 3, yardstick(None, stability_weight=0))
    assert [j.reward for j in found] == pytest.approx([-12.0, -11.2, -10.1])
    assert all(j.reward < -10.0 for j in found)


@pytest.mark.parametrize("refusal", ["", IssueReason.OVER_BUDGET])
def test_what_the_budget_cut_off_is_not_learned_from(reference, refusal):
    (found,) = judged([proposal(refusal=refusal)], [None], yardstick(reference))
    assert math.isnan(found.reward)


def test_what_the_potential_does_not_know_is_as_far_off_as_a_set_that_cannot_be_built(reference):
    items = [proposal(), proposal(structure=None, refusal="unsupported_element")]
    found = judged(items, [row(reference, outcome=Outcome.REFUSED), None], yardstick(reference))
    assert [j.reward for j in found] == [-12.0, -12.0]


def test_step_cap_is_rewarded_but_stable_only_with_small_forces(reference):
    near, far = (row(reference, outcome=Outcome.MAX_STEPS, fmax_ev_per_ang=f) for f in (0.09, 0.11))
    found = judged([proposal()] * 2, [near, far], yardstick(reference))
    assert found[0].reward == found[1].reward > 0
    assert [j.stable for j in found] == [True, False]


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"outcome": Outcome.REFUSED}, "gate"),
        ({"outcome": Outcome.EXPLODED}, "relaxed"),
        ({"fmax_ev_per_ang": 0.2}, "relaxed"),
        ({"fmax_ev_per_ang": math.nan}, "relaxed"),
        ({"bonds_broken": 1}, "bonded"),
        ({"bonds_broken": -1}, "bonded"),
        ({"volume_change": 0.21}, "volume"),
        ({"volume_change": -0.21}, "volume"),
        ({"pld_relaxed_ang": 6.3}, "target"),
        ({"pld_relaxed_ang": math.nan}, "target"),
    ],
)
def test_each_gate_can_fail_and_closes_those_after_it(reference, change, gate):
    found = passed(proposal(), row(reference, **change), TARGETS[0], yardstick(reference))
    before = GATES[: GATES.index(gate)]
    assert [name for name in GATES if found.gates[name]] == list(before)
    assert found.stable == (gate == "target")
    assert not found.success


def test_energy_gate_is_the_90th_percentile(reference):
    p90 = reference.e_rel_percentiles["p90"]
    low, high = (passed(proposal(), row(reference, p90 + d), TARGETS[0], yardstick(reference)) for d in (-0.01, 0.01))
    assert low.stable
    assert not high.gates["energy"]


def test_strict_variant_asks_for_the_10th_percentile(reference):
    p10 = reference.e_rel_percentiles["p10"]
    low, high = (passed(proposal(), row(reference, p10 + d), TARGETS[0], yardstick(reference)) for d in (-0.01, 0.01))
    assert low.strict
    assert high.success
    assert not high.strict
    drifted = row(reference, p10 - 0.01, volume_change=0.19)  # inside the window, outside of what real MOFs do
    assert passed(proposal(), drifted, TARGETS[0], yardstick(reference)).success
    assert not passed(proposal(), drifted, TARGETS[0], yardstick(reference)).strict


def test_structure_without_baseline_is_never_stable_and_gets_the_floor(reference):
    unknown = Row("id", Outcome.CONVERGED, formula="C2H2O4Zr", atoms=9, energy_ev_per_atom=-7.0, pld_relaxed_ang=6.0,
                  fmax_ev_per_ang=0.04, volume_change=0.0, bonds_broken=0)  # fmt: skip
    (found,) = judged([proposal()], [unknown], yardstick(reference))
    assert found.reward == -10.0
    assert not found.stable


def test_no_reference_is_needed_where_stability_has_no_weight():
    (found,) = judged([proposal()], [row(None)], yardstick(None, stability_weight=0.0))
    assert found.reward == pytest.approx(-0.1)
    assert not found.stable


def test_formation_energy_has_its_own_lowest_value():
    mofs = [
        RelaxedMof(f"m{k}", {"C": 4, "Zn": 1}, -5.0 + 0.1 * k, 0.0) for k in range(6)
    ]  # E_form = (5 E - 4 (-9) - (-1)) / 5 of E = -5: 2.4
    reference = build_reference_set("toy", "w", "r", {"C": -9.0, "Zn": -1.0}, mofs)
    assert yardstick(reference, energy="e_form").lowest_ev_per_atom == pytest.approx(2.35)
    assert yardstick(reference).lowest_ev_per_atom == reference.e_min_ev_per_atom


def test_displacement_and_repetition_cost_and_never_sink_below_the_floor(reference):
    measure = yardstick(reference, displacement_cost_per_ang=2.0, duplicate_cost=1.0, duplicate_bucket=2)
    (plain,) = judged([proposal()], [row(reference)], yardstick(reference))
    (moved,) = judged([proposal(displacement_ang=0.5)], [row(reference)], measure)
    assert moved.reward == pytest.approx(plain.reward - 1.0)
    (lost,) = judged([proposal(displacement_ang=99.0)], [row(reference)], measure)
    assert lost.reward == -10.0
    repeats = Repeats()
    rng = np.random.default_rng(0)
    for expected in (0.0, 0.0, 1.0, 2.0):  # two are free
        moved = replace(ONE_ATOM, positions=rng.random((1, 3)))  # the same crystal at another origin
        items, rows = [proposal()] * 3, [row(reference)] * 3
        found = judged(items, rows, measure, repeats, structure=moved)
        assert [j.reward for j in found] == pytest.approx([plain.reward - expected] * 3)
        repeats.add([Evaluation(r, moved) for r in rows])
    larger = replace(ONE_ATOM, cell=1.2 * ONE_ATOM.cell)
    (other,) = judged([proposal()], [row(reference)], measure, repeats, structure=larger)
    assert other.reward == pytest.approx(plain.reward)
    (failed,) = judged([proposal()], [row(reference, outcome=Outcome.EXPLODED)], measure, repeats)
    assert failed.reward == -10.0


def test_energy_task_is_met_by_new_materials_of_low_energy(reference):
    task = task_of(TaskSettings(name="energy", best_percent=10.0), reference)
    assert isinstance(task, Energy)
    assert task.low_ev_per_atom == pytest.approx(reference.e_rel_percentiles["p10"], abs=1e-6)
    low = row(reference, reference.e_rel_percentiles["p10"] - 0.01)
    measure = Yardstick(RewardSettings(), task, reference, frozenset({"known"}))
    found = judged([proposal(), proposal(sequence="known")], [low, low], measure, wanted=[{}])
    assert [j.property for j in found] == [0.0, 0.0]
    assert [j.success for j in found] == [True, False]
    assert all(j.stable for j in found)


def test_targets_of_a_round_differ_only_in_what_is_free():
    drawn = targets(Pore(6.0, 0.2), 5, 50, np.random.default_rng(3))
    assert all(t["pld_ang"] == 6.0 for t in drawn)
    assert all(20 <= t["atoms"] <= 45 for t in drawn)
    assert len({t["atoms"] for t in drawn}) > 1
    assert drawn == targets(Pore(6.0, 0.2), 5, 50, np.random.default_rng(3))
    assert set(targets(Energy(10.0, math.nan), 1, 50, np.random.default_rng(0))[0]) == {"atoms"}


@given(
    st.sampled_from(sorted(Outcome)), st.floats(-1, 3), st.floats(0, 1), st.floats(-1, 1), st.floats(0, 20),
    st.integers(-1, 3),
)  # fmt: skip
def test_rewards_are_bounded_and_success_implies_stable(outcome, e_rel, fmax, change, pld, broken):
    reference = load_reference("shipped", "sevennet-0", SEVENNET)
    result = row(
        reference, e_rel, outcome=outcome, fmax_ev_per_ang=fmax, volume_change=change, pld_relaxed_ang=pld,
        bonds_broken=broken,
    )  # fmt: skip
    (found,) = judged([proposal()], [result], yardstick(reference))
    assert -12.0 <= found.reward <= -math.log(0.01)
    assert found.stable or not found.success
    if found.stable:
        assert fmax <= 0.1
        assert abs(change) <= 0.2
        assert outcome in (Outcome.CONVERGED, Outcome.MAX_STEPS)


def test_yardstick_of_a_run_follows_its_configuration(reference):
    config = DesignConfig(task=TaskSettings(pld_ang=4.0, width_ang=0.5), reward=RewardSettings(floor=-7.0))
    assert Stage.PORES in config.evaluation.stages
    found = Yardstick.of(config, reference)
    assert found.task == Pore(4.0, 0.5)
    capped = replace(found, relax_sha256="another step cap")
    scored = [y.scored(Evaluation(row(None), ONE_ATOM)) for y in (found, capped)]
    assert [r is not None and r.energy_note for r in scored] == [
        "", "relaxed with other settings than the reference set"
    ]  # fmt: skip
    assert found.settings.floor == -7.0


def test_what_the_budget_cut_has_passed_the_gate_all_the_same(reference):
    def gate(**changes) -> bool:
        return passed(proposal(**changes), None, TARGETS[0], yardstick(reference)).gates["gate"]

    assert gate(refusal="over_budget")
    assert not gate(refusal="overlap", gate_score=0.9)
