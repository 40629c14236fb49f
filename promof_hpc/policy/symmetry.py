"""Poses of one block that look the same: rotations that carry it onto itself, and renumberings of flexible linkers.

Atoms are alike if they are of one element and play the same part in contacts, so that an equivalent pose also offers
its donors and sites where they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promof_hpc.assembly.components import BuildingBlock, Components, End, Solution
from promof_hpc.chem.numbering import Graph, numberings
from promof_hpc.geometry.rotation import angle_between, from_vector, superpose, two_vector_frame
from promof_hpc.geometry.torsion import Torsions, measure, set_angles

TOLERANCE_ANG = 0.35  # alike points this near are the same point; crystals are rarely more regular
SAME_TURN_RAD = 0.15
MOST_COPIES = 24
SPINS = 12  # orientations of a linear block about its axis
MOST_FRAMES = 600

Label = tuple[int, ...]


@dataclass(frozen=True)
class BlockCopies:
    """Poses of a block that look like a given one.

    Attributes:
        turns: the copy has the pose R Q where the block has R, [S, 3, 3]; the first is the identity; none for a single
            atom, which looks the same however it is turned.
        angles: torsion angles of each copy in rad, [S, t].
        folds: turns by 2 pi / fold leave the look of what each torsion moves, int [t].
    """

    turns: np.ndarray
    angles: np.ndarray
    folds: np.ndarray


def copies_of(components: Components, solution: Solution) -> list[BlockCopies]:
    """Equivalent poses of every block of a solution. Equal blocks are worked out once."""
    found, known, first = [], {}, 0
    for k, block in enumerate(components.blocks):
        t = 0 if block.torsions is None else len(block.torsions)
        angles = np.asarray(solution.angles[first : first + t], np.float64)
        first += t
        node_ends = [e for e in components.node_ends if e.block == k]
        linker_ends = [e for e in components.linker_ends if e.block == k]
        labels = _roles(block, linker_ends)
        key = (
            block.local.tobytes(),
            angles.tobytes(),
            tuple(labels),
            tuple(e.site.positions.tobytes() for e in node_ends),
        )
        if key not in known:
            known[key] = _copies(block, angles, labels, node_ends)
        found.append(known[key])
    return found


def symmetric_turns(points: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Proper rotations Q [S, 3, 3] about the origin that carry like points onto like points; the identity first.

    Args:
        points: in Å, [n, 3].
        labels: a label each.

    Returns:
        No rotation at all where all points are at the origin, `SPINS` for each direction of a linear set.
    """
    radius = np.linalg.norm(points, axis=1)
    if radius.max(initial=0.0) < TOLERANCE_ANG:
        return np.zeros((0, 3, 3))
    numbers = {label: k for k, label in enumerate(sorted(set(labels)))}
    kind = np.array([numbers[label] for label in labels])
    first = _rarest(kind, radius > 0.5 * radius.max(), radius)
    area = np.linalg.norm(np.cross(points[first] / radius[first], points), axis=1)
    if area.max() < TOLERANCE_ANG:
        candidates = _spins(points, first)
    else:
        second = _rarest(kind, area > 0.5 * area.max(), area)
        candidates = _frames(points, kind, first, second)
    kept: list[np.ndarray] = [np.eye(3)]
    for q in candidates:
        refined = _onto_itself(points, kind, q, linear=area.max() < TOLERANCE_ANG)
        if refined is not None and (angle_between(np.array(kept), refined) > SAME_TURN_RAD).all():
            kept.append(refined)
    return np.array(kept[:MOST_COPIES])


def _copies(block: BuildingBlock, angles: np.ndarray, labels: list[Label], node_ends: Sequence[End]) -> BlockCopies:
    local = block.local - block.local.mean(0)
    if block.torsions is None:
        points, kinds = [local], list(labels)
        for end in node_ends:
            points += [end.site.positions - block.local.mean(0), end.site.behind - block.local.mean(0)]
            for mark in (200, 400):  # beyond all elements
                kinds += [(mark + int(z), len(end.site.elements)) for z in end.site.elements]
        turns = symmetric_turns(np.concatenate(points), kinds)
        return BlockCopies(turns, np.zeros((max(len(turns), 1), 0)), np.zeros(0, int))
    bent = set_angles(local, block.torsions, angles)
    bent = bent - bent.mean(0)
    folds = np.array([_fold(bent, block.torsions, t, labels) for t in range(len(block.torsions))])
    turns, copied = _renumbered(block, bent, angles, labels)
    return BlockCopies(turns, copied, folds)


def _roles(block: BuildingBlock, ends: Sequence[End]) -> list[Label]:
    """Element and contacts of every atom."""
    parts: dict[int, list[int]] = defaultdict(list)
    for end in ends:
        for donor in end.donors:
            parts[int(donor)].append(len(end.donors))
    return [(int(z), *sorted(parts[k])) for k, z in enumerate(block.numbers)]


def _rarest(kind: np.ndarray, good: np.ndarray, size: np.ndarray) -> int:
    """A point of the rarest kind among the good ones, the furthest out of them."""
    rarity = np.bincount(kind)[kind].astype(float)
    return int(np.lexsort((-size, np.where(good, rarity, np.inf)))[0])


