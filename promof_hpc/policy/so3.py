"""Rotations in torch: logarithm, the rotation nearest to a matrix, uniform draws; gradients stay finite.

Conventions as in `geometry.rotation`; the exponential is `assembly.stack.rotation_of`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST_GAP = 1e-2  # singular values whose sum is below it leave the nearest rotation, and its gradient, open


def quaternion_of(rotation: Tensor) -> Tensor:
    """Unit quaternions [..., 4] (w, x, y, z with w >= 0) of rotation matrices [..., 3, 3], exact at every angle."""
    m = rotation.flatten(-2)
    a, b, c, d, e, f, g, h, i = m.unbind(-1)
    wx, wy, wz, xy, xz, yz = h - f, c - g, d - b, b + d, c + g, f + h
    diagonal = [1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i]
    rows = [diagonal[0], wx, wy, wz, wx, diagonal[1], xy, xz, wy, xy, diagonal[2], yz, wz, xz, yz, diagonal[3]]
    products = torch.stack(rows, -1).reshape(*m.shape[:-1], 4, 4)  # 4 q q^T
    squares = torch.stack(diagonal, -1)
    best = squares.argmax(-1, keepdim=True)
    row = torch.gather(products, -2, best[..., None].expand(*best.shape, 4)).squeeze(-2)
    q = row / (2.0 * torch.gather(squares, -1, best).clamp_min(1e-12).sqrt())
    return torch.where(q[..., :1] < 0, -q, q)


def log(rotation: Tensor) -> Tensor:
    """Rotation vectors [..., 3] in rad, of length 0 to pi, of rotation matrices [..., 3, 3]."""
    q = quaternion_of(rotation)
    w, v = q[..., :1], q[..., 1:]
    squared = (v * v).sum(-1, keepdim=True)
    small = squared < 1e-10
    length = torch.where(small, torch.ones_like(squared), squared).sqrt()
    return v * torch.where(small, 2.0 / w.clamp_min(0.5), 2.0 * torch.atan2(length, w) / length)


def uniform(quaternion: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of standard normal numbers [..., 4]: uniform on SO(3)."""
    q = quaternion / quaternion.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    w, x, y, z = q.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The proper rotations [..., 3, 3] nearest to matrices [..., 3, 3] (Frobenius norm; orthogonal Procrustes)."""
    nearest: Tensor = _Nearest.apply(matrix)
    return nearest


class _Nearest(torch.autograd.Function):
    """Procrustes with a gradient that does not blow up where two singular values meet.

    With M = U S V^T (signs in S so that U V^T is proper), dR = U W V^T with
    W_ij = (U^T dM V - V^T dM^T U)_ij / (s_i + s_j).
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        u, s, vt = torch.linalg.svd(matrix)
        hand = torch.where(torch.linalg.det(u) * torch.linalg.det(vt) < 0, -1.0, 1.0).to(matrix)
        flip = torch.stack([torch.ones_like(hand), torch.ones_like(hand), hand], -1)
        u, s = u * flip[..., None, :], s * flip
        ctx.save_for_backward(u, s, vt)
        rotation: Tensor = u @ vt
        return rotation

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        u, s, vt = ctx.saved_tensors
        inner = u.transpose(-1, -2) @ gradients[0] @ vt.transpose(-1, -2)
        gap = (s[..., :, None] + s[..., None, :]).clamp_min(LEAST_GAP)
        back: Tensor = u @ ((inner - inner.transpose(-1, -2)) / gap) @ vt
        return back
