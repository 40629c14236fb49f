"""Soft repulsion between blocks: how close two atoms may come, and which pairs of a periodic assembly are closer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from ase.data import covalent_radii, vdw_radii
from torch import Tensor

from promof_hpc.assembly.components import Components
from promof_hpc.assembly.stack import Stack
from promof_hpc.chem.bonds import (
    COVALENT_SLACK,
    DONOR_SLACK,
    IS_METAL,
    METAL_FACTOR,
    METAL_LIMIT,
    NEVER_DONORS,
)

MOST_REDUCTIONS = 50
SKIN_ANG = 0.6  # pairs this far beyond touching are listed, because blocks move before the next list
VDW_FACTOR = 0.75  # of the sum of van der Waals radii (Bondi 1964 as in ASE)
HYDROGEN_VDW_ANG = 1.2
HYDROGEN_BOND_ANG = 1.5  # H to an acceptor
ACCEPTORS = (7, 8, 9, 16, 17, 35, 53)
DONOR_GIVES_ANG = 0.3  # a donor may come this much closer to a metal than the sum of covalent radii
HYDROGEN_METAL_SLACK = 0.6
CARBON_METAL_SLACK = 0.25


@dataclass(frozen=True)
class Reach:
    """Which pairs of atoms repel, and from where.

    Attributes:
        first, second: the two atoms of each pair of the padded stack, int64 [C].
        touching: distance in Å below which the pair repels, float32 [B, C]; -inf where an atom is padding.
        together: True where both atoms are in one block, [B, C]: they repel only across cells.
    """

    first: Tensor
    second: Tensor
    touching: Tensor
    together: Tensor

    def take(self, rows: Tensor) -> Reach:
        """The assemblies `rows`."""
        return Reach(self.first, self.second, self.touching[rows], self.together[rows])


@dataclass(frozen=True)
class Overlaps:
    """Pairs of atoms of different blocks (or images) that are close, padded to Q.

    Attributes:
        first, second: the atoms, int64 [B, Q].
        shift: cell image of the second relative to the first, [B, Q, 3].
        touching: distance in Å below which they repel, [B, Q]; 0 in padding.
    """

    first: Tensor
    second: Tensor
    shift: Tensor
    touching: Tensor


def reach_of(fixed: Stack) -> Reach:
    """Who repels whom in a stack."""
    device, (b, a) = fixed.local.device, fixed.numbers.shape
    first, second = torch.triu_indices(a, a, device=device).unbind(0)
    different = {id(c): c for c in fixed.components}
    place = {key: k for k, key in enumerate(different)}
    tables = torch.from_numpy(np.array([touching_distances(c, a) for c in different.values()], np.float32)).to(device)
    rows = torch.tensor([place[id(c)] for c in fixed.components], dtype=torch.long, device=device)
    touching = tables.reshape(-1, a, a)[:, first, second]
    together = fixed.block_of[:, first] == fixed.block_of[:, second]
    return Reach(first, second, touching[rows].reshape(b, len(first)), together)


def touching_distances(components: Components, padded: int | None = None) -> np.ndarray:
    """Distance in Å below which two atoms of different blocks repel, [A, A], or padded with -inf to `padded` atoms.

    0.75 times the sum of van der Waals radii, but 1.5 Å between H and an acceptor. Pairs with a metal follow the rules
    of `chem.bonds`, so that what touches is not yet bonded: a donor may come as close as a bond, nothing else may.
    """
    z = components.numbers
    radius = covalent_radii[z]
    bond = radius[:, None] + radius
    bulk = np.where(np.isnan(vdw_radii[z]), radius + 0.8, vdw_radii[z])
    bulk = np.where(z == 1, HYDROGEN_VDW_ANG, bulk)
    hydrogen, acceptor, metal = z == 1, np.isin(z, ACCEPTORS), IS_METAL[z]
    touching = np.maximum(VDW_FACTOR * (bulk[:, None] + bulk), bond + COVALENT_SLACK)
    touching[_mixed(hydrogen, acceptor)] = HYDROGEN_BOND_ANG
    slack = np.where(np.isin(z, (6, *NEVER_DONORS)), CARBON_METAL_SLACK, DONOR_SLACK)
    slack = np.where(hydrogen, HYDROGEN_METAL_SLACK, slack)
    slack[_donors(components)] = -DONOR_GIVES_ANG
    one_metal = metal[:, None] ^ metal
    touching = np.where(one_metal, bond + np.where(metal[:, None], slack, slack[:, None]), touching)
    two_metals = metal[:, None] & metal
    touching = np.where(two_metals, np.minimum(METAL_FACTOR * bond, METAL_LIMIT), touching)
    size = len(z) if padded is None else padded
    whole: np.ndarray = np.full((size, size), -np.inf)
    whole[: len(z), : len(z)] = touching
    return whole


def close_pairs(reach: Reach, atoms: Tensor, cells: Tensor, skin: float = SKIN_ANG) -> Overlaps:
    """Pairs of atoms [B, A, 3] closer than touching plus `skin` (Å) in reduced cells [B, 3, 3], each once.

    The list is made in single precision: it decides only which pairs beyond touching are watched.
    """
    inverse = torch.linalg.inv(cells)
    height = (1.0 / inverse.norm(dim=1)).float()  # distance between opposite faces
    limit = reach.touching + skin
    close = limit > 0
    fractions = []
    for axis, inside in enumerate((atoms @ inverse).float().unbind(-1)):
        apart = inside[:, reach.second] - inside[:, reach.first]
        fractions.append(apart)
        # |fraction| times height is a lower bound of the distance over all images, so nothing close is lost
        close &= (apart - apart.round()).abs() * height[:, axis, None] < limit
    row, pair = close.nonzero(as_tuple=True)
    apart = torch.stack([f[row, pair] for f in fractions], -1)
    nearest = apart.round()
    images = torch.tensor(list(product((-1, 0, 1), repeat=3)), dtype=torch.float32, device=atoms.device)
    candidates = (apart - nearest)[:, None] + images  # [c, 27, 3]
    distance = (candidates @ cells.float()[row]).norm(dim=-1)
    shift = images - nearest[:, None]
    x, y, z = shift.unbind(-1)
    here = (x == 0) & (y == 0) & (z == 0) & reach.together[row, pair][:, None]
    which, image = ((distance < limit[row, pair][:, None]) & ~here).nonzero(as_tuple=True)
    shift, row, pair = shift[which, image], row[which], pair[which]
    first, second = reach.first[pair], reach.second[pair]
    # an atom and its own image come twice, as s and as -s
    rank = shift @ shift.new_tensor([9.0, 3.0, 1.0])
    once = (first != second) | (rank > 0)
    row, pair, first, second, shift = row[once], pair[once], first[once], second[once], shift[once]
    return _padded(row, first, second, shift, reach.touching[row, pair], atoms)


def no_pairs(like: Tensor) -> Overlaps:
    """No close pairs for as many assemblies as `like` [B, ...] has."""
    none = torch.zeros(len(like), 0, dtype=torch.long, device=like.device)
    return Overlaps(none, none, like.new_zeros(len(like), 0, 3), like.new_zeros(len(like), 0))


def _padded(row: Tensor, first: Tensor, second: Tensor, shift: Tensor, touching: Tensor, like: Tensor) -> Overlaps:
    """Flat pairs, sorted by row, as one padded row each."""
    count = torch.bincount(row, minlength=len(like))
    widest = int(count.max()) if len(count) else 0
    column = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    whole = torch.zeros(2, len(like), widest, dtype=torch.long, device=row.device)
    whole[0, row, column], whole[1, row, column] = first, second
    shifts, limits = like.new_zeros(len(like), widest, 3), like.new_zeros(len(like), widest)
    shifts[row, column], limits[row, column] = shift.to(like), touching.to(like)
    return Overlaps(whole[0], whole[1], shifts, limits)


def _donors(components: Components) -> np.ndarray:
    """True for atoms that linkers bind with, [A]."""
    found = np.zeros(len(components.numbers), bool)
    for end in components.linker_ends:
        found[components.first_atom[end.block] + end.donors] = True
    return found


def _mixed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pairs of one kind with the other, [A, A]."""
    mixed: np.ndarray = (one[:, None] & other) | (other[:, None] & one)
    return mixed


def reduced_basis(cells: Tensor) -> Tensor:
    """Unimodular integer matrices H [B, 3, 3] (as floats) such that the rows of H @ cells are short.

    Pairs of vectors are shortened against each other (Lagrange) until none changes.
    """
    basis = torch.eye(3, dtype=cells.dtype, device=cells.device).repeat(len(cells), 1, 1)
    for _ in range(MOST_REDUCTIONS):
        before = basis.clone()
        for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
            short = basis @ cells
            share = (short[:, i] * short[:, j]).sum(-1) / short[:, j].square().sum(-1)
            # ties stay as they are, whichever way they are rounded
            times = torch.where(share.abs() > 0.5 + 1e-6, share.round(), 0.0)
            basis[:, i] -= times[:, None] * basis[:, j]
        if torch.equal(before, basis):
            break
    return basis
