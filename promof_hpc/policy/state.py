"""Where an assembly is on its way from noise to structure: the state that the engineer sees, and how a step changes it.

A step is four increments, applied in the order torsions, rotation about the block's centroid, translation, lattice.
A change of the lattice carries the centroids along, so that no image of a block is left behind. The map from
increments to the next state depends on no parameter, so ratios of step densities are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from promof_hpc.assembly.components import Solution
from promof_hpc.assembly.stack import Poses, Stack, per_atom, poses_of, rotation_of
from promof_hpc.geometry.lattice import cells_of, lattice_of, upright

LENGTHS_ANG = (3.0, 60.0)  # bounds of the state's lattice; actions are never clipped
ANGLES_RAD = (0.70, 2.44)  # 40 to 140 degrees
MODALITIES = ("translation", "rotation", "torsion", "lattice")


@dataclass(frozen=True)
class State:
    """B assemblies on the way, padded like their `Stack`.

    Attributes:
        lattice: lengths in Å and angles in rad, [B, 6].
        rotations: proper rotation of every block, [B, K, 3, 3]; the identity in padding.
        centroids: mean of every block's atoms in Å, with zero mean over the blocks, [B, K, 3]; 0 in padding.
        angles: torsion angles in rad, [B, T].
    """

    lattice: Tensor
    rotations: Tensor
    centroids: Tensor
    angles: Tensor

    def __len__(self) -> int:
        return len(self.lattice)

    def poses(self) -> Poses:
        """The same as poses, with a along x and b in the xy plane."""
        return Poses(cells_of(self.lattice), self.rotations, self.centroids, self.angles)

    def take(self, rows: Sequence[int] | Tensor) -> State:
        """The assemblies `rows`."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.lattice.device)
        return State(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, target: torch.device | str) -> State:
        """A copy on another device."""
        return State(*(getattr(self, f.name).to(target) for f in fields(self)))


@dataclass(frozen=True)
class Increments:
    """What one step adds, or its mean: in Å, rad (left-applied rotation vectors), rad, and Å with rad.

    Attributes:
        translation: [B, K, 3] with zero mean over the blocks.
        rotation: [B, K, 3].
        torsion: [B, T].
        lattice: [B, 6].
    """

    translation: Tensor
    rotation: Tensor
    torsion: Tensor
    lattice: Tensor

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors in the order of `MODALITIES`."""
        return self.translation, self.rotation, self.torsion, self.lattice


def state_of(fixed: Stack, poses: Poses) -> State:
    """Poses as a state: cell turned upright, blocks turned with it, their mean at the origin."""
    cells, turn = upright(poses.cells)
    return State(
        lattice=lattice_of(cells),
        rotations=torch.where(fixed.blocks[..., None, None], turn.transpose(-1, -2)[:, None] @ poses.rotations,
                              torch.eye(3).to(cells)),
        centroids=centred(poses.centroids @ turn, fixed.blocks),
        angles=wrap(poses.angles),
    )  # fmt: skip


def states_of(solutions: Sequence[Solution], fixed: Stack) -> State:
    """Known solutions as states."""
    return state_of(fixed, poses_of(solutions, fixed))


def centred(values: Tensor, blocks: Tensor) -> Tensor:
    """Values of blocks [B, K, c] minus their mean over the real ones; 0 in padding."""
    real = blocks[..., None].to(values.dtype)
    mean = (values * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1.0)
    return (values - mean) * real


def wrap(angle: Tensor) -> Tensor:
    """Angles in rad brought into [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def advance(state: State, step: Increments) -> State:
    """The state after a step; only here are lengths and angles of the lattice kept within bounds.

    Translations are made in the cell before the step; then the centroids keep their fractions of the cell.
    """
    lattice = state.lattice + step.lattice
    lattice = torch.cat([lattice[:, :3].clamp(*LENGTHS_ANG), lattice[:, 3:].clamp(*ANGLES_RAD)], -1)
    return State(
        lattice=lattice,
        rotations=rotation_of(step.rotation) @ state.rotations,
        centroids=recelled(state.centroids + step.translation, state.lattice, lattice),
        angles=wrap(state.angles + step.torsion),
    )


def recelled(points: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Points [B, n, 3] with the same fractions of another cell; lattices [B, 6]."""
    return points @ torch.linalg.inv(cells_of(before)) @ cells_of(after)


def at_blocks(points: Tensor, block: Tensor, state: State) -> Tensor:
    """Points [B, P, 3] in the frames of their rigid blocks [B, P], in Cartesian Å."""
    return torch.einsum("bpij,bpj->bpi", per_atom(state.rotations, block), points) + per_atom(state.centroids, block)
