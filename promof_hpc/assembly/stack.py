"""Many assemblies as padded tensors: what is fixed (`Stack`), what an engineer decides (`Poses`), and atoms from both.

Assemblies of different components are padded to common sizes, so one tensor operation serves all of them; masks say
what is real. Points are rows: position = local @ rotation.T + centroid, with torsions set first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.components import Components, Solution
from promof_hpc.geometry.torsion import Torsions, measure
from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Stack:
    """The fixed part of B assemblies, padded to A atoms, K blocks, T torsions and S torsions of one block at most.

    Attributes:
        components: of each assembly, [B].
        numbers: atomic numbers, int64 [B, A]; 0 is padding.
        block_of: block of every atom, int64 [B, A]; padding atoms belong to block 0.
        local: coordinates in the blocks' frames in Å, [B, A, 3].
        blocks: True for real blocks, [B, K]; `kinds` their kind, int64 [B, K].
        quads: torsions as atom quadruples, int64 [B, T, 4]; `torsions` is True for the real ones, [B, T].
        torsion_block: block of every torsion, int64 [B, T].
        base_angles: torsion angles of `local` in rad, [B, T].
        turns: [B, S, K, 2] int64: axis atoms (from, to) of the s-th torsion of each block, with the sign in `signs`.
        turn_of: which torsion that is, int64 [B, S, K]; -1 where a block has fewer.
        moves: True for atoms that the s-th torsion of their block moves, [B, S, A].
        signs: sense of rotation about the axis, [B, S, K].
    """

    components: tuple[Components, ...]
    numbers: Tensor
    block_of: Tensor
    local: Tensor
    blocks: Tensor
    kinds: Tensor
    quads: Tensor
    torsions: Tensor
    torsion_block: Tensor
    base_angles: Tensor
    turns: Tensor
    turn_of: Tensor
    moves: Tensor
    signs: Tensor

    def __len__(self) -> int:
        return len(self.components)

    @property
    def atoms(self) -> Tensor:
        """True for real atoms, [B, A]."""
        return self.numbers > 0

    @property
    def block_sizes(self) -> Tensor:
        """Atoms of each block, at least 1, [B, K]."""
        counts = torch.zeros_like(self.blocks, dtype=self.local.dtype)
        return counts.scatter_add(1, self.block_of, self.atoms.to(counts.dtype)).clamp_min(1.0)

    def take(self, rows: Sequence[int]) -> Stack:
        """The assemblies `rows`, in that order, without new padding."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.local.device)
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "components"}
        return replace(self, components=tuple(self.components[k] for k in rows), **chosen)

    def to(self, device: str | torch.device) -> Stack:
        """A copy on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "components"}
        )


@dataclass(frozen=True)
class Poses:
    """What an engineer decides for B assemblies.

    Attributes:
        cells: lattice vectors in rows in Å, [B, 3, 3].
        rotations: proper rotation of every block, [B, K, 3, 3]; the identity in padding.
        centroids: mean of every block's atoms in Å, [B, K, 3].
        angles: torsion angles in rad, [B, T].
    """

    cells: Tensor
    rotations: Tensor
    centroids: Tensor
    angles: Tensor

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: Sequence[int] | Tensor) -> Poses:
        """The assemblies `rows`."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.cells.device)
        return Poses(*(getattr(self, f.name)[index] for f in fields(self)))


def stack(components: Sequence[Components], dtype: torch.dtype = torch.float32) -> Stack:
    """Pad components to one shape; the same object may come many times."""
    many, n = list(components), len(components)
    torsions = [
        [(k, b.torsions, t) for k, b in enumerate(c.blocks) if b.torsions is not None for t in range(len(b.torsions))]
        for c in many
    ]
    a = max((len(c.numbers) for c in many), default=0)
    k = max((len(c.blocks) for c in many), default=0)
    t = max((len(x) for x in torsions), default=0)
    s = max((len(b.torsions) for c in many for b in c.blocks if b.torsions is not None), default=0)
    whole = {"numbers": (n, a), "block_of": (n, a), "kinds": (n, k), "quads": (n, t, 4), "torsion_block": (n, t)}
    whole |= {"turns": (n, s, k, 2), "turn_of": (n, s, k)}
    whole_arrays = {name: np.zeros(shape, np.int64) for name, shape in whole.items()}
    real = {"local": (n, a, 3), "base_angles": (n, t), "signs": (n, s, k)}
    real_arrays = {name: np.zeros(shape) for name, shape in real.items()}
    flags = {name: np.zeros(shape, bool) for name, shape in
             {"blocks": (n, k), "torsions": (n, t), "moves": (n, s, a)}.items()}  # fmt: skip
    whole_arrays["turn_of"][:] = -1
    done: dict[int, int] = {}
    for i, c in enumerate(many):
        if id(c) in done:  # a group of one set is filled in once
            for arrays in (whole_arrays, real_arrays, flags):
                for array in arrays.values():
                    array[i] = array[done[id(c)]]
            continue
        done[id(c)] = i
        _fill(i, c, torsions[i], whole_arrays, real_arrays, flags)
    return Stack(
        components=tuple(many),
        **{name: torch.from_numpy(array) for name, array in (whole_arrays | flags).items()},
        **{name: torch.from_numpy(array).to(dtype) for name, array in real_arrays.items()},
    )


