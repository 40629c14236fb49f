"""Superpose two labelled point sets whose pairing is not known: metal nodes with their connection sites."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from promof_hpc.geometry.rotation import Superposition, superpose, two_vector_frame

ANCHOR_TOLERANCE_ANG = 1.0  # pairs of anchors whose lengths differ by more cannot be the same pair
MAX_STARTS = 256
REFINED_STARTS = 4
REFINEMENTS = 4
FORBIDDEN = 1e6  # cost in Å² of pairing points with different labels


@dataclass(frozen=True)
class PointMatch:
    """A pairing of two point sets and the motion that goes with it.

    Attributes:
        order: moving point order[k] stands for fixed point k, int [n].
        fit: the motion of the moving points.
    """

    order: np.ndarray
    fit: Superposition


def match_points(
    moving: np.ndarray,
    moving_labels: list[str],
    fixed: np.ndarray,
    fixed_labels: list[str],
    weights: np.ndarray | None = None,
) -> PointMatch | None:
    """The pairing of like-labelled points and the proper rotation with the least weighted mean square distance.

    Two anchor points of the fixed set are laid on every fitting pair of the moving set; the most promising
    rotations are refined by turns of assignment (Hungarian) and superposition. Exact for sets that are
    alike within about half an ångström, a good guess beyond. Mirror images are not superposed.

    Args:
        moving: points in Å about a natural origin (the centroid of a block), [n, 3].
        moving_labels: a label each; only like labels are paired.
        fixed: points in Å about the same kind of origin, [n, 3].
        fixed_labels: a label each.
        weights: weight of each fixed point in the superposition, [n].

    Returns:
        None where the labels do not pair up.
    """
    if Counter(moving_labels) != Counter(fixed_labels):
        return None
    numbering = {label: k for k, label in enumerate(sorted(set(fixed_labels)))}
    labels_m = np.array([numbering[label] for label in moving_labels])
    labels_f = np.array([numbering[label] for label in fixed_labels])
    forbidden = np.where(labels_f[:, None] == labels_m[None, :], 0.0, FORBIDDEN)
    best: PointMatch | None = None
    for rotation in _promising(_starts(moving, labels_m, fixed, labels_f), moving, fixed, forbidden):
        found = _refine(rotation, moving, fixed, forbidden, weights)
        if best is None or found.fit.rmsd_ang < best.fit.rmsd_ang:
            best = found
    return best


def _starts(moving: np.ndarray, labels_m: np.ndarray, fixed: np.ndarray, labels_f: np.ndarray) -> np.ndarray:
    """Rotations [r, 3, 3] that lay the anchors of the fixed set on alike pairs of the moving set."""
    first, second = _anchors(fixed, labels_f)
    if np.linalg.norm(fixed[first]) < 1e-6:  # one point, or all of them at the origin
        return np.eye(3)[None]
    radius_m, radius_f = np.linalg.norm(moving, axis=1), np.linalg.norm(fixed, axis=1)
    separation = np.linalg.norm(moving[:, None] - moving[None], axis=-1)
    mismatch = (
        np.abs(radius_m - radius_f[first])[:, None]
        + np.abs(radius_m - radius_f[second])[None]
        + np.abs(separation - np.linalg.norm(fixed[first] - fixed[second]))
    )
    alike = (labels_m == labels_f[first])[:, None] & (labels_m == labels_f[second])[None]
    alike &= (radius_m > 1e-6)[:, None]
    if first != second:
        alike &= ~np.eye(len(moving), dtype=bool)
    i, j = np.nonzero(alike & (mismatch < 3 * ANCHOR_TOLERANCE_ANG))
    if not len(i):
        i, j = np.nonzero(alike)
    if not len(i):
        return np.eye(3)[None]
    chosen = np.argsort(mismatch[i, j], kind="stable")[:MAX_STARTS]
    frames = two_vector_frame(moving[i[chosen]], moving[j[chosen]])
    target = two_vector_frame(fixed[first], fixed[second])
    starts: np.ndarray = target.T @ frames
    return starts


def _anchors(points: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Two points that fix an orientation: far out, not collinear with the origin, with the rarest labels."""
    rarity = np.bincount(labels)[labels].astype(float)
    radius = np.linalg.norm(points, axis=1)
    outer = radius > 0.5 * radius.max()
    first = int(np.lexsort((-radius, np.where(outer, rarity, np.inf)))[0])
    area = np.linalg.norm(np.cross(points[first], points), axis=1)
    wide = area > 0.5 * area.max() if area.max() > 1e-6 else np.arange(len(points)) == first
    second = int(np.lexsort((-area, np.where(wide, rarity, np.inf)))[0])
    return first, second


def _promising(rotations: np.ndarray, moving: np.ndarray, fixed: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
    """The rotations whose nearest-neighbour cost, a lower bound of the assignment's, is least."""
    moved = np.einsum("rij,mj->rmi", rotations, moving)
    bounds = np.array([(_squares(fixed, m) + forbidden).min(1).mean() for m in moved])
    return rotations[np.argsort(bounds, kind="stable")[:REFINED_STARTS]]


def _refine(
    rotation: np.ndarray, moving: np.ndarray, fixed: np.ndarray, forbidden: np.ndarray, weights: np.ndarray | None
) -> PointMatch:
    """Assign and superpose in turn until the pairing stays."""
    moved = moving @ rotation.T
    order = np.full(len(moving), -1)
    for _ in range(REFINEMENTS):
        _, assigned = linear_sum_assignment(_squares(fixed, moved) + forbidden)
        if np.array_equal(assigned, order):
            break
        order = assigned
        fit = superpose(moving[order], fixed, weights)
        moved = fit.apply(moving)
    return PointMatch(order, fit)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [len(a), len(b)]."""
    squares: np.ndarray = ((a[:, None] - b[None]) ** 2).sum(-1)
    return squares
