"""Clearance of a point, its distance to the nearest atom's surface: on a grid, its maxima in boxes, its passes.

Clearance changes by at most one Å per Å, so the value at the middle of a box bounds it all over the box. Every
kernel here lives on that: atoms too far to matter in a box are dropped before its parts are looked at, and a maximum
is found by branch and bound. Shapes: `spheres` [m, 4] holds x, y, z, radius in Å; `frame` [3, 3] the edge vectors of
one voxel in rows; voxel (i, j, k) fills (i..i+1, j..j+1, k..k+1) @ frame and has the flat index (i·ny + j)·nz + k.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 8  # voxels along the edge of a block, the unit for which the atoms nearby are collected
FRONT = 8192  # boxes that branch and bound may hold before it stops refining


def neighbourhood(fractional: np.ndarray, cell: np.ndarray, radii: np.ndarray, pad: float) -> np.ndarray:
    """Atoms of the cell and their images up to `pad` Å outside it, as spheres [m, 4].

    Args:
        fractional: coordinates [n, 3], any image.
        cell: lattice vectors in rows in Å [3, 3].
        radii: Å [n].
    """
    reach = pad * np.linalg.norm(np.linalg.inv(cell), axis=0)  # in fractions, across the planes of the cell
    wrapped = fractional % 1.0
    parts = []
    for shift in np.ndindex(*(2 * np.ceil(reach).astype(int) + 1)):
        moved = wrapped + (np.array(shift) - np.ceil(reach))
        near = np.all((moved > -reach) & (moved < 1.0 + reach), axis=1)
        parts.append(np.column_stack([moved[near] @ cell, radii[near]]))
    return np.ascontiguousarray(np.concatenate(parts))


def half_diagonal(edges: np.ndarray) -> float:
    """Largest distance in Å from the middle of the box spanned by `edges` [k, 3] to a corner."""
    signs = np.array(np.meshgrid(*[[-0.5, 0.5]] * len(edges), indexing="ij")).reshape(len(edges), -1).T
    return float(np.linalg.norm(signs @ edges, axis=1).max())


@njit(cache=True)
def clearance(point: np.ndarray, spheres: np.ndarray, kept: np.ndarray, count: int) -> float:
    """Distance in Å from `point` [3] to the nearest surface among the spheres kept[:count]."""
    best = np.inf
    for q in range(count):
        s = spheres[kept[q]]
        dx, dy, dz = point[0] - s[0], point[1] - s[1], point[2] - s[2]
        best = min(best, np.sqrt(dx * dx + dy * dy + dz * dz) - s[3])
    return best


@njit(cache=True)
def shortlist(
    point: np.ndarray, reach: float, spheres: np.ndarray, pool: np.ndarray, size: int, kept: np.ndarray
) -> tuple[float, int]:
    """Spheres of pool[:size] that can be the nearest somewhere within `reach` Å of `point`; returns (clearance, count).

    Their indices are written to `kept`.
    """
    nearest = clearance(point, spheres, pool, size)
    limit = nearest + 2.0 * reach
    count = 0
    for q in range(size):
        s = spheres[pool[q]]
        dx, dy, dz = point[0] - s[0], point[1] - s[1], point[2] - s[2]
        far = limit + s[3]
        if dx * dx + dy * dy + dz * dz <= far * far:
            kept[count] = pool[q]
            count += 1
    return nearest, count


@njit(cache=True)
def maximise(
    centre: np.ndarray,
    half: np.ndarray,
    reach: float,
    spheres: np.ndarray,
    kept: np.ndarray,
    count: int,
    best: float,
    tolerance: float,
    where: np.ndarray,
) -> float:
    """The larger of `best` and the largest clearance in a box, at most `tolerance` Å too low.

    Args:
        centre: middle of the box [3].
        half: half edge vectors [k, 3]; k = 2 for a face, 3 for a voxel.
        reach: half diagonal of the box in Å.
        best: value to beat in Å; boxes that cannot are not looked into.
        where: receives the place of the maximum [3] if `best` is beaten.
    """
    k = half.shape[0]
    front = np.empty((FRONT, 3))
    children = np.empty((FRONT, 3))
    values = np.empty(FRONT)
    front[0] = centre
    boxes, scale = 1, 1.0
    value = clearance(centre, spheres, kept, count)
    if value > best:
        best = value
        where[:] = centre
    if value + reach <= best + tolerance:
        boxes = 0
    while 0 < boxes <= FRONT >> k and reach * scale > tolerance:
        scale *= 0.5
        n = 0
        for b in range(boxes):
            for corner in range(1 << k):
                child = children[n]
                child[:] = front[b]
                for axis in range(k):
                    sign = scale if (corner >> axis) & 1 else -scale
                    for c in range(3):
                        child[c] += sign * half[axis, c]
                values[n] = clearance(child, spheres, kept, count)
                if values[n] > best:
                    best = values[n]
                    where[:] = child
                n += 1
        boxes = 0
        for b in range(n):
            if values[b] + reach * scale > best + tolerance:
                front[boxes] = children[b]
                boxes += 1
    return best


@njit(cache=True)
def _in_cell(index: np.ndarray, frame: np.ndarray, point: np.ndarray) -> None:
    """Write the Cartesian place of grid coordinates `index` [3] to `point` [3]."""
    for c in range(3):
        point[c] = index[0] * frame[0, c] + index[1] * frame[1, c] + index[2] * frame[2, c]


@njit(cache=True)
def block_clearance(shape: np.ndarray, frame: np.ndarray, spheres: np.ndarray) -> float:
    """Largest clearance in Å at the middle of any block, over blocks of the grid `shape` [3]."""
    everything = np.arange(spheres.shape[0])
    point, index = np.empty(3), np.empty(3)
    largest = -np.inf
    for bi in range(0, shape[0], BLOCK):
        for bj in range(0, shape[1], BLOCK):
            for bk in range(0, shape[2], BLOCK):
                index[0], index[1], index[2] = bi + BLOCK / 2, bj + BLOCK / 2, bk + BLOCK / 2
                _in_cell(index, frame, point)
                largest = max(largest, clearance(point, spheres, everything, everything.size))
    return largest


@njit(cache=True)
def sample(
    shape: np.ndarray, frame: np.ndarray, reach: np.ndarray, spheres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clearance in Å at the middle of every voxel [V] and of its three lower faces [V, 3].

    Args:
        reach: half diagonals in Å of a block and of a voxel [2].
    """
    everything = np.arange(spheres.shape[0])
    around, near = np.empty(spheres.shape[0], np.int64), np.empty(spheres.shape[0], np.int64)
    point, index = np.empty(3), np.empty(3)
    voxels = np.empty(shape[0] * shape[1] * shape[2])
    faces = np.empty((voxels.size, 3))
    for bi in range(0, shape[0], BLOCK):
        for bj in range(0, shape[1], BLOCK):
            for bk in range(0, shape[2], BLOCK):
                index[0], index[1], index[2] = bi + BLOCK / 2, bj + BLOCK / 2, bk + BLOCK / 2
                _in_cell(index, frame, point)
                _, size = shortlist(point, reach[0], spheres, everything, everything.size, around)
                for i in range(bi, min(bi + BLOCK, shape[0])):
                    for j in range(bj, min(bj + BLOCK, shape[1])):
                        for k in range(bk, min(bk + BLOCK, shape[2])):
                            voxel = (i * shape[1] + j) * shape[2] + k
                            index[0], index[1], index[2] = i + 0.5, j + 0.5, k + 0.5
                            _in_cell(index, frame, point)
                            voxels[voxel], count = shortlist(point, reach[1], spheres, around, size, near)
                            for axis in range(3):
                                index[axis] -= 0.5
                                _in_cell(index, frame, point)
                                faces[voxel, axis] = clearance(point, spheres, near, count)
                                index[axis] += 0.5
    return voxels, faces


