"""Advantages against enumeration of all subsets, hand-computed groups and the published binary form."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.config import LearningSettings
from promof_hpc.design.learning.advantage import (
    annealed,
    best_of_k,
    credit,
    group_normalised,
    k_at,
    mean_best_with,
    pass_at_k,
    separately_normalised,
    warm_up,
)

TIES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=7)
GROUPS = TIES.flatmap(lambda g: st.tuples(st.just(np.array(g)), st.integers(1, len(g) - 1)))


def subset_maxima(g: np.ndarray, k: int) -> list[tuple[tuple[int, ...], float]]:
    return [(s, max(g[list(s)])) for s in itertools.combinations(range(len(g)), k)]


def sloo(g: np.ndarray, k: int) -> np.ndarray:
    """PKPO's advantages with the other members as baseline (arXiv 2505.15201)."""
    n = len(g)
    return k / n * np.array([mean_best_with(g, k)[i] - best_of_k(np.delete(g, i), k) for i in range(n)])


def sloo_minus_one(g: np.ndarray, k: int) -> np.ndarray:
    """PKPO's advantages with the baseline inside each subset, by enumeration."""
    n = len(g)
    gains = np.zeros(n)
    for s in itertools.combinations(range(n), k):
        for i in s:
            gains[i] += max(g[list(s)]) - max((g[j] for j in s if j != i), default=0.0)
    return k / n * gains / math.comb(n - 1, k - 1)


@given(GROUPS)
def test_estimates_equal_the_enumeration_of_all_subsets(case):
    g, k = case
    maxima = subset_maxima(g, k)
    assert best_of_k(g, k) == pytest.approx(np.mean([m for _, m in maxima]), abs=1e-12)
    means = [np.mean([m for s, m in maxima if i in s]) for i in range(len(g))]
    np.testing.assert_allclose(mean_best_with(g, k), means, atol=1e-12)
    spread = np.std([m for _, m in maxima])
    expected = (np.array(means) - np.mean([m for _, m in maxima])) / (spread + 1e-6)
    np.testing.assert_allclose(pass_at_k(g, k), expected, atol=2e-4)


@given(GROUPS)
def test_distance_from_the_estimate_is_the_leave_one_out_form(case):
    g, k = case
    distance = mean_best_with(g, k) - best_of_k(g, k)
    n = len(g)
    np.testing.assert_allclose(k / n * distance, (1 - k / n) * sloo(g, k), atol=1e-12)
    assert distance.sum() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("n", "k"), [(3, 2), (4, 1), (4, 3), (5, 2)])
@pytest.mark.parametrize("form", [sloo, sloo_minus_one])
def test_gradient_of_the_best_of_k_is_unbiased(n, k, form):
    """A softmax policy over three outcomes, all n-tuples of outcomes summed with their probabilities."""
    values, logits = np.array([0.0, 1.0, 1.0]) + np.array([0.0, 0.0, 2.5]), np.array([0.3, -0.2, 0.1])
    p = np.exp(logits) / np.exp(logits).sum()
    scores = np.eye(3) - p  # gradient of log p(x) with respect to the logits
    estimate = np.zeros(3)
    for xs in itertools.product(range(3), repeat=n):
        estimate += np.prod(p[list(xs)]) * (form(values[list(xs)], k)[:, None] * scores[list(xs)]).sum(0)
    exact = np.zeros(3)
    for xs in itertools.product(range(3), repeat=k):
        exact += np.prod(p[list(xs)]) * max(values[list(xs)]) * scores[list(xs)].sum(0)
    np.testing.assert_allclose(estimate, exact, atol=1e-12)
    plain = np.zeros(3)
    for xs in itertools.product(range(3), repeat=n):
        g = values[list(xs)]
        plain += np.prod(p[list(xs)]) * ((g - g.mean())[:, None] * scores[list(xs)]).sum(0) / (n - 1)
    assert k == 1 or not np.allclose(plain, exact, atol=1e-3)


@pytest.mark.parametrize("n", [4, 7, 16])
def test_rewards_of_0_and_1_give_the_analytic_advantage(n):
    """Chen et al. (arXiv 2508.10751): advantages from the number of wrong answers alone."""
    k = 3
    for wrong in range(n + 1):
        g = np.array([0.0] * wrong + [1.0] * (n - wrong))
        rate = 1 - math.comb(wrong, k) / math.comb(n, k)
        sigma = math.sqrt(rate * (1 - rate))
        if sigma == 0:
            np.testing.assert_array_equal(pass_at_k(g, k), 0.0)
            continue
        bad = (1 - rate - math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)) / sigma
        expected = [bad] * wrong + [(1 - rate) / sigma] * (n - wrong)
        np.testing.assert_allclose(pass_at_k(g, k), expected, rtol=1e-4)


@given(st.lists(st.floats(-10, 5), min_size=2, max_size=16))
def test_k_of_one_is_plain_group_normalisation(rewards):
    g = np.array(rewards)
    np.testing.assert_allclose(pass_at_k(g, 1), group_normalised(g), atol=1e-2 if g.std() < 1e-4 else 1e-6)


