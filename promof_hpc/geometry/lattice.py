"""Lattices as six numbers (lengths in Å, angles in rad) and as cells, batched, and nearest images in them.

A cell made from six numbers has a along x and b in the xy plane. Everything works on torch tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLATTEST = 0.2  # least height of c above the ab plane as a share of its length; three angles may allow none


def cells_of(lattice: Tensor) -> Tensor:
    """Lattice vectors in rows in Å, [..., 3, 3], of lattices [..., 6] (a, b, c in Å; alpha, beta, gamma in rad).

    Angles that no cell can have give the cell whose c is `FLATTEST` above the plane, so the volume is never zero.
    """
    a, b, c, alpha, beta, gamma = lattice.unbind(-1)
    sine = torch.sin(gamma).clamp_min(1e-3)
    x = torch.cos(beta)
    y = (torch.cos(alpha) - x * torch.cos(gamma)) / sine
    z = (1.0 - x**2 - y**2).clamp_min(FLATTEST**2).sqrt()
    zero = torch.zeros_like(a)
    rows = [a, zero, zero, b * torch.cos(gamma), b * sine, zero, c * x, c * y, c * z]
    return torch.stack(rows, -1).reshape(*lattice.shape[:-1], 3, 3)


def lattice_of(cells: Tensor) -> Tensor:
    """Lengths in Å and angles in rad, [..., 6], of cells [..., 3, 3]."""
    a, b, c = cells.unbind(-2)
    angles = [
        torch.atan2(torch.linalg.cross(p, q, dim=-1).norm(dim=-1), (p * q).sum(-1)) for p, q in ((b, c), (a, c), (a, b))
    ]
    return torch.stack([a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1), *angles], -1)


def upright(cells: Tensor) -> tuple[Tensor, Tensor]:
    """The same lattices with a along x and b in the xy plane, and the proper rotations that bring points there.

    Left-handed cells are negated first, which leaves the lattice as it is.

    Args:
        cells: lattice vectors in rows in Å, [..., 3, 3].

    Returns:
        Cells [..., 3, 3] and rotations Q [..., 3, 3]: a point x of the given frame is `x @ Q` in the new one.
    """
    hand = torch.where(torch.linalg.det(cells) < 0, -1.0, 1.0).to(cells)[..., None, None]
    q, r = torch.linalg.qr((cells * hand).transpose(-1, -2))
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(cells)
    return (r * signs[..., None]).transpose(-1, -2), q * signs[..., None, :]


def nearest_image(displacement: Tensor, cells: Tensor) -> Tensor:
    """Displacements [B, ..., 3] in Å moved by lattice vectors of cells [B, 3, 3] to where each fraction is nearest 0.

    Exact wherever the result is shorter than half the least distance between lattice planes; longer ones may have a
    shorter image in a skewed cell.
    """
    flat = displacement.reshape(len(cells), -1, 3)
    fractions = flat @ torch.linalg.inv(cells)
    return (flat - torch.round(fractions) @ cells).reshape(displacement.shape)