@njit(cache=True)
def refine_faces(
    shape: np.ndarray,
    frame: np.ndarray,
    reach: np.ndarray,
    spheres: np.ndarray,
    wanted: np.ndarray,
    faces: np.ndarray,
    tolerance: float,
) -> None:
    """Replace `faces` [V, 3] by the largest clearance on the face where `wanted` [V, 3], to `tolerance` Å.

    Args:
        reach: half diagonals in Å of a block and of the three faces [4].
    """
    everything = np.arange(spheres.shape[0])
    around, near = np.empty(spheres.shape[0], np.int64), np.empty(spheres.shape[0], np.int64)
    point, index, where = np.empty(3), np.empty(3), np.empty(3)
    for bi in range(0, shape[0], BLOCK):
        for bj in range(0, shape[1], BLOCK):
            for bk in range(0, shape[2], BLOCK):
                size = 0
                for i in range(bi, min(bi + BLOCK, shape[0])):
                    for j in range(bj, min(bj + BLOCK, shape[1])):
                        for k in range(bk, min(bk + BLOCK, shape[2])):
                            voxel = (i * shape[1] + j) * shape[2] + k
                            for axis in range(3):
                                if not wanted[voxel, axis]:
                                    continue
                                if size == 0:
                                    index[0], index[1], index[2] = bi + BLOCK / 2, bj + BLOCK / 2, bk + BLOCK / 2
                                    _in_cell(index, frame, point)
                                    _, size = shortlist(point, reach[0], spheres, everything, everything.size, around)
                                face_middle(voxel, axis, shape, frame, point)
                                _, count = shortlist(point, reach[1 + axis], spheres, around, size, near)
                                half = face_edges(axis, frame)
                                faces[voxel, axis] = maximise(
                                    point, half, reach[1 + axis], spheres, near, count, -np.inf, tolerance, where
                                )


