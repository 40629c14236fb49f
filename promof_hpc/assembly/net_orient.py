"""How a block can be turned so that its contacts point along the edges of a net's vertex: slots and misfit.

A contact is seen as two unit vectors: from the block's centroid to the contact, and from the contact to what lies
behind it. Given which end of the block takes which edge, the best rotation follows in closed form; few ends are
tried in every order, many from starting frames refined by turns of assignment (Hungarian) and superposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from promof_hpc.geometry.rotation import optimal_rotation, random_rotations, two_vector_frame

WEIGHTS = np.array([1.0, 0.4])  # of the direction to the contact, and of what lies behind it
MOST_PERMUTED = 4  # ends up to which every order is tried
BARRED = 100.0  # cost of an end on an edge that it cannot take
STARTS = 48  # frames of a problem that are looked at
REFINED = 6  # of them refined
REFINEMENTS = 2
NEWTON_STEPS = 24  # a double root (collinear vectors) is approached by halves


@dataclass(frozen=True)
class Orientations:
    """The best ways to put blocks on vertices, N problems with at most n answers each, best first.

    Attributes:
        cost: mean squared misfit of the weighted unit vectors, [N, n]; infinite where there is no further answer.
        slots: edge that each end takes, int [N, n, k]; no two answers of a problem are equal.
    """

    cost: np.ndarray
    slots: np.ndarray


def orientations(
    ends: np.ndarray, edges: np.ndarray, penalty: np.ndarray, keep: int, generator: np.random.Generator
) -> Orientations:
    """Best slots of N blocks of k ends on N vertices of k edges.

    Args:
        ends: unit vectors (to the contact, behind it) of the ends in the blocks' frames, [N, k, 2, 3].
        edges: the same of the edges, seen from the vertices, [N, k, 2, 3].
        penalty: added to the cost of an end on an edge, [N, k, k]; `BARRED` forbids it.
        keep: answers kept of each problem.
    """
    pairs = np.einsum("c,nica,njcb->nijab", WEIGHTS, ends, edges)
    if ends.shape[1] <= MOST_PERMUTED:
        orders = np.broadcast_to(_orders(ends.shape[1]), (len(ends), *_orders(ends.shape[1]).shape))
    else:
        orders = _refined(ends, edges, pairs, penalty, generator)
    return _best(pairs, penalty, orders, keep)


def rotations_for(ends: np.ndarray, edges: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Rotations [..., 3, 3] that lay ends on edges, both [..., k, 2, 3], in their order.

    Args:
        jitter: added to the covariance, [..., 3, 3]: it draws the spin of a block whose vectors are collinear, which
            nothing else decides.
    """
    return optimal_rotation(np.einsum("c,...ica,...icb->...ab", WEIGHTS, ends, edges) + jitter)


@lru_cache
def _orders(count: int) -> np.ndarray:
    """Every order of `count` ends, int [count!, count]."""
    return np.array(list(permutations(range(count))))


def _best(pairs: np.ndarray, penalty: np.ndarray, orders: np.ndarray, keep: int) -> Orientations:
    """The best distinct orders [N, n, k] of those given [N, m, k]."""
    n, _, k = orders.shape
    rows, at = np.arange(n)[:, None, None], np.arange(k)
    covariance = pairs[rows, at, orders].sum(2)
    cost = 2.0 * WEIGHTS.sum() - 2.0 * _best_overlap(covariance) / k + penalty[rows, at, orders].sum(2) / k
    cost = np.where(_repeated(orders, cost), np.inf, np.where(cost < BARRED / (2 * k), cost, np.inf))
    best = np.argsort(cost, axis=1, kind="stable")[:, :keep]
    take = np.arange(n)[:, None], best
    return Orientations(cost[take], orders[take])


