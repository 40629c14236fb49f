"""Clearance of a point, its distance to the nearest atom's surface: on a grid, its maxima in boxes, its passes.

Clearance changes by at most one Å per Å, so its value in the middle of a box bounds it all over the box. Every
kernel here lives on that: atoms too far to matter in a box are dropped before its parts are looked at, and a maximum
is found by branch and bound. Spheres are rows of x, y, z, radius in Å.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

BLOCK = 4  # voxels along the edge of a block, the unit for which the atoms nearby are collected
FRONT = 8192  # boxes that branch and bound may hold; on a wide plateau it goes on with the best of them


class Grid(NamedTuple):
    """A cell cut into voxels, and the atoms around them.

    Voxel (i, j, k) fills (i..i+1, j..j+1, k..k+1) @ frame and has the flat index v = (i·ny + j)·nz + k; face 3·v + axis
    is its lower one across that axis.

    Attributes:
        shape: voxels along the cell vectors, int64 [3].
        frame: edge vectors of a voxel in rows in Å [3, 3].
        spheres: atoms in and around the cell [m, 4].
        ptr: rows of `near` that belong to each block of voxels, int64 [B + 1].
        near: spheres that can be the nearest somewhere in a block, block after block [M, 4].
    """

    shape: np.ndarray
    frame: np.ndarray
    spheres: np.ndarray
    ptr: np.ndarray
    near: np.ndarray


def build(positions: np.ndarray, cell: np.ndarray, radii: np.ndarray, spacing: float) -> Grid:
    """Voxels with edges of at most `spacing` Å in the cell, and the atoms around them.

    Args:
        positions: Cartesian in Å [n, 3].
        cell: lattice vectors in rows in Å [3, 3].
        radii: Å [n].
    """
    shape = np.maximum(np.ceil(np.linalg.norm(cell, axis=1) / spacing), 2).astype(np.int64)
    frame = cell / shape[:, None]
    fractional = np.linalg.solve(cell.T, positions.T).T % 1.0
    pad = 4.0 * float(half_diagonal(0.5 * BLOCK * frame)) + radii.max()
    spheres = _with_images(fractional, cell, radii, pad)
    widest, ptr, near = _collect(shape, frame, spheres)
    if widest > 0.0:
        # with more images the clearance can only fall, so this pad is enough for good
        spheres = _with_images(fractional, cell, radii, pad + widest)
        _, ptr, near = _collect(shape, frame, spheres)
    return Grid(shape, frame, spheres, ptr, near)


def _with_images(fractional: np.ndarray, cell: np.ndarray, radii: np.ndarray, pad: float) -> np.ndarray:
    """Atoms of the cell, fractions in [0, 1), and their images up to `pad` Å outside it, as spheres [m, 4]."""
    reach = pad * np.linalg.norm(np.linalg.inv(cell), axis=0)  # in fractions, across the planes of the cell
    images = np.ceil(reach).astype(int)
    parts = []
    for shift in np.ndindex(*(2 * images + 1)):
        moved = fractional + (np.array(shift) - images)
        close = np.all((moved > -reach) & (moved < 1.0 + reach), axis=1)
        parts.append(np.column_stack([moved[close] @ cell, radii[close]]))
    return np.ascontiguousarray(np.concatenate(parts))


@njit(cache=True)
def half_diagonal(half: np.ndarray) -> float:
    """Distance in Å from the middle of a box with half edge vectors `half` [k, 3] to its farthest corner."""
    farthest = 0.0
    for corner in range(1 << half.shape[0]):
        square = 0.0
        for c in range(3):
            total = 0.0
            for axis in range(half.shape[0]):
                total += half[axis, c] if (corner >> axis) & 1 else -half[axis, c]
            square += total * total
        farthest = max(farthest, np.sqrt(square))
    return farthest


@njit(cache=True)
def clearance(point: np.ndarray, spheres: np.ndarray) -> float:
    """Distance in Å from `point` [3] to the nearest surface of `spheres` [n, 4], negative inside one."""
    best = np.inf
    for s in range(spheres.shape[0]):
        dx, dy, dz = point[0] - spheres[s, 0], point[1] - spheres[s, 1], point[2] - spheres[s, 2]
        best = min(best, np.sqrt(dx * dx + dy * dy + dz * dz) - spheres[s, 3])
    return best


@njit(cache=True)
def shortlist(point: np.ndarray, reach: float, spheres: np.ndarray, kept: np.ndarray) -> tuple[float, int]:
    """Copy the spheres that can be the nearest somewhere within `reach` Å of `point` to `kept`.

    Returns:
        Clearance at `point` in Å and the number of spheres kept.
    """
    nearest = clearance(point, spheres)
    count = 0
    for s in range(spheres.shape[0]):
        dx, dy, dz = point[0] - spheres[s, 0], point[1] - spheres[s, 1], point[2] - spheres[s, 2]
        far = nearest + 2.0 * reach + spheres[s, 3]
        if dx * dx + dy * dy + dz * dz <= far * far:
            kept[count] = spheres[s]
            count += 1
    return nearest, count


@njit(cache=True)
def maximise(
    point: np.ndarray, half: np.ndarray, spheres: np.ndarray, best: float, tolerance: float, work: np.ndarray
) -> float:
    """The larger of `best` and the largest clearance in a box, at most `tolerance` Å too low.

    Args:
        point: middle of the box [3]; moved to the maximum if that beats `best`.
        half: half edge vectors in Å [k, 3]; k = 2 for a face, 3 for a voxel.
        best: value to beat in Å; boxes that cannot are not looked into.
        work: scratch [2, FRONT, 4].
    """
    k = half.shape[0]
    reach = half_diagonal(half)
    front, children = work[0], work[1]
    front[0, :3] = point
    boxes = 1
    value = clearance(point, spheres)
    if value + reach <= best + tolerance:
        return best
    best = max(best, value)
    scale = 1.0
    while boxes > 0 and reach * scale > tolerance:
        scale *= 0.5
        n = 0
        for b in range(boxes):
            for corner in range(1 << k):
                child = children[n]
                for c in range(3):
                    child[c] = front[b, c]
                    for axis in range(k):
                        child[c] += scale * half[axis, c] if (corner >> axis) & 1 else -scale * half[axis, c]
                child[3] = clearance(child, spheres)
                if child[3] > best:
                    best = child[3]
                    point[:] = child[:3]
                n += 1
        boxes = 0
        for b in range(n):
            if children[b, 3] + reach * scale > best + tolerance:
                front[boxes] = children[b]
                boxes += 1
        boxes = _thin(front, boxes, FRONT >> k)
    return best


@njit(cache=True)
def _thin(front: np.ndarray, boxes: int, room: int) -> int:
    """Drop the lower half of front[:boxes] until at most `room` boxes are left; returns their number."""
    while boxes > room:
        level = front[:boxes, 3].mean()
        kept = 0
        for b in range(boxes):
            if front[b, 3] > level:
                front[kept] = front[b]
                kept += 1
        boxes = kept if kept > 0 else room
    return boxes


@njit(cache=True)
def _middle(voxel: int, shape: np.ndarray, frame: np.ndarray, point: np.ndarray) -> None:
    """Write the middle of `voxel` to `point` [3]."""
    i = voxel // (shape[1] * shape[2]) + 0.5
    j = (voxel // shape[2]) % shape[1] + 0.5
    k = voxel % shape[2] + 0.5
    for c in range(3):
        point[c] = i * frame[0, c] + j * frame[1, c] + k * frame[2, c]


@njit(cache=True)
def _face_middle(face: int, grid: Grid, point: np.ndarray) -> None:
    """Write the middle of `face` to `point` [3]."""
    _middle(face // 3, grid.shape, grid.frame, point)
    for c in range(3):
        point[c] -= 0.5 * grid.frame[face % 3, c]


@njit(cache=True)
def face_edges(face: int, grid: Grid) -> np.ndarray:
    """Half edge vectors of `face` in Å, [2, 3]."""
    half = np.empty((2, 3))
    half[0] = 0.5 * grid.frame[(face + 1) % 3]
    half[1] = 0.5 * grid.frame[(face + 2) % 3]
    return half


@njit(cache=True)
def _around(voxel: int, grid: Grid) -> np.ndarray:
    """Spheres that can be the nearest somewhere in the block of `voxel`, [n, 4]."""
    shape = grid.shape
    i = voxel // (shape[1] * shape[2]) // BLOCK
    j = (voxel // shape[2]) % shape[1] // BLOCK
    k = voxel % shape[2] // BLOCK
    block = (i * -(-shape[1] // BLOCK) + j) * -(-shape[2] // BLOCK) + k
    return grid.near[grid.ptr[block] : grid.ptr[block + 1]]


@njit(cache=True)
def _collect(shape: np.ndarray, frame: np.ndarray, spheres: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Largest clearance in the middle of a block in Å; `ptr` and `near` of a `Grid`."""
    blocks = (shape + BLOCK - 1) // BLOCK
    reach = half_diagonal(0.5 * BLOCK * frame)
    kept = np.empty_like(spheres)
    point = np.empty(3)
    ptr = np.zeros(blocks[0] * blocks[1] * blocks[2] + 1, np.int64)
    near = np.empty((64 * ptr.size, 4))
    widest = -np.inf
    for b in range(ptr.size - 1):
        _middle(b, blocks, BLOCK * frame, point)
        nearest, count = shortlist(point, reach, spheres, kept)
        widest = max(widest, nearest)
        ptr[b + 1] = ptr[b] + count
        if ptr[b + 1] > near.shape[0]:
            longer = np.empty((2 * near.shape[0] + count, 4))
            longer[: ptr[b]] = near[: ptr[b]]
            near = longer
        near[ptr[b] : ptr[b + 1]] = kept[:count]
    return widest, ptr, near[: ptr[-1]].copy()


