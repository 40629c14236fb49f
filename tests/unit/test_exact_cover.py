from collections import Counter
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.assembly import exact_cover as module
from promof_hpc.assembly.exact_cover import Choice, exact_cover

ONE, TWO, AZA = (8,), (8, 8), (7,)


def _choices(patterns: list) -> st.SearchStrategy[list[Choice]]:
    offers = st.lists(st.sampled_from(patterns), min_size=1, max_size=4).map(lambda x: tuple(sorted(x)))
    options = st.lists(offers, min_size=1, max_size=3, unique=True)
    weighted = options.flatmap(
        lambda o: st.tuples(
            st.just(tuple(o)), st.tuples(*[st.floats(-5, 0).map(lambda x: round(x, 3)) for _ in o]), st.integers(1, 3)
        )
    )
    return st.lists(weighted.map(lambda x: Choice(x[2], x[0], x[1])), min_size=1, max_size=2)


def _total(choices: list[Choice], taken) -> Counter:
    return Counter(p for choice, options in zip(choices, taken, strict=True) for o in options for p in choice.offers[o])


def _ways(choices: list[Choice], alike: bool) -> list:
    each = [
        [(o,) * c.copies for o in range(len(c.offers))]
        if alike
        else list(combinations_with_replacement(range(len(c.offers)), c.copies))
        for c in choices
    ]
    return list(product(*each))


def _weight(choices: list[Choice], taken) -> float:
    return sum(c.log_weights[t[0]] for c, t in zip(choices, taken, strict=True))


@given(_choices([ONE, TWO, AZA]), _choices([ONE, TWO, AZA]))
@settings(max_examples=150, deadline=None)
def test_a_cover_is_found_exactly_if_there_is_one_and_balances(nodes, linkers):
    covers = [
        (a, b) for a, b in product(_ways(nodes, False), _ways(linkers, False)) if _total(nodes, a) == _total(linkers, b)
    ]
    found = exact_cover(nodes, linkers)
    assert (found is not None) == bool(covers)
    if found is not None:
        assert found in covers


@given(_choices([ONE, TWO]), _choices([ONE, TWO]))
@settings(max_examples=150, deadline=None)
def test_where_equal_blocks_can_all_do_the_same_the_likeliest_such_cover_is_taken(nodes, linkers):
    alike = [
        _weight(nodes, a) + _weight(linkers, b)
        for a, b in product(_ways(nodes, True), _ways(linkers, True))
        if _total(nodes, a) == _total(linkers, b)
    ]
    if alike:
        taken = exact_cover(nodes, linkers)
        assert taken is not None
        assert all(len(set(options)) == 1 for side in taken for options in side)
        assert _weight(nodes, taken[0]) + _weight(linkers, taken[1]) == pytest.approx(max(alike))


def test_equal_blocks_do_different_things_only_where_they_must():
    node = Choice(1, ((ONE, ONE, TWO),), (0.0,))
    linkers = Choice(2, ((ONE, ONE), (TWO,), (AZA,)), (0.0, -1.0, 3.0))
    assert exact_cover([node], [linkers]) == (((0,),), ((0, 1),))


def test_the_integer_programme_finds_the_likeliest_of_mixed_covers():
    node = Choice(1, ((ONE, ONE, ONE, TWO),), (0.0,))
    linkers = Choice(2, ((ONE, ONE, ONE), (TWO,), (ONE, ONE), (ONE, TWO)), (-9.0, 0.0, -1.0, -1.0))
    assert exact_cover([node], [linkers]) == (((0,),), ((2, 3),))


def test_sides_that_share_no_pattern_have_no_cover():
    assert exact_cover([Choice(1, ((ONE,),), (0.0,))], [Choice(1, ((AZA,),), (0.0,))]) is None
    assert exact_cover([Choice(2, ((ONE, ONE),), (0.0,))], [Choice(1, ((ONE,),), (0.0,))]) is None


def test_large_sets_with_many_options_are_covered(monkeypatch):
    generator = np.random.default_rng(1)
    options = tuple(
        {tuple(sorted([ONE] * a + [TWO] * b + [AZA] * c)) for a, b, c in generator.integers(0, 4, (60, 3))} - {()}
    )
    weights = tuple(-float(x) for x in generator.random(len(options)))
    nodes = [Choice(5, options, weights) for _ in range(3)]
    linkers = [Choice(4, options, weights) for _ in range(4)]
    for sums in (module.MOST_SUMS, 0):
        monkeypatch.setattr(module, "MOST_SUMS", sums)
        found = exact_cover(nodes, linkers)
        assert found is not None
        assert _total(nodes, found[0]) == _total(linkers, found[1])