@njit(cache=True)
def face_middle(voxel: int, axis: int, shape: np.ndarray, frame: np.ndarray, point: np.ndarray) -> None:
    """Write the middle of the lower face of `voxel` across `axis` to `point` [3]."""
    index = np.empty(3)
    index[0] = voxel // (shape[1] * shape[2]) + 0.5
    index[1] = (voxel // shape[2]) % shape[1] + 0.5
    index[2] = voxel % shape[2] + 0.5
    index[axis] -= 0.5
    _in_cell(index, frame, point)


@njit(cache=True)
def face_edges(axis: int, frame: np.ndarray) -> np.ndarray:
    """Half edge vectors [2, 3] of a voxel face across `axis`."""
    half = np.empty((2, 3))
    half[0] = 0.5 * frame[(axis + 1) % 3]
    half[1] = 0.5 * frame[(axis + 2) % 3]
    return half


@njit(cache=True)
def largest_clearance(
    shape: np.ndarray,
    frame: np.ndarray,
    reach: float,
    spheres: np.ndarray,
    voxels: np.ndarray,
    among: np.ndarray,
    tolerance: float,
) -> tuple[float, np.ndarray]:
    """Largest clearance in Å in the voxels where `among` [V], to `tolerance`, and its place [3].

    Args:
        voxels: clearance at the middle of every voxel [V].
        reach: half diagonal of a voxel in Å.
    """
    everything = np.arange(spheres.shape[0])
    near = np.empty(spheres.shape[0], np.int64)
    point, index, where = np.empty(3), np.empty(3), np.empty(3)
    half = 0.5 * frame
    best = -np.inf
    for voxel in np.argsort(-voxels):
        if voxels[voxel] + reach <= best + tolerance:
            break
        if not among[voxel]:
            continue
        index[0] = voxel // (shape[1] * shape[2]) + 0.5
        index[1] = (voxel // shape[2]) % shape[1] + 0.5
        index[2] = voxel % shape[2] + 0.5
        _in_cell(index, frame, point)
        _, count = shortlist(point, reach, spheres, everything, everything.size, near)
        best = maximise(point, half, reach, spheres, near, count, best, tolerance, where)
    return best, where


@njit(cache=True)
def narrowest_point(
    place: np.ndarray, ceiling: float, reach: float, spheres: np.ndarray, kept: np.ndarray, count: int
) -> tuple[float, np.ndarray]:
    """Clearance in Å of the highest pass at most `reach` Å from `place` and not above `ceiling` Å, and its place [3].

    A pass is a point touched by three atoms around it and pierced by none: a sphere through it has to squeeze
    through the ring of the three. Minus infinity if there is none.
    """
    best = -np.inf
    where = place.copy()
    point = np.empty(3)
    for a in range(count):
        for b in range(a + 1, count):
            for c in range(b + 1, count):
                value = _between_three(spheres[kept[a]], spheres[kept[b]], spheres[kept[c]], point)
                if not best < value <= ceiling or np.linalg.norm(point - place) > reach:
                    continue
                if abs(clearance(point, spheres, kept, count) - value) < 1e-6:
                    best = value
                    where[:] = point
    return best, where


@njit(cache=True)
def _between_three(s1: np.ndarray, s2: np.ndarray, s3: np.ndarray, point: np.ndarray) -> float:
    """Radius of the sphere touching three spheres [4] from between them, its centre in their plane (Apollonius).

    The centre is written to `point`. Minus infinity if the centre lies outside the triangle of the three centres.
    """
    u = s2[:3] - s1[:3]
    x2 = np.linalg.norm(u)
    if x2 < 1e-9:
        return -np.inf
    u = u / x2
    v = s3[:3] - s1[:3]
    x3 = np.dot(v, u)
    v = v - x3 * u
    y3 = np.linalg.norm(v)
    if y3 < 1e-9:
        return -np.inf
    v = v / y3
    # centre (x, y) as a linear function of the radius t: x = ax + bx t, y = ay + by t
    bx = -(s2[3] - s1[3]) / x2
    ax = (x2 * x2 - s2[3] ** 2 + s1[3] ** 2) / (2.0 * x2)
    by = -(s3[3] - s1[3] + x3 * bx) / y3
    ay = (x3 * x3 + y3 * y3 - s3[3] ** 2 + s1[3] ** 2 - 2.0 * x3 * ax) / (2.0 * y3)
    qa = bx * bx + by * by - 1.0
    qb = 2.0 * (ax * bx + ay * by - s1[3])
    qc = ax * ax + ay * ay - s1[3] ** 2
    disc = qb * qb - 4.0 * qa * qc
    if disc < 0.0 or abs(qa) < 1e-12:
        return -np.inf
    for sign in (-1.0, 1.0):
        t = (-qb + sign * np.sqrt(disc)) / (2.0 * qa)
        if t + min(s1[3], s2[3], s3[3]) <= 0.0:
            continue
        x, y = ax + bx * t, ay + by * t
        third = y / y3
        second = (x - third * x3) / x2
        if third >= -1e-9 and second >= -1e-9 and second + third <= 1.0 + 1e-9:
            point[:] = s1[:3] + x * u + y * v
            return t
    return -np.inf
