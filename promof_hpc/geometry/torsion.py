"""Torsions of a molecule: measure them, set them, turn the smaller side of a rotatable bond.

Angles are in rad in (-pi, pi] with the sign of IUPAC (positive: clockwise, seen along the middle bond).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from promof_hpc.geometry.rotation import from_vector


@dataclass(frozen=True)
class Torsions:
    """Rotatable bonds of one molecule and the atoms that move when each is turned.

    Attributes:
        quads: the four atoms of each torsion, int32 [t, 4]; the bond is between the middle two.
        moving: for each torsion the atoms on the smaller side of the bond, its own end left out (it is on the axis).
        signs: +1 where the side of the third atom moves, -1 where that of the second does, [t].
    """

    quads: np.ndarray
    moving: tuple[np.ndarray, ...]
    signs: np.ndarray

    def __len__(self) -> int:
        return len(self.moving)

    @classmethod
    def of(cls, atoms: int, bonds: np.ndarray, quads: np.ndarray) -> Torsions:
        """Find the smaller side of each torsion's bond.

        Args:
            atoms: number of atoms.
            bonds: bonded pairs, int [b, 2].
            quads: torsions as atom quadruples, int [t, 4].

        Raises:
            ValueError: the middle bond of a torsion is in a ring, so it has no sides.
        """
        neighbours: list[list[int]] = [[] for _ in range(atoms)]
        for a, b in np.asarray(bonds, int).reshape(-1, 2):
            neighbours[a].append(int(b))
            neighbours[b].append(int(a))
        quads = np.asarray(quads, np.int32).reshape(-1, 4)
        moving, signs = [], []
        for _, b, c, _ in quads:
            far = _side(neighbours, int(c), int(b))
            if int(b) in far:
                raise ValueError(f"the bond {b}-{c} is in a ring and cannot be turned")
            third_moves = 2 * len(far) <= atoms
            side = far if third_moves else set(range(atoms)) - far
            moving.append(np.array(sorted(side - {int(b), int(c)}), np.int32))
            signs.append(1.0 if third_moves else -1.0)
        return cls(quads, tuple(moving), np.array(signs))


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles in rad brought into (-pi, pi]."""
    wrapped: np.ndarray = -((-np.asarray(angle) + np.pi) % (2.0 * np.pi) - np.pi)
    return wrapped


def measure(positions: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Torsion angles [..., t] in rad of positions [..., n, 3] (Å) for atom quadruples int [t, 4].

    A torsion whose atoms are collinear has no angle: 0 is given.
    """
    a, b, c, d = (positions[..., quads[:, k], :] for k in range(4))
    axis = c - b
    first, second = np.cross(b - a, axis), np.cross(axis, d - c)
    sine = (np.cross(first, second) * axis).sum(-1) / np.maximum(np.linalg.norm(axis, axis=-1), 1e-12)
    angle: np.ndarray = np.arctan2(sine, (first * second).sum(-1))
    return angle


def turn(positions: np.ndarray, torsions: Torsions, change: np.ndarray) -> np.ndarray:
    """Positions [..., n, 3] after each torsion is changed by `change` [..., t] (rad); bond lengths and angles stay.

    The torsions of a molecule without ring bonds among them are independent, so their order does not matter.
    """
    turned = np.array(positions, np.float64)
    for k, ((_, b, c, _), moving) in enumerate(zip(torsions.quads, torsions.moving, strict=True)):
        axis = turned[..., c, :] - turned[..., b, :]
        axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-12)
        rotation = from_vector(axis * (torsions.signs[k] * np.asarray(change)[..., k])[..., None])
        arms = turned[..., moving, :] - turned[..., c, :][..., None, :]
        # adding the difference leaves positions bit by bit alone where nothing changes
        turned[..., moving, :] += arms @ np.swapaxes(rotation - np.eye(3), -1, -2)
    return turned


def set_angles(positions: np.ndarray, torsions: Torsions, angles: np.ndarray) -> np.ndarray:
    """Positions [..., n, 3] (Å) with every torsion at `angles` [..., t] (rad)."""
    return turn(positions, torsions, wrap(np.asarray(angles) - measure(positions, torsions.quads)))


def derivatives(positions: np.ndarray, torsions: Torsions) -> np.ndarray:
    """Velocity of every atom per unit change of each torsion, [t, n, 3] in Å/rad, for positions [n, 3]."""
    velocity = np.zeros((len(torsions), *positions.shape))
    for k, ((_, b, c, _), moving) in enumerate(zip(torsions.quads, torsions.moving, strict=True)):
        axis = positions[c] - positions[b]
        axis = torsions.signs[k] * axis / max(float(np.linalg.norm(axis)), 1e-12)
        velocity[k, moving] = np.cross(axis, positions[moving] - positions[c])
    return velocity


def _side(neighbours: list[list[int]], start: int, blocked: int) -> set[int]:
    """Atoms reached from `start` without the bond start-blocked; `blocked` is among them only in a ring."""
    seen, queue = {start}, deque([start])
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if other in seen or (atom == start and other == blocked):
                continue
            seen.add(other)
            queue.append(other)
    return seen
