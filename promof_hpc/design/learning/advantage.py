"""Advantages: how far a reward lies above its group, for the best of k, for plain groups, for sets of one target.

With the rewards of a group sorted ascending, g_1 <= ... <= g_n, and every k-subset equally likely,

    rho_k     = sum_{i>=k} C(i-1, k-1) g_i / C(n, k)                              unbiased estimate of E[max of k]
    M_i       = [C(i-1, k-1) g_i + sum_{j>i} C(j-2, k-2) g_j] / C(n-1, k-1)       mean maximum of the subsets with i
    sigma_k^2 = sum_i C(i-1, k-1) g_i^2 / C(n, k) - rho_k^2
    A_i       = (M_i - rho_k) / (sigma_k + eps)

M_i - rho_k is (1 - k/n) times the leave-one-out form of PKPO (arXiv 2505.15201), whose sum with the scores is an
unbiased gradient of E[max of k]; on rewards of 0 and 1 A_i is the analytic advantage of Chen et al. (arXiv 2508.10751);
k = 1 is plain GRPO. Ties need no special case. The best of k follows a single outlier, so rewards should be bounded
(ours are: a floor, a clipped property and a logarithm with a least distance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from promof_hpc.config import LearningSettings

EPSILON = 1e-6  # beside standard deviations of rewards of order 1
DEAD = 0.01  # rewards that spread less are equal: 1 meV/atom, a relaxation's noise, is worth about as much
NO_SIGNAL = 1e-9


@dataclass(frozen=True)
class Advantages:
    """Advantages of several groups.

    Attributes:
        values: of each group, float64 [n]; None where the group is left out.
        dead_share: share of the groups with rewards that say nothing (no variance), of those with rewards.
    """

    values: tuple[np.ndarray | None, ...]
    dead_share: float


def best_of_k(rewards: np.ndarray, k: int) -> float:
    """rho_k: unbiased estimate of the expected maximum of k rewards.

    Args:
        rewards: [n] with n >= k.

    Raises:
        ValueError: k is not in 1..n.
    """
    g, _ = _ascending(rewards, k)
    return float(_last_weights(len(g), k) @ g) / math.comb(len(g), k)


def mean_best_with(rewards: np.ndarray, k: int) -> np.ndarray:
    """M: mean maximum of the k-subsets that contain each member, [n] in the order of `rewards` [n].

    Raises:
        ValueError: k is not in 1..n.
    """
    g, order = _ascending(rewards, k)
    n = len(g)
    later = np.array([math.comb(j - 1, k - 2) if k >= 2 and j >= 1 else 0 for j in range(n)], float) * g
    above = np.concatenate([np.cumsum(later[::-1])[::-1][1:], [0.0]])
    means = np.empty(n)
    means[order] = (_last_weights(n, k) * g + above) / math.comb(n - 1, k - 1)
    return means


def pass_at_k(rewards: np.ndarray, k: int) -> np.ndarray:
    """Advantages [n] of the best of k; zero where the maximum never varies.

    Args:
        rewards: [n] with n > k.

    Raises:
        ValueError: k is not in 1..n-1 (with n = k there is one subset and nothing to compare).
    """
    if k >= len(rewards):
        raise ValueError(f"k is {k}, but a group has {len(rewards)} rewards: with n <= k all advantages are zero")
    shifted = np.asarray(rewards, float) - np.max(rewards)  # rewards that are equal stay exactly equal
    g, _ = _ascending(shifted, k)
    mean = best_of_k(shifted, k)
    variance = float(_last_weights(len(g), k) @ g**2) / math.comb(len(g), k) - mean**2
    return (mean_best_with(shifted, k) - mean) / (math.sqrt(max(0.0, variance)) + EPSILON)


def group_normalised(rewards: np.ndarray) -> np.ndarray:
    """Plain GRPO: distance from the mean in standard deviations (of the group, not of a sample), [n]."""
    shifted = np.asarray(rewards, float) - np.max(rewards)
    return (shifted - shifted.mean()) / (shifted.std() + EPSILON)


def separately_normalised(
    energy: np.ndarray, prop: np.ndarray, energy_weight: float, property_weight: float
) -> np.ndarray:
    """Rewards [n] from two parts [n] that are brought to one scale in their group before they are added."""
    return energy_weight * group_normalised(energy) + property_weight * group_normalised(prop)


def credit(rewards: np.ndarray, how: Literal["max", "mean", "max_at_k"], k: int) -> float:
    """What a component set earns from the rewards [n] of its assemblies; n may differ from set to set.

    max grows with n, `max_at_k` does not: it is the unbiased best of k (of all where there are fewer than k).
    """
    if how == "max":
        return float(np.max(rewards))
    if how == "mean":
        return float(np.mean(rewards))
    return best_of_k(rewards, min(k, len(rewards)))


def k_at(spent_share: float, settings: LearningSettings) -> int:
    """k after a share of the budget is spent: from `k` to `k_final` in even steps, each k for an equal share."""
    first, last = settings.k, settings.k_final if settings.k_final is not None else settings.k
    steps = abs(last - first) + 1
    done = min(steps - 1, math.floor(min(1.0, max(0.0, spent_share)) * steps))
    return first + (done if last > first else -done)


def warm_up(number: int, rounds: int) -> float:
    """Weight of round `number` (from 0) in a warm-up over `rounds`; the first round is never silent."""
    return min(1.0, (number + 1) / rounds) if rounds > 0 else 1.0


def annealed(
    groups: Sequence[np.ndarray], settings: LearningSettings, k: int, number: int, estimator: str | None = None
) -> Advantages:
    """Advantages of groups of rewards with everything that the settings ask for.

    Args:
        groups: rewards [n] of each group; a group with a NaN (cut off by the budget) is left out, and so is one that
            is too small to compare.
        k: of pass_at_k in this round.
        number: of the round, for the warm-up.
        estimator: in place of the setting.
    """
    weight = warm_up(number, settings.warmup_rounds)
    how = estimator or settings.estimator
    least = max(2, k + 1) if how == "pass_at_k" else 2
    values: list[np.ndarray | None] = []
    judged = dead = 0
    for rewards in groups:
        if len(rewards) < least or not np.isfinite(rewards).all():
            values.append(None)
            continue
        judged += 1
        scaled = rewards * weight if settings.anneal == "reward" else rewards
        advantages = pass_at_k(scaled, k) if how == "pass_at_k" else group_normalised(scaled)
        if np.ptp(rewards) < DEAD or np.abs(advantages).max() < NO_SIGNAL:
            dead += 1
            values.append(None)
            continue
        if settings.anneal == "advantage":
            advantages = advantages * weight
        values.append(np.clip(advantages, -settings.advantage_clip, settings.advantage_clip))
    return Advantages(tuple(values), dead / judged if judged else 0.0)


def _ascending(rewards: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards sorted, and the order that sorts them.

    Raises:
        ValueError: k is not in 1..n.
    """
    g = np.asarray(rewards, float)
    if not 1 <= k <= len(g):
        raise ValueError(f"k is {k}, but there are {len(g)} rewards")
    order = np.argsort(g, kind="stable")
    return g[order], order


def _last_weights(n: int, k: int) -> np.ndarray:
    """Number of k-subsets whose largest member is the i-th, C(i-1, k-1) for i = 1..n."""
    return np.array([math.comb(i, k - 1) for i in range(n)], float)
