"""Which noise goes with which crystal, and which of the equal descriptions of the crystal it is led to.

A crystal has many descriptions: origin, periodic images of blocks, the order of equal blocks, and for each block every
pose that looks the same. The one near the noise makes the paths short and the target single-valued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from promof_hpc.assembly.components import Solution
from promof_hpc.assembly.stack import Stack, bend, per_atom
from promof_hpc.geometry.lattice import cells_of
from promof_hpc.policy.features import Inputs, inputs_of
from promof_hpc.policy.state import State, at_blocks, centred, wrap
from promof_hpc.policy.symmetry import BlockCopies

ORIGINS = 6  # origins tried for each row
OTHER_BLOCK = 1e9  # cost in Å² of noise that belongs to another kind of block
OTHER_END = 1e6  # cost in Å of an end standing for one of another block or with other donors


@dataclass(frozen=True)
class Copies:
    """Poses of each block that look like its pose in the crystal, itself first, padded to S.

    Attributes:
        turns: rotation Q [B, K, S, 3, 3]: the copy has the pose R Q where the crystal has R.
        angles: torsion angles of the copy of the torsion's block in rad, [B, T, S].
        there: True for real copies, [B, K, S]; none where every rotation looks the same.
        folds: turns by 2 pi / fold leave the look of what a torsion moves, int64 [B, T]; at least 1.
    """

    turns: Tensor
    angles: Tensor
    there: Tensor
    folds: Tensor


@dataclass(frozen=True)
class Aim:
    """Noise and the description of the crystal that it is led to.

    Attributes:
        noise, data: the two ends of the path.
        order: a number for each block, equal blocks in random order, int64 [B, K].
        partner: who meets whom in this description, int64 [B, E]; None where it was not given.
    """

    noise: State
    data: State
    order: Tensor
    partner: Tensor | None


def couple(
    fixed: Stack,
    noise: State,
    data: State,
    generator: torch.Generator,
    copies: Copies | None = None,
    partner: Tensor | None = None,
) -> Aim:
    """Lay noise and crystal out for each other.

    The noise of equal blocks is exchanged (Hungarian on centroids), which leaves its distribution over the set as it
    is; each block of the crystal goes to the image nearest to its noise in fractions of the cell, the crystal as a
    whole to the best of some random origins, and each block to the copy nearest to its noise. So no block moves by
    more than about half a cell. (Noise and crystal are then not independent, and the score of `policy.sde` is
    approximate for translations too; ratios are exact all the same.)
    """
    inputs = inputs_of(fixed)
    group = inputs.group.cpu().numpy()
    keys = torch.rand(group.shape, generator=generator).numpy()
    order = np.stack([_shuffled(g, k) for g, k in zip(group, keys, strict=True)])
    origins = torch.rand(len(group), ORIGINS, 3, generator=generator)
    centroids, index = _nearest_layout(fixed, noise, data, group, origins)
    noise = State(
        noise.lattice,
        torch.gather(noise.rotations, 1, index[..., None, None].expand(-1, -1, 3, 3)),
        torch.gather(noise.centroids, 1, index[..., None].expand(-1, -1, 3)),
        noise.angles,
    )
    near = State(data.lattice, data.rotations, centroids, data.angles)
    if copies is not None:
        near = _nearest_copy(fixed, noise, near, copies)
    if partner is not None:
        partner = _relabelled(fixed, inputs, data, near, partner)
    return Aim(noise, near, torch.from_numpy(order).to(index.device), partner)


def _shuffled(group: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Numbers of blocks with those of equal blocks in the order of random keys."""
    order = np.arange(len(group))
    for g in np.unique(group[group >= 0]):
        members = np.flatnonzero(group == g)
        order[members] = members[np.argsort(keys[members])]
    return order


def _nearest_layout(
    fixed: Stack, noise: State, data: State, group: np.ndarray, origins: Tensor
) -> tuple[Tensor, Tensor]:
    """Centroids [B, K, 3] of the crystal, and the noise, int64 [B, K], that goes with each block."""
    cells, start = cells_of(data.lattice), cells_of(noise.lattice)
    b, k = fixed.blocks.shape
    begin = (noise.centroids @ torch.linalg.inv(start))[:, None, None]
    laid = (data.centroids @ torch.linalg.inv(cells))[:, None] + origins.to(begin)[:, :, None]  # [B, O, K, 3]
    away = begin - laid[:, :, :, None]  # fractions, [B, O, K (crystal), K (noise), 3]
    away = (away - torch.round(away)) @ cells[:, None, None]
    cost = away.square().sum(-1).cpu().numpy()
    cost = cost + np.where(group[:, :, None] == group[:, None, :], 0.0, OTHER_BLOCK)[:, None]
    columns = np.array([[linear_sum_assignment(c)[1] for c in row] for row in cost]).reshape(b, -1, k)
    index = torch.from_numpy(columns).to(away.device)[..., None, None].expand(-1, -1, -1, 1, 3)
    way = torch.gather(away, 3, index).squeeze(3).flatten(0, 1)
    way = centred(way, fixed.blocks.repeat_interleave(ORIGINS, 0)).view(
        b, -1, k, 3
    )  # the origin that is nearest of all
    best = way.square().sum((-1, -2)).argmin(1)
    rows = torch.arange(b, device=best.device)
    choice = index[rows, best, :, 0, 0]
    led = torch.gather(begin[:, 0, 0], 1, choice[..., None].expand(-1, -1, 3)) @ cells
    return centred(led - way[rows, best], fixed.blocks), choice


