"""Rigid blocks on a given net: poses and cell in which the contacts meet best, for many proposals at once.

The energy is snap's without repulsion: squared distances of sites and donors, and of what lies behind them. It falls in
turns, each exact: the order of donors in each contact, all nodes at once (Kabsch, the linkers held), all linkers, then
all centroids and the cell together (linear least squares). Far cheaper than a relaxation, so hundreds of proposals can
be ranked before the finisher sees one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from promof_hpc.geometry.rotation import optimal_rotation

OTHER_ELEMENT_ANG2 = 100.0  # cost of a donor of the wrong element on a site
HOLD_ROTATION_ANG2 = 0.05  # keeps the spin that no contact decides
HOLD_PLACE = 0.01  # weight of the present centroids and cell: without it nothing fixes the origin
MOST_PERMUTED = 4  # donors of a contact up to which every order is tried; larger ones keep the order given


@dataclass(frozen=True)
class EndPoints:
    """The ends of a component set as points, padded to M donors a contact.

    Attributes:
        node_block: block of each node end, ascending, int [E]; `linker_block` of each linker end.
        node: sites and behind points in the blocks' frames in Å, [E, 2, M, 3].
        linker: donors and what lies behind them, for every torsion state, [S, E, 2, M, 3].
        node_elements: atomic numbers, int [E, M], 0 in padding; `linker_elements` the same.
        blocks: how many there are.
    """

    node_block: np.ndarray
    linker_block: np.ndarray
    node: np.ndarray
    linker: np.ndarray
    node_elements: np.ndarray
    linker_elements: np.ndarray
    blocks: int

    @property
    def sizes(self) -> np.ndarray:
        """Donors of each node end, int [E]."""
        return (self.node_elements > 0).sum(1)


@dataclass(frozen=True)
class Placed:
    """N proposals: who meets whom, and poses.

    Attributes:
        partner: linker end of each node end, int [N, E]; `shifts` its image, int [N, E, 3].
        state: torsion state of every block, int [N, K].
        cells: [N, 3, 3] in Å; `rotations` [N, K, 3, 3]; `centroids` [N, K, 3] in Å.
    """

    partner: np.ndarray
    shifts: np.ndarray
    state: np.ndarray
    cells: np.ndarray
    rotations: np.ndarray
    centroids: np.ndarray

    def take(self, rows: np.ndarray) -> Placed:
        """The proposals `rows`."""
        return Placed(**{name: value[rows] for name, value in vars(self).items()})


def close(ends: EndPoints, placed: Placed, turns: int, least_volume: float) -> tuple[Placed, np.ndarray]:
    """Close contacts by so many turns.

    Args:
        least_volume: of the cell in Å³. Contacts that cannot meet come nearer in a smaller cell, without end; below
            this volume the whole is blown up again after every turn.

    Returns:
        The proposals with their new poses, and their energy in Å², [N].
    """
    problem = _Problem(ends, placed)
    for _ in range(turns):
        problem.order_donors()
        problem.turn_nodes()
        problem.turn_linkers()
        problem.move()
        problem.swell(least_volume)
    problem.order_donors()
    closed = replace(placed, cells=problem.cells, rotations=problem.rotations, centroids=problem.centroids)
    return closed, problem.energy()


class _Problem:
    """The state of a closure; arrays of contacts are in the order of the node ends, [N, E, 2, M, 3]."""

    def __init__(self, ends: EndPoints, placed: Placed) -> None:
        self.ends, self.placed = ends, placed
        self.cells, self.rotations = placed.cells.copy(), placed.rotations.copy()
        self.centroids = placed.centroids.copy()
        self._rows = np.arange(len(placed.partner))[:, None]
        self._partner_block = ends.linker_block[placed.partner]
        state = np.take_along_axis(placed.state, self._partner_block, 1)
        self._donors = ends.linker[state, placed.partner]
        self._donor_elements = ends.linker_elements[placed.partner]
        self._mask = (ends.node_elements > 0)[None, :, None, :, None]
        self._back = np.argsort(placed.partner, axis=1)  # node end of each linker end
        self._design = self._design_matrix()

    def order_donors(self) -> None:
        """Choose which donor of each contact goes on which site."""
        sites, donors = self._world_sites(), self._world_donors()
        other = self.ends.node_elements[None, :, :, None] != self._donor_elements[:, :, None, :]
        cost = ((sites[..., :, None, :] - donors[..., None, :, :]) ** 2).sum((2, -1)) + OTHER_ELEMENT_ANG2 * other
        order = np.broadcast_to(np.arange(cost.shape[-1]), cost.shape[:3]).copy()
        for size in np.unique(self.ends.sizes):
            if not 2 <= size <= MOST_PERMUTED:
                continue
            which = np.flatnonzero(self.ends.sizes == size)
            choices = np.array(list(permutations(range(size))))
            sums = cost[:, which][:, :, np.arange(size), choices].sum(-1)
            order[:, which, :size] = choices[sums.argmin(-1)]
        self._donors = np.take_along_axis(self._donors, order[:, :, None, :, None], 3)
        self._donor_elements = np.take_along_axis(self._donor_elements, order, 2)

    def turn_nodes(self) -> None:
        """Lay every node on the donors that it should meet."""
        local = np.broadcast_to(self.ends.node, self._donors.shape)
        self._lay(local, self._world_donors(), self._mask, self.ends.node_block)

    def turn_linkers(self) -> None:
        """Lay every linker on the sites that it should meet."""
        targets = self._world_sites() - self._images()
        take = self._rows, self._back
        mask = np.broadcast_to(self._mask, (*self._donors.shape[:-1], 1))
        self._lay(self._donors[take], targets[take], mask[take], self.ends.linker_block)

    def move(self) -> None:
        """Set all centroids and the cell at once, rotations held."""
        weight = self.ends.sizes.astype(float)
        count = np.maximum(2 * weight, 1)[None, :, None]
        site = (self._turned(self.ends.node[None], self.ends.node_block) * self._mask).sum((2, 3)) / count
        donor = (self._turned(self._donors, self._partner_block) * self._mask).sum((2, 3)) / count
        weighted = self._design * weight[None, :, None]
        normal = np.swapaxes(weighted, 1, 2) @ self._design + HOLD_PLACE * np.eye(self._design.shape[-1])
        present = np.concatenate([self.centroids, self.cells], axis=1)
        right = np.swapaxes(weighted, 1, 2) @ (donor - site) + HOLD_PLACE * present
        found = np.linalg.solve(normal, right)
        self.centroids, self.cells = found[:, : self.ends.blocks], found[:, self.ends.blocks :]

    def swell(self, least_volume: float) -> None:
        """Scale cells and centroids up to the least volume."""
        volume = np.abs(np.linalg.det(self.cells))
        factor = np.cbrt(np.maximum(least_volume / np.maximum(volume, 1e-3), 1.0))[:, None, None]
        self.cells, self.centroids = self.cells * factor, self.centroids * factor

    def energy(self) -> np.ndarray:
        """Squared distances that are left, in Å², [N]."""
        left: np.ndarray = (((self._world_sites() - self._world_donors()) ** 2) * self._mask).sum((1, 2, 3, 4))
        return left

    def _lay(self, local: np.ndarray, targets: np.ndarray, mask: np.ndarray, block: np.ndarray) -> None:
        """Superpose blocks on their targets, both [N, E, 2, M, 3] with the ends in the order of `block` [E]."""
        which, first = np.unique(block, return_index=True)
        mask = np.broadcast_to(mask, (*local.shape[:-1], 1))
        total = np.maximum(np.add.reduceat(mask.sum((2, 3)), first, axis=1), 1)
        own, there = (np.add.reduceat((x * mask).sum((2, 3)), first, axis=1) / total for x in (local, targets))
        place = np.searchsorted(which, block)
        a = (local - own[:, place, None, None]) * mask
        b = targets - there[:, place, None, None]
        covariance = np.add.reduceat(np.einsum("nesmx,nesmy->nexy", a, b), first, axis=1)
        held = HOLD_ROTATION_ANG2 * np.swapaxes(self.rotations[:, which], -1, -2)
        rotation = optimal_rotation(covariance + held)
        self.rotations[:, which] = rotation
        self.centroids[:, which] = there - np.einsum("nkxy,nky->nkx", rotation, own)

    def _turned(self, local: np.ndarray, block: np.ndarray) -> np.ndarray:
        rotation = self.rotations[:, block] if block.ndim == 1 else self.rotations[self._rows, block]
        return np.einsum("nexy,nesmy->nesmx", rotation, np.broadcast_to(local, self._donors.shape))

    def _images(self) -> np.ndarray:
        return (self.placed.shifts @ self.cells)[:, :, None, None]

    def _world_sites(self) -> np.ndarray:
        centre = self.centroids[:, self.ends.node_block, None, None]
        return self._turned(self.ends.node[None], self.ends.node_block) + centre

    def _world_donors(self) -> np.ndarray:
        centre = self.centroids[self._rows, self._partner_block][:, :, None, None]
        return self._turned(self._donors, self._partner_block) + centre + self._images()

    def _design_matrix(self) -> np.ndarray:
        """Coefficients of (centroids, cell) in site minus donor, [N, E, K + 3]."""
        n, e = self.placed.partner.shape
        design = np.zeros((n, e, self.ends.blocks + 3))
        design[:, np.arange(e), self.ends.node_block] = 1.0
        design[self._rows, np.arange(e), self._partner_block] -= 1.0
        design[:, :, self.ends.blocks :] = -self.placed.shifts
        return design
