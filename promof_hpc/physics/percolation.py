"""Percolation on a periodic voxel grid: at which opening a void becomes endless in one, two, three directions.

Faces open from the widest to the narrowest; a union-find joins the two voxels of each. Every voxel knows in which
image of the cell it sits relative to its root, so a face that closes a loop onto another image of the same voxel
shows a direction in which the void goes on for ever (periodic union-find).
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def sweep(order: np.ndarray, shape: np.ndarray, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Open the faces in `order` until `stop` of them are open or a void is endless in three directions.

    Args:
        order: faces, widest first, int64 [F]; face 3·v + axis lies between voxel v and its lower neighbour there.
        shape: voxels along the cell vectors, int64 [3].

    Returns:
        Position in `order` of the face that made a void endless in 1, 2 and 3 independent directions, int64 [3],
        -1 if none did; and the root voxel of every voxel, int64 [V].
    """
    n = shape[0] * shape[1] * shape[2]
    parent = np.arange(n)
    offset = np.zeros((n, 3), np.int64)  # image of the cell its parent lies in, seen from the voxel
    size = np.ones(n, np.int64)
    rank = np.zeros(n, np.int64)
    winding = np.zeros((n, 3, 3), np.int32)  # independent translations of a root's void onto itself
    critical = np.full(3, -1, np.int64)
    reached = 0
    here, there = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for position in range(min(stop, order.size)):
        upper, axis = order[position] // 3, order[position] % 3
        here[:] = 0
        lower = _below(upper, axis, shape, there)
        a = _root(upper, parent, offset, here)
        b = _root(lower, parent, offset, there)
        if a == b:
            rank[a] = _extend(winding[a], rank[a], here - there)
        else:
            if size[a] < size[b]:
                a, b = b, a
                here, there = there, here
            parent[b] = a
            offset[b] = here - there
            size[a] += size[b]
            for w in range(rank[b]):
                rank[a] = _extend(winding[a], rank[a], winding[b, w])
        while reached < rank[a]:
            critical[reached] = position
            reached += 1
        if reached == 3:
            break
    for voxel in range(n):
        root = voxel
        while parent[root] != root:
            root = parent[root]
        size[voxel] = root
    return critical, size


@njit(cache=True)
def _below(voxel: int, axis: int, shape: np.ndarray, image: np.ndarray) -> int:
    """The voxel below `voxel` on `axis`; the image of the cell it lies in is written to `image`."""
    nz, nyz = shape[2], shape[1] * shape[2]
    stride = nyz if axis == 0 else (nz if axis == 1 else 1)
    at = voxel // nyz if axis == 0 else ((voxel // nz) % shape[1] if axis == 1 else voxel % nz)
    image[:] = 0
    if at > 0:
        return voxel - stride
    image[axis] = -1
    return voxel + stride * (shape[axis] - 1)


@njit(cache=True)
def _root(voxel: int, parent: np.ndarray, offset: np.ndarray, image: np.ndarray) -> int:
    """Root of `voxel`; adds to `image` [3], where the voxel lies, the way from there to the root."""
    while parent[voxel] != voxel:
        image += offset[voxel]
        voxel = parent[voxel]
    return voxel


@njit(cache=True)
def _extend(basis: np.ndarray, rank: int, vector: np.ndarray) -> int:
    """Add `vector` [3] to the first `rank` rows of `basis` [3, 3] if independent of them; returns the new rank."""
    if rank == 3 or (vector[0] == 0 and vector[1] == 0 and vector[2] == 0):
        return rank
    if rank == 1:
        b = basis[0]
        cross = (
            abs(b[1] * vector[2] - b[2] * vector[1])
            + abs(b[2] * vector[0] - b[0] * vector[2])
            + abs(b[0] * vector[1] - b[1] * vector[0])
        )
        if cross == 0:
            return rank
    if rank == 2:
        b, c = basis[0], basis[1]
        triple = (
            (b[1] * c[2] - b[2] * c[1]) * vector[0]
            + (b[2] * c[0] - b[0] * c[2]) * vector[1]
            + (b[0] * c[1] - b[1] * c[0]) * vector[2]
        )
        if triple == 0:
            return rank
    basis[rank] = vector
    return rank + 1