def _fill(
    i: int,
    c: Components,
    torsions: Sequence[tuple[int, Torsions, int]],
    whole: dict[str, np.ndarray],
    real: dict[str, np.ndarray],
    flags: dict[str, np.ndarray],
) -> None:
    """Write one set of components into row i."""
    atoms, blocks = len(c.numbers), len(c.blocks)
    whole["numbers"][i, :atoms], whole["block_of"][i, :atoms] = c.numbers, c.block_of
    whole["kinds"][i, :blocks], flags["blocks"][i, :blocks] = [int(b.kind) for b in c.blocks], True
    real["local"][i, :atoms] = np.concatenate([b.local - b.local.mean(0) for b in c.blocks])
    for number, (k, of, t) in enumerate(torsions):
        first = int(c.first_atom[k])
        quad = of.quads[t] + first
        whole["quads"][i, number], whole["torsion_block"][i, number] = quad, k
        flags["torsions"][i, number] = True
        whole["turns"][i, t, k], whole["turn_of"][i, t, k] = quad[1:3], number
        flags["moves"][i, t, of.moving[t] + first] = True
        real["signs"][i, t, k] = of.signs[t]
    if torsions:
        x = real["local"][i]
        real["base_angles"][i, : len(torsions)] = measure(x, whole["quads"][i, : len(torsions)])


def poses_of(solutions: Sequence[Solution], to: Stack) -> Poses:
    """Known solutions as poses padded like `to`."""
    b, k = to.blocks.shape
    cells = np.array([s.cell for s in solutions]).reshape(b, 3, 3)
    rotations, centroids = np.tile(np.eye(3), (b, k, 1, 1)), np.zeros((b, k, 3))
    angles = np.zeros(tuple(to.torsions.shape))
    for i, s in enumerate(solutions):
        rotations[i, : len(s.rotations)], centroids[i, : len(s.centroids)] = s.rotations, s.centroids
        angles[i, : len(s.angles)] = s.angles
    return Poses(*(torch.from_numpy(x).to(to.local) for x in (cells, rotations, centroids, angles)))


def bend(fixed: Stack, angles: Tensor) -> Tensor:
    """Local coordinates [B, A, 3] in Å with the torsions at `angles` [B, T], each block's mean at the origin.

    All blocks turn their s-th torsion at once; the torsions of one block are independent, so the order is free.
    """
    x = fixed.local
    change = torch.remainder(angles - fixed.base_angles + torch.pi, 2 * torch.pi) - torch.pi
    for s in range(fixed.turns.shape[1]):
        which = fixed.turn_of[:, s]  # [B, K]
        here = torch.gather(change, 1, which.clamp_min(0)) * fixed.signs[:, s]  # 0 where a block has none
        ends = [torch.gather(x, 1, fixed.turns[:, s, :, e, None].expand(-1, -1, 3)) for e in (0, 1)]
        axis = ends[1] - ends[0]
        axis = axis / axis.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        turn = rotation_of(axis * here[..., None])  # [B, K, 3, 3]
        origin = per_atom(ends[1], fixed.block_of)
        turned = torch.einsum("baij,baj->bai", per_atom(turn, fixed.block_of), x - origin) + origin
        x = torch.where(fixed.moves[:, s, :, None], turned, x)
    return x - per_atom(block_means(fixed, x), fixed.block_of)


def place(fixed: Stack, poses: Poses) -> Tensor:
    """Cartesian coordinates of all atoms in Å, [B, A, 3]; padding atoms lie somewhere in block 0."""
    local = bend(fixed, poses.angles) if fixed.turns.shape[1] else fixed.local
    turned = torch.einsum("baij,baj->bai", per_atom(poses.rotations, fixed.block_of), local)
    return turned + per_atom(poses.centroids, fixed.block_of)


def block_means(fixed: Stack, x: Tensor) -> Tensor:
    """Mean over the atoms of every block of `x` [B, A, c]: [B, K, c]."""
    b, k = fixed.blocks.shape
    weighted = x * fixed.atoms[..., None]
    total = x.new_zeros(b, k, x.shape[-1])
    total = total.scatter_add(1, fixed.block_of[..., None].expand_as(x), weighted)
    return total / fixed.block_sizes[..., None]


def per_atom(values: Tensor, block_of: Tensor) -> Tensor:
    """Values of blocks [B, K, ...] handed to their atoms: [B, A, ...]."""
    index = block_of.reshape(*block_of.shape, *[1] * (values.dim() - 2))
    return torch.gather(values, 1, index.expand(*block_of.shape, *values.shape[2:]))


def rotation_of(vector: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of rotation vectors [..., 3]: axis times angle in rad (Rodrigues' formula)."""
    squared = (vector * vector).sum(-1)[..., None, None]
    small = squared < 1e-8
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    sine = torch.where(small, 1.0 - squared / 6.0, torch.sin(angle) / angle)
    cosine = torch.where(small, 0.5 - squared / 24.0, (1.0 - torch.cos(angle)) / angle**2)
    k = cross_matrix(vector)
    return torch.eye(3, dtype=vector.dtype, device=vector.device) + sine * k + cosine * (k @ k)


def cross_matrix(vector: Tensor) -> Tensor:
    """Antisymmetric matrices K [..., 3, 3] with K @ x = vector x x."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape, 3)


def structure_of(fixed: Stack, poses: Poses, row: int) -> Structure:
    """Assembly `row` as a structure, atoms in the order of the blocks and not wrapped into the cell."""
    one = fixed.take([row])
    atoms = len(one.components[0].numbers)
    positions = place(one, poses.take([row]))[0, :atoms]
    cell = poses.cells[row]
    return Structure(
        one.components[0].numbers, positions.detach().cpu().double().numpy(), cell.detach().cpu().double().numpy()
    )