def _spins(points: np.ndarray, first: int) -> np.ndarray:
    """Rotations about a line, and the same after turning it round."""
    axis = points[first] / np.linalg.norm(points[first])
    across = two_vector_frame(axis, np.eye(3)[np.abs(axis).argmin()])[1]
    spins = from_vector(axis * (2 * np.pi * np.arange(SPINS) / SPINS)[:, None])
    return np.concatenate([spins, spins @ from_vector(across * np.pi)])


def _frames(points: np.ndarray, kind: np.ndarray, first: int, second: int) -> np.ndarray:
    """Rotations that lay two points on like pairs at like places."""
    radius = np.linalg.norm(points, axis=1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    fits = (np.abs(radius - radius[first]) < 2 * TOLERANCE_ANG)[:, None]
    fits = fits & (np.abs(radius - radius[second]) < 2 * TOLERANCE_ANG)[None]
    fits &= np.abs(apart - apart[first, second]) < 2 * TOLERANCE_ANG
    fits &= (kind == kind[first])[:, None] & (kind == kind[second])[None]
    i, j = (x[:MOST_FRAMES] for x in np.nonzero(fits))
    own = two_vector_frame(points[first], points[second])
    frames: np.ndarray = np.swapaxes(two_vector_frame(points[i], points[j]), -1, -2) @ own
    return frames


def _onto_itself(points: np.ndarray, kind: np.ndarray, q: np.ndarray, linear: bool) -> np.ndarray | None:
    """The rotation near q that carries the points onto themselves best; None where it does not."""
    moved = points @ q.T
    squares = ((moved[:, None] - points[None]) ** 2).sum(-1) + np.where(kind[:, None] == kind[None], 0.0, np.inf)
    order = squares.argmin(1)
    if len(set(order.tolist())) < len(order) or squares[np.arange(len(order)), order].max() > 4 * TOLERANCE_ANG**2:
        return None
    if linear:
        return q
    fit = superpose(points, points[order])
    return fit.rotation if fit.rmsd_ang < TOLERANCE_ANG else None


def _fold(points: np.ndarray, torsions: Torsions, t: int, labels: Sequence[Label]) -> int:
    """How often what a torsion moves looks the same in one turn: 1, 2 or 3."""
    _, b, c, _ = torsions.quads[t]
    moving = torsions.moving[t]
    arms = points[moving] - points[c]
    axis = (points[c] - points[b]) / np.linalg.norm(points[c] - points[b])
    alike = np.array([[labels[i] == labels[j] for j in moving] for i in moving])
    for fold in (3, 2):
        turned = arms @ from_vector(axis * (2 * np.pi / fold)).T
        apart = np.where(alike, np.linalg.norm(turned[:, None] - arms[None], axis=-1), np.inf)
        if len(moving) and apart.min(1).max() < 2 * TOLERANCE_ANG:
            return fold
    return 1


def _renumbered(
    block: BuildingBlock, bent: np.ndarray, angles: np.ndarray, labels: Sequence[Label]
) -> tuple[np.ndarray, np.ndarray]:
    """Turns [S, 3, 3] and angles [S, t] of poses in which atoms stand in each other's places."""
    assert block.torsions is not None  # asked for flexible linkers only
    assert block.mol is not None
    turns, copied = [np.eye(3)], [angles]
    graph = Graph.of(block.mol)
    heavy = np.flatnonzero(block.numbers > 1)
    for order in numberings(graph, graph):
        settled = _settled(order, graph, labels)
        if settled is None:
            continue
        there = bent[settled]
        own = measure(there, block.torsions.quads)
        here = set_angles(bent, block.torsions, own)
        fit = superpose((here - here.mean(0))[graph.core], (there - there.mean(0))[graph.core])
        if fit.rmsd_ang > TOLERANCE_ANG or not _spread_out(here[graph.core]):
            continue
        q = superpose((here - here.mean(0))[heavy], (there - there.mean(0))[heavy]).rotation
        new = angle_between(np.array(turns), fit.rotation) > SAME_TURN_RAD
        if new.all() and angle_between(q, fit.rotation) < 4 * SAME_TURN_RAD:
            turns.append(fit.rotation)
            copied.append(own)
    return np.array(turns[:MOST_COPIES]), np.array(copied[:MOST_COPIES])


def _settled(order: np.ndarray, graph: Graph, labels: Sequence[Label]) -> np.ndarray | None:
    """The order with like branch ends exchanged so that donors stand for donors; None where that cannot be."""
    settled = order.copy()
    for group in graph.siblings.values():
        left = [int(order[k]) for k in group]
        for k in group:
            fitting = [m for m in left if labels[m] == labels[k]]
            if not fitting:
                return None
            settled[k] = fitting[0]
            left.remove(fitting[0])
            settled[graph.hydrogens[k]] = graph.hydrogens[fitting[0]]
    return settled if all(labels[m] == labels[k] for k, m in enumerate(settled)) else None


def _spread_out(points: np.ndarray) -> bool:
    """Whether points fix an orientation."""
    return len(points) >= 3 and bool(np.linalg.svd(points - points.mean(0), compute_uv=False)[1] > TOLERANCE_ANG)
