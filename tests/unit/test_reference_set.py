"""Who is in a reference set: eligible MOFs, rare elements first, the same draw for the same seed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.reference_set import Member, eligible, stratified
from promof_hpc.config import RelaxSettings
from promof_hpc.physics.energies import LEAST_STRUCTURES, RelaxedMof, build_reference_set
from promof_hpc.report.reference_card import reference_card
from promof_hpc.screen.library import scan

CASES = Path(__file__).parents[1] / "data" / "cases"


def _case(name):
    return scan(CASES / f"{name}.cif").entries[0].read()


def test_a_complete_mof_is_eligible_and_solvent_hydrogen_free_and_large_ones_are_not():
    assert eligible("a", _case("C000_base_pmx1"), 200).metals == ("Zn",)
    assert eligible("a", _case("C000_base_pmx1"), 100) is None
    assert eligible("a", _case("C000_base_pmx3"), 100) is None  # no hydrogen
    assert eligible("a", _case("C021_solvent_in_pores"), 200) is None
    assert eligible("a", _case("C029_sc_carbon"), 100) is None


def _pool(counts):
    return [
        Member(f"{metal}{k:03d}", tuple(sorted(("C", "H", metal))), (metal,))
        for metal, n in counts.items()
        for k in range(n)
    ]


def test_rare_metals_are_there_and_common_ones_fill_the_rest():
    chosen = stratified(_pool({"Zn": 300, "Cu": 200, "Zr": 12, "Tm": 4}), 100, seed=3)
    have = {metal: sum(metal in m.metals for m in chosen) for metal in ("Zn", "Cu", "Zr", "Tm")}
    assert have["Zr"] >= 10
    assert have["Zn"] > have["Cu"] > 20
    assert len(chosen) == 100


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(st.sampled_from(["Zn", "Cu", "Zr", "Al", "In"]), st.integers(1, 40), min_size=1), st.integers(1, 60)
)
def test_the_draw_depends_on_the_set_and_the_seed_alone_and_grows(counts, count):
    pool = _pool(counts)
    chosen = stratified(pool, count, seed=1)
    assert chosen == stratified(list(reversed(pool)), count, seed=1)
    assert len(chosen) == min(count, len(pool))
    assert len({m.name for m in chosen}) == len(chosen)


def test_the_card_names_numbers_settings_and_what_is_missing():
    mofs = [RelaxedMof(f"m{k}", {"C": 6 + k, "H": 4, "Zn": 1}, -6.0 - 0.01 * k, 0.01 * k) for k in range(9)]
    mofs.append(RelaxedMof("rare", {"C": 6, "H": 4, "Tm": 1}, -6.0, 0.0))
    reference = build_reference_set("p-1", "abc123", "def456", {"C": -9.0}, mofs)
    card = reference_card(reference, RelaxSettings(), {"converged": 10, "max_steps": 2}, "coremof:2019-ASR")
    for words in (
        "p-1",
        "abc123",
        "10 MOFs",
        "of 12 relaxed",
        "leave-one-out",
        "Tm (1)",
        "| Zn | 9 |",
        "0.05 eV/Å",
        "p90",
    ):
        assert words in card
    assert LEAST_STRUCTURES == 5


@pytest.mark.parametrize("count", [0, 1])
def test_a_tiny_draw_is_just_that(count):
    assert len(stratified(_pool({"Zn": 3}), count, seed=0)) == count