@njit(cache=True)
def sample(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Clearance in Å in the middle of every voxel [V] and of every face [3V]."""
    kept = np.empty_like(grid.spheres)
    point = np.empty(3)
    reach = half_diagonal(0.5 * grid.frame)
    voxels = np.empty(grid.shape[0] * grid.shape[1] * grid.shape[2])
    faces = np.empty(3 * voxels.size)
    for voxel in range(voxels.size):
        _middle(voxel, grid.shape, grid.frame, point)
        voxels[voxel], count = shortlist(point, reach, _around(voxel, grid), kept)
        for face in range(3 * voxel, 3 * voxel + 3):
            _face_middle(face, grid, point)
            faces[face] = clearance(point, kept[:count])
    return voxels, faces


@njit(cache=True)
def widest_on_faces(wanted: np.ndarray, grid: Grid, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Largest clearance in Å on each face of `wanted` [F], at most `tolerance` too low, [F]; its place [F, 3]."""
    kept = np.empty_like(grid.spheres)
    work = np.empty((2, FRONT, 4))
    places = np.empty((wanted.size, 3))
    widths = np.empty(wanted.size)
    for n in range(wanted.size):
        face = wanted[n]
        half = face_edges(face, grid)
        _face_middle(face, grid, places[n])
        _, count = shortlist(places[n], half_diagonal(half), _around(face // 3, grid), kept)
        widths[n] = maximise(places[n], half, kept[:count], -np.inf, tolerance, work)
    return widths, places


@njit(cache=True)
def widest_in_voxels(order: np.ndarray, voxels: np.ndarray, grid: Grid, tolerance: float) -> tuple[float, np.ndarray]:
    """Largest clearance in Å in the voxels `order` [n], at most `tolerance` too low, and its place [3].

    Args:
        order: voxels, that with the largest clearance in its middle first.
        voxels: clearance in the middle of every voxel in Å [V].
    """
    kept = np.empty_like(grid.spheres)
    work = np.empty((2, FRONT, 4))
    point, place = np.empty(3), np.empty(3)
    half = 0.5 * grid.frame
    reach = half_diagonal(half)
    best = -np.inf
    for voxel in order:
        if voxels[voxel] + reach <= best + tolerance:
            break
        _middle(voxel, grid.shape, grid.frame, point)
        _, count = shortlist(point, reach, _around(voxel, grid), kept)
        found = maximise(point, half, kept[:count], best, tolerance, work)
        if found > best:
            best = found
            place[:] = point
    return best, place


@njit(cache=True)
def highest_pass(place: np.ndarray, ceiling: float, reach: float, spheres: np.ndarray) -> tuple[float, np.ndarray]:
    """Clearance in Å of the highest pass at most `reach` Å from `place` and not above `ceiling` Å, and its place [3].

    A pass is a point touched by three atoms around it and pierced by none: a sphere through it has to squeeze
    through the ring of the three. Minus infinity if there is none.
    """
    kept = np.empty_like(spheres)
    _, count = shortlist(place, reach, spheres, kept)
    best = -np.inf
    where, point = place.copy(), np.empty(3)
    for a in range(count):
        for b in range(a + 1, count):
            for c in range(b + 1, count):
                value = _between_three(kept[a], kept[b], kept[c], point)
                if not best < value <= ceiling or _norm(point - place) > reach:
                    continue
                if abs(clearance(point, kept[:count]) - value) < 1e-6:
                    best = value
                    where[:] = point
    return best, where


@njit(cache=True)
def _norm(vector: np.ndarray) -> float:
    return np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)


@njit(cache=True)
def _between_three(s1: np.ndarray, s2: np.ndarray, s3: np.ndarray, point: np.ndarray) -> float:
    """Radius of the sphere touching three spheres [4] from between them, its centre in their plane (Apollonius).

    The centre is written to `point`. Minus infinity if the centre lies outside the triangle of the three centres.
    """
    u = s2[:3] - s1[:3]
    x2 = _norm(u)
    if x2 < 1e-9:
        return -np.inf
    u = u / x2
    v = s3[:3] - s1[:3]
    x3 = v[0] * u[0] + v[1] * u[1] + v[2] * u[2]
    v = v - x3 * u
    y3 = _norm(v)
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
