import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.errors import UsageError
from promof_hpc.policy.conditions import FEWEST_LABELS, NAMES, Conditions

LABELS = [{"pld_ang": 2.0 + 0.1 * k, "atoms": 10.0 + k, "void_fraction": 0.4} for k in range(40)]


def test_normalised_labels_have_zero_mean_and_unit_spread():
    conditions = Conditions.of(LABELS)
    rows = conditions.encode([{k: v for k, v in x.items() if k in NAMES} for x in LABELS])
    for name in ("pld_ang", "atoms"):
        column = rows[:, NAMES.index(name)]
        assert abs(column.mean()) < 1e-5
        assert abs(column.std(correction=0) - 1) < 1e-5


def test_what_is_not_wanted_is_null():
    row = Conditions.of(LABELS).encode([{"atoms": 30}])[0]
    assert [n for n, v in zip(NAMES, row, strict=True) if not math.isnan(v)] == ["atoms"]
    assert Conditions.of(LABELS).nothing(3).isnan().all()


def test_a_property_with_few_labels_is_not_learned_and_stays_null():
    labels = [*LABELS, *[{"e_rel_ev_per_atom": 0.1}] * (FEWEST_LABELS - 1)]
    conditions = Conditions.of(labels)
    assert conditions.learned == ("pld_ang", "atoms")
    assert conditions.encode([{"e_rel_ev_per_atom": -0.1}]).isnan().all()
    assert "e_rel_ev_per_atom" in Conditions.of([*labels, {"e_rel_ev_per_atom": 0.2}]).learned


def test_labels_that_are_no_numbers_do_not_count():
    labels = [*LABELS, {"pld_ang": math.nan}, {"pld_ang": math.inf}, {"pld_ang": 0.0}, {"pld_ang": -1.0}]
    assert Conditions.of(labels) == Conditions.of([*LABELS, {}, {}, {}, {}])


def test_equal_labels_do_not_divide_by_zero():
    rows = Conditions.of([{"pld_ang": 4.0}] * 30).encode([{"pld_ang": 4.0}, {"pld_ang": 5.0}])
    assert torch.isfinite(rows[:, 0]).all()


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf])
def test_impossible_wishes_are_refused(value):
    with pytest.raises(UsageError, match="pld_ang"):
        Conditions.of(LABELS).encode([{"pld_ang": value}])


def test_an_unknown_wish_names_the_nearest_condition():
    with pytest.raises(UsageError, match="did you mean 'pld_ang'"):
        Conditions.of(LABELS).encode([{"pld": 6.0}])


def test_the_raw_form_passes_values_on():
    assert Conditions.raw("capacity").encode([{"capacity": 2.5}, {}])[0].tolist() == [2.5]


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), st.floats(0.5, 200)), max_size=5))
def test_encoding_has_one_row_a_wish_and_one_column_a_name(wishes):
    assert Conditions.of(LABELS).encode(wishes).shape == (len(wishes), len(NAMES))
