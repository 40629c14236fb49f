"""Rotations in three dimensions: superposition, rotation vectors, uniform random draws.

Convention everywhere: points are rows, and a rotation R [3, 3] acts as `points @ R.T`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL_ANGLE_RAD = 1e-4  # below it the series of sin(x)/x is more exact than the quotient
NEAR_PI_RAD = 1e-3  # this close to half a turn the antisymmetric part of R no longer shows the axis


@dataclass(frozen=True)
class Superposition:
    """The rigid motion that lays one point set on another: `(moving - moving_centre) @ rotation.T + fixed_centre`.

    Attributes:
        rotation: proper rotation [3, 3].
        moving_centre: weighted mean of the moving points in Å, [3].
        fixed_centre: weighted mean of the fixed points in Å, [3].
        rmsd_ang: weighted root mean square distance after the motion, in Å.
    """

    rotation: np.ndarray
    moving_centre: np.ndarray
    fixed_centre: np.ndarray
    rmsd_ang: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Move `points` [..., 3] (Å) as the moving set was moved."""
        moved: np.ndarray = (points - self.moving_centre) @ self.rotation.T + self.fixed_centre
        return moved


def superpose(moving: np.ndarray, fixed: np.ndarray, weights: np.ndarray | None = None) -> Superposition:
    """Least-squares superposition by a proper rotation (Kabsch, Acta Cryst. A32 (1976) 922).

    Collinear or single points leave part of the rotation free; one of the optimal rotations is returned.

    Args:
        moving: points in Å, [n, 3].
        fixed: their partners in Å, [n, 3].
        weights: weight of each pair, [n], not all zero; equal where None.

    Raises:
        ValueError: the shapes differ, or there are no points.
    """
    if moving.shape != fixed.shape or moving.ndim != 2 or not len(moving):
        raise ValueError(f"two point sets [n, 3] of one length are needed, not {moving.shape} and {fixed.shape}")
    w = np.full(len(moving), 1.0 / len(moving)) if weights is None else weights / weights.sum()
    moving_centre, fixed_centre = w @ moving, w @ fixed
    a, b = moving - moving_centre, fixed - fixed_centre
    rotation = optimal_rotation((a * w[:, None]).T @ b)
    residual = a @ rotation.T - b
    return Superposition(rotation, moving_centre, fixed_centre, float(np.sqrt(w @ (residual**2).sum(1))))


def optimal_rotation(covariance: np.ndarray) -> np.ndarray:
    """Proper rotations R [..., 3, 3] that maximise trace(R @ covariance), covariance = moving.T @ fixed [..., 3, 3]."""
    u, _, vt = np.linalg.svd(covariance)
    hand = np.linalg.det(u) * np.linalg.det(vt)
    vt = vt.copy()
    vt[..., 2, :] *= np.where(hand < 0, -1.0, 1.0)[..., None]
    rotation: np.ndarray = np.swapaxes(u @ vt, -1, -2)
    return rotation


def from_vector(vector: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3] (axis times angle in rad; Rodrigues' formula)."""
    v = np.asarray(vector, np.float64)
    angle = np.linalg.norm(v, axis=-1)[..., None, None]
    small = angle < SMALL_ANGLE_RAD
    safe = np.where(small, 1.0, angle)
    sine = np.where(small, 1.0 - angle**2 / 6.0, np.sin(safe) / safe)
    cosine = np.where(small, 0.5 - angle**2 / 24.0, (1.0 - np.cos(safe)) / safe**2)
    k = cross_matrix(v)
    return np.eye(3) + sine * k + cosine * (k @ k)


def to_vector(rotation: np.ndarray) -> np.ndarray:
    """Rotation vectors [..., 3] in rad, of length 0 to pi, of rotation matrices [..., 3, 3]."""
    r = np.asarray(rotation, np.float64)
    sine = 0.5 * np.stack(
        [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], axis=-1
    )
    length = np.linalg.norm(sine, axis=-1, keepdims=True)
    # atan2 keeps all digits where arccos of the trace loses half of them
    angle = np.arctan2(length, 0.5 * (np.trace(r, axis1=-2, axis2=-1) - 1.0)[..., None])
    plain = sine * np.where(length > 1e-12, angle / np.where(length > 1e-12, length, 1.0), 1.0)
    near_pi = angle > np.pi - NEAR_PI_RAD
    return np.where(near_pi, _axis_near_pi(r, sine) * angle, plain)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle in rad of the rotation that takes a to b, both [..., 3, 3]."""
    distance: np.ndarray = np.linalg.norm(to_vector(b @ np.swapaxes(a, -1, -2)), axis=-1)
    return distance


def random_rotations(generator: np.random.Generator, count: int) -> np.ndarray:
    """Rotations [count, 3, 3] drawn uniformly from SO(3) (normalised Gaussian quaternions)."""
    q = generator.normal(size=(count, 4))
    return from_quaternion(q / np.linalg.norm(q, axis=1, keepdims=True))


def from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of unit quaternions [..., 4] in the order w, x, y, z."""
    w, v = quaternion[..., :1, None], quaternion[..., 1:]
    k = cross_matrix(v)
    return np.eye(3) + 2.0 * w * k + 2.0 * (k @ k)


def cross_matrix(vector: np.ndarray) -> np.ndarray:
    """The antisymmetric matrices K [..., 3, 3] with K @ x = vector x x, for vectors [..., 3]."""
    x, y, z = np.moveaxis(np.asarray(vector, np.float64), -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def two_vector_frame(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Right-handed frames [..., 3, 3], rows: along `first`, in the plane of both, normal to it.

    Where the two vectors [..., 3] are parallel, any perpendicular direction is taken.
    """
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    rest = second - (second * x).sum(-1, keepdims=True) * x
    length = np.linalg.norm(rest, axis=-1, keepdims=True)
    spare = np.eye(3)[np.abs(x).argmin(-1)]
    spare = spare - (spare * x).sum(-1, keepdims=True) * x
    parallel = length < 1e-6 * np.maximum(np.linalg.norm(second, axis=-1, keepdims=True), 1e-12)
    y = np.where(parallel, spare, rest)
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-2)


def _axis_near_pi(rotation: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Unit axes [..., 3] from the symmetric part, whose largest column is parallel to the axis near half a turn."""
    cosine = 0.5 * (np.trace(rotation, axis1=-2, axis2=-1) - 1.0)[..., None, None]
    symmetric = 0.5 * (rotation + np.swapaxes(rotation, -1, -2)) - cosine * np.eye(3)
    column = np.diagonal(symmetric, axis1=-2, axis2=-1).argmax(-1)
    axis = np.take_along_axis(symmetric, column[..., None, None], axis=-1)[..., 0]
    axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-300)
    hand = np.where((axis * sine).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    signed: np.ndarray = axis * hand
    return signed