def test_hand_computed_groups():
    g = np.array([3.0, 0.0, 1.0])
    # pairs: 3, 3, 1 -> mean 7/3, variance (9 + 9 + 1)/3 - 49/9 = 8/9; with each member: 3, 2, 2
    assert best_of_k(g, 2) == pytest.approx(7 / 3)
    np.testing.assert_allclose(mean_best_with(g, 2), [3.0, 2.0, 2.0])
    np.testing.assert_allclose(pass_at_k(g, 2), np.array([2 / 3, -1 / 3, -1 / 3]) / math.sqrt(8 / 9), atol=1e-5)
    # mean 4/3, variance (25 + 16 + 1)/27
    np.testing.assert_allclose(group_normalised(g), np.array([5, -4, -1]) / 3 / math.sqrt(42 / 27), atol=1e-5)
    assert credit(g, "max", 2) == 3.0
    assert credit(g, "mean", 2) == pytest.approx(4 / 3)
    assert credit(g, "max_at_k", 2) == pytest.approx(7 / 3)
    # the parts of [1, 0] and [0, 4] are both one standard deviation from their means
    both = separately_normalised(np.array([1.0, 0.0]), np.array([0.0, 4.0]), 1.0, 1.0)
    np.testing.assert_allclose(both, 0.0, atol=1e-5)
    one = separately_normalised(np.array([1.0, 0.0]), np.array([0.0, 4.0]), 3.0, 1.0)
    np.testing.assert_allclose(one, [2.0, -2.0], atol=1e-4)


def test_a_part_without_variance_adds_nothing():
    energy = np.array([1.0, 2.0, 4.0])
    both = separately_normalised(energy, np.zeros(3), 1.0, 1.0)
    np.testing.assert_allclose(both, group_normalised(energy))


def test_best_of_k_is_comparable_between_sets_with_different_numbers_of_assemblies():
    rng = np.random.default_rng(0)
    few = np.mean([credit(rng.normal(size=4), "max_at_k", 3) for _ in range(4000)])
    many = np.mean([credit(rng.normal(size=16), "max_at_k", 3) for _ in range(4000)])
    assert few == pytest.approx(many, abs=0.05)
    assert credit(np.array([2.0]), "max_at_k", 3) == 2.0


def test_groups_of_n_at_most_k_are_refused():
    with pytest.raises(ValueError, match="all advantages are zero"):
        pass_at_k(np.arange(3.0), 3)
    with pytest.raises(ValueError, match="k is 0"):
        best_of_k(np.arange(3.0), 0)


def test_k_falls_in_even_steps_over_the_budget():
    settings = LearningSettings(k=3, k_final=1)
    assert [k_at(x, settings) for x in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0, 7.0)] == [3, 3, 2, 2, 1, 1, 1]
    assert [k_at(x, LearningSettings(k=2, k_final=3)) for x in (0.0, 0.49, 0.5, 1.0)] == [2, 2, 3, 3]
    assert {k_at(x, LearningSettings(k=3)) for x in (0.0, 0.5, 1.0)} == {3}


def test_groups_without_variance_are_dropped_and_counted():
    groups = [np.full(4, -10.1), np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, np.nan, 0.0, 0.0]), np.array([1.0])]
    found = annealed(groups, LearningSettings(k=3, anneal="none"), 3, 0)
    assert [v is None for v in found.values] == [True, False, True, True]
    assert found.dead_share == 0.5
    # the best is in every subset of three: the maximum never varies although the rewards do
    saturated = annealed([np.array([5.0, 5.0, 0.0, 0.0])], LearningSettings(k=3), 3, 0)
    assert saturated.values == (None,)
    assert saturated.dead_share == 1.0


@pytest.mark.parametrize("estimator", ["pass_at_k", "group"])
def test_annealing_rewards_changes_nothing_and_annealing_advantages_does(estimator):
    groups = [np.array([0.5, 2.0, -1.0, 3.0, 3.0])]

    def at(anneal: str, number: int) -> np.ndarray:
        settings = LearningSettings(estimator=estimator, k=2, anneal=anneal, warmup_rounds=4)
        values = annealed(groups, settings, 2, number).values[0]
        assert values is not None
        return values

    plain = at("none", 0)
    for number, weight in enumerate((0.25, 0.5, 0.75, 1.0, 1.0)):
        assert warm_up(number, 4) == weight
        np.testing.assert_allclose(at("reward", number), plain, rtol=1e-4)
        np.testing.assert_allclose(at("advantage", number), weight * plain)


def test_advantages_are_clipped():
    rewards = np.array([0.0] * 15 + [100.0])
    values = annealed([rewards], LearningSettings(estimator="group", advantage_clip=2.0), 1, 9).values[0]
    assert values is not None
    assert values.max() == 2.0
    assert (values[:-1] == group_normalised(rewards)[:-1]).all()