def _nearest_copy(fixed: Stack, noise: State, data: State, copies: Copies) -> State:
    """The crystal with each block in the copy nearest to its noise, each torsion in the nearest turn of its fold."""
    turned = data.rotations[:, :, None] @ copies.turns  # [B, K, S, 3, 3]
    alike = (turned * noise.rotations[:, :, None]).sum((-1, -2))  # trace of the rotation between: 3 is equal
    if fixed.torsions.shape[1]:
        away = wrap((noise.angles[..., None] - copies.angles) * copies.folds[..., None]) / copies.folds[..., None]
        angles = wrap(noise.angles[..., None] - away)
        cosine = torch.cos(away) * fixed.torsions[..., None]
        index = fixed.torsion_block[..., None].expand_as(cosine)
        alike = alike + 0.5 * torch.zeros_like(alike).scatter_add(1, index, cosine)
    chosen = torch.where(copies.there, alike, -torch.inf).argmax(-1)  # [B, K]
    rotations = torch.gather(turned, 2, chosen[..., None, None, None].expand(-1, -1, 1, 3, 3)).squeeze(2)
    round_blocks = (~copies.there.any(-1) & fixed.blocks)[..., None, None]  # single atoms look the same however turned
    rotations = torch.where(round_blocks, noise.rotations, rotations)
    if not fixed.torsions.shape[1]:
        return State(data.lattice, rotations, data.centroids, data.angles)
    own = torch.gather(chosen, 1, fixed.torsion_block)[..., None]
    return State(data.lattice, rotations, data.centroids, torch.gather(angles, 2, own).squeeze(2))


def _relabelled(fixed: Stack, inputs: Inputs, data: State, near: State, partner: Tensor) -> Tensor:
    """Who meets whom where each end stands in the place of the end that it covers in the crystal's own description."""
    before, after = (_end_centres(fixed, inputs, s) for s in (data, near))
    e = partner.shape[1]
    pattern = torch.cat([inputs.node_pattern, inputs.linker_pattern], 1)
    labels = torch.stack([inputs.end_block, pattern], -1)
    other = (labels[:, :, None] != labels[:, None, :]).any(-1)
    cost = (torch.cdist(after, before) + OTHER_END * other).cpu().numpy()
    old = partner.cpu().numpy()
    new = np.full_like(old, -1)
    for row, components in enumerate(fixed.components):
        count = len(components.node_ends)
        node = linear_sum_assignment(cost[row, :count, :count])[1]
        linker = linear_sum_assignment(cost[row, e : e + count, e : e + count])[1]
        new[row, :count] = np.argsort(linker)[old[row, node]]
    return torch.from_numpy(new).to(partner.device)


def _end_centres(fixed: Stack, inputs: Inputs, state: State) -> Tensor:
    """Centres of all ends relative to the centroids of their blocks, [B, 2E, 3]."""
    bare = State(state.lattice, state.rotations, torch.zeros_like(state.centroids), state.angles)
    local = bend(fixed, state.angles) if fixed.turns.shape[1] else fixed.local
    atoms = torch.einsum("baij,baj->bai", per_atom(state.rotations, fixed.block_of), local)
    sites = at_blocks(inputs.site_local, inputs.site_block, bare)
    return torch.cat([inputs.site_share @ sites, inputs.donor_share @ atoms], 1)


def partners_of(solutions: Sequence[Solution], fixed: Stack) -> Tensor:
    """Who meets whom in known solutions, int64 [B, E] with -1 in padding."""
    e = max((len(s.partner) for s in solutions), default=0)
    rows = np.full((len(solutions), e), -1, np.int64)
    for row, solution in zip(rows, solutions, strict=True):
        row[: len(solution.partner)] = solution.partner
    return torch.from_numpy(rows).to(fixed.local.device)


def stack_copies(many: Sequence[Sequence[BlockCopies]], fixed: Stack) -> Copies:
    """Copies of the blocks of each row (`symmetry.copies_of`), padded like `fixed`."""
    b, k = fixed.blocks.shape
    s = max((len(c.turns) for row in many for c in row), default=1) or 1
    turns = np.tile(np.eye(3, dtype=np.float32), (b, k, s, 1, 1))
    there = np.zeros((b, k, s), bool)
    angles, folds = np.zeros((*fixed.torsions.shape, s), np.float32), np.ones(fixed.torsions.shape, np.int64)
    for i, row in enumerate(many):
        first = 0
        for j, block in enumerate(row):
            count, t = len(block.turns), len(block.folds)
            turns[i, j, :count], there[i, j, :count] = block.turns, True
            angles[i, first : first + t, : max(count, 1)] = block.angles.T
            folds[i, first : first + t] = block.folds
            first += t
    device = fixed.local.device
    return Copies(
        torch.from_numpy(turns).to(fixed.local),
        torch.from_numpy(angles).to(fixed.local),
        torch.from_numpy(there).to(device),
        torch.from_numpy(folds).to(device),
    )