def _best_overlap(covariance: np.ndarray) -> np.ndarray:
    """The largest trace(R @ covariance) over proper rotations R, [...] for covariances [..., 3, 3].

    It is the largest root of x^4 - 2 a x^2 - 8 d x + 2 b - a^2 with a = |C|^2, b = |C^T C|^2, d = det C (Theobald, Acta
    Cryst. A61 (2005) 478), found by Newton's method from above; much cheaper than the rotation itself.
    """
    squares = (covariance**2).sum((-1, -2))
    products = ((np.swapaxes(covariance, -1, -2) @ covariance) ** 2).sum((-1, -2))
    volume = np.linalg.det(covariance)
    x = np.sqrt(3.0 * squares) + 1e-12
    for _ in range(NEWTON_STEPS):
        value = ((x * x - 2.0 * squares) * x - 8.0 * volume) * x + 2.0 * products - squares**2
        slope = (4.0 * x * x - 4.0 * squares) * x - 8.0 * volume
        x = x - np.where(slope > 1e-12 * x**3, value / np.maximum(slope, 1e-300), 0.0)
    return x


def _repeated(orders: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """True for orders [N, m, k] that a cheaper or earlier one equals, [N, m]."""
    n, m, k = orders.shape
    if k <= MOST_PERMUTED:
        return np.zeros((n, m), bool)
    same = (orders[:, :, None] == orders[:, None]).all(-1)
    earlier = np.arange(m) < np.arange(m)[:, None]
    before = (cost[:, None] < cost[:, :, None]) | ((cost[:, None] == cost[:, :, None]) & earlier)
    repeated: np.ndarray = (same & before).any(-1)
    return repeated


def _refined(
    ends: np.ndarray, edges: np.ndarray, pairs: np.ndarray, penalty: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Promising orders [N, REFINED, k] of many ends."""
    n, k = ends.shape[:2]
    rotation = _frames(ends, edges, penalty, generator)
    cost = _costs(pairs, penalty, rotation)
    promising = np.argsort(cost.min(-1).sum(-1), axis=1, kind="stable")[:, :REFINED]
    take = np.arange(n)[:, None], promising
    rotation, cost = rotation[take], cost[take]
    rows, at = np.arange(n)[:, None, None], np.arange(k)
    orders = np.zeros((n, rotation.shape[1], k), int)
    for _ in range(REFINEMENTS):
        for place in np.ndindex(orders.shape[:2]):
            orders[place] = linear_sum_assignment(cost[place])[1]
        rotation = optimal_rotation(pairs[rows, at, orders].sum(2))
        cost = _costs(pairs, penalty, rotation)
    return orders


def _costs(pairs: np.ndarray, penalty: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Cost of every end on every edge under rotations [N, m, 3, 3]: [N, m, k, k]."""
    overlap = np.einsum("nmab,nijba->nmij", rotation, pairs, optimize=True)
    costs: np.ndarray = 2.0 * WEIGHTS.sum() - 2.0 * overlap + penalty[:, None]
    return costs


def _frames(ends: np.ndarray, edges: np.ndarray, penalty: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rotations [N, STARTS, 3, 3]: two ends of the block laid on pairs of edges, and some at random.

    The first end may go on any edge it can take, the second, the one most perpendicular to it, on any other.
    """
    n, k = ends.shape[:2]
    outward, there = ends[:, :, 0], edges[:, :, 0]
    second = 1 + np.argmin(np.abs(np.einsum("nia,na->ni", outward[:, 1:], outward[:, 0])), axis=1)
    own = two_vector_frame(outward[:, 0], outward[np.arange(n), second])
    i, j = np.nonzero(~np.eye(k, dtype=bool))
    # pairs of edges at the angle of the two ends come first; ties are broken at random
    wanted = np.einsum("na,na->n", outward[:, 0], outward[np.arange(n), second])
    angle = np.abs(np.einsum("npa,npa->np", there[:, i], there[:, j]) - wanted[:, None])
    bar = penalty[:, 0, i] + np.take_along_axis(penalty, second[:, None, None], 1)[:, 0][:, j]
    chosen = np.argsort(angle + bar + 0.3 * generator.random(angle.shape), axis=1)[:, : STARTS - 4]
    rows = np.arange(n)[:, None]
    frames = two_vector_frame(there[rows, i[chosen]], there[rows, j[chosen]])
    starts = np.swapaxes(frames, -1, -2) @ own[:, None]
    random = np.broadcast_to(random_rotations(generator, 4), (n, 4, 3, 3))
    return np.concatenate([starts, random], axis=1)
