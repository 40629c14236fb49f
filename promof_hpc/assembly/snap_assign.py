"""Who meets whom: the cheapest pairing of the ends of nodes with the ends of linkers.

`Free` pairs all ends of an assembly at once, each at the nearest image of the other (the Hungarian method, Kuhn 1955).
`Kept` leaves edges (which blocks meet, and at which image) as they are and chooses only the ends at both blocks, the
node's for given linker's and in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from promof_hpc.assembly.snap_ends import coarse
from promof_hpc.assembly.snap_energy import Matched, Points, Rig
from promof_hpc.assembly.snap_meet import NEVER_ANG2, Meetings, costs_of, meetings_of, sites_of

SWEEPS = 2  # of both sides of kept edges


@dataclass(frozen=True)
class Pairing:
    """Which linker end each node end meets.

    Attributes:
        partner: number of the linker end, int64 [B, E]; padding is ignored.
        shifts: cell image of that end's block relative to the node's, int64 [B, E, 3].
    """

    partner: Tensor
    shifts: Tensor


@dataclass(frozen=True)
class Choice:
    """A pairing and what it means for every site."""

    pairing: Pairing
    matched: Matched


class Matchmaker(Protocol):
    """Chooses who meets whom in the present poses."""

    def choose(self, points: Points, cells: Tensor, factor: Tensor | None = None, swap: bool = True) -> Choice:
        """The best choice; costs are first multiplied by `factor` [B, edges, E, E] (edges 1 where none are kept).

        Without `swap` the ends of kept edges stay as they were.
        """
        ...

    def take(self, rows: Tensor) -> Matchmaker:
        """The same for the assemblies `rows`."""
        ...


@dataclass(frozen=True)
class Free:
    """Chooses among all ends.

    Attributes:
        rig: the assemblies.
        meetings: possible meetings.
        preference: subtracted from the cost of a meeting in Å², [B, E, E].
        behind: weight of the points behind.
    """

    rig: Rig
    meetings: list[Meetings]
    preference: Tensor
    behind: float

    @classmethod
    def of(cls, rig: Rig, preference: Tensor, behind: float) -> Free:
        """For all assemblies of a rig."""
        b, e = rig.ends.size.shape
        everyone = torch.ones(b, 1, e, e, dtype=torch.bool, device=preference.device)
        return cls(rig, meetings_of(rig, everyone), preference, behind)

    def take(self, rows: Tensor) -> Free:
        """The assemblies `rows`, each once."""
        place = _places(rows, len(self.preference))
        kept = [m.keep(place) for m in self.meetings]
        return replace(self, rig=self.rig.take(rows), meetings=kept, preference=self.preference[rows])

    def choose(self, points: Points, cells: Tensor, factor: Tensor | None = None, swap: bool = True) -> Choice:
        """The cheapest one-to-one pairing of each assembly."""
        ends = self.rig.ends
        b, e = ends.size.shape
        table = cells.new_full((b, e, e), NEVER_ANG2)
        inverse = torch.linalg.inv(cells)
        found = []
        for some in self.meetings:
            image = _nearest_image(some, self.rig, points, cells, inverse)
            shift = (image[:, None] @ cells[some.row])[:, 0]
            cost, donors = costs_of(some, ends, points, shift, self.behind)
            if factor is not None:
                cost = cost * factor[some.row, 0, some.node, some.linker]
            table[some.row, some.node, some.linker] = cost - self.preference[some.row, some.node, some.linker]
            found.append((image, donors))
        partner = self._assign(table)
        pairing = Pairing(partner, partner.new_zeros(b, e, 3))
        chosen = []
        for some, (image, donors) in zip(self.meetings, found, strict=True):
            met = partner[some.row, some.node] == some.linker
            row, node = some.row[met], some.node[met]
            pairing.shifts[row, node] = image[met].to(torch.long)
            chosen.append((row, node, some.size, donors[met]))
        return Choice(pairing, _matched(self.rig, chosen, pairing))

    def _assign(self, table: Tensor) -> Tensor:
        """Linker end of every node end, [B, E]."""
        partner = torch.zeros(table.shape[:2], dtype=torch.long)
        counts = (self.rig.ends.size > 0).sum(1).tolist()
        for row, (costs, count) in enumerate(zip(table.cpu().numpy(), counts, strict=True)):
            partner[row, :count] = torch.from_numpy(linear_sum_assignment(costs[:count, :count])[1])
        return partner.to(table.device)


@dataclass
class Kept:
    """Chooses the ends at both blocks of given edges, starting from those that it chose last.

    Attributes:
        rig: the assemblies.
        meetings: possible meetings; edge number e is the one that node end e had at first.
        images: cell image of the linker's block along each edge, int64 [B, E, 3].
        nodes, linkers: the ends of every edge, int64 [B, E].
        preference: subtracted from the cost of a meeting in Å², [B, E, E].
        behind: weight of the points behind.
    """

    rig: Rig
    meetings: list[Meetings]
    images: Tensor
    nodes: np.ndarray
    linkers: np.ndarray
    preference: Tensor
    behind: float

    @classmethod
    def of(cls, rig: Rig, edges: Pairing, preference: Tensor, behind: float) -> Kept:
        """For all assemblies of a rig, with the edges of a pairing."""
        ends = rig.ends
        to = torch.gather(ends.linker_block, 1, edges.partner)
        at_node = ends.node_block[:, :, None] == ends.node_block[:, None]  # [B, edge, E]
        at_linker = to[:, :, None] == ends.linker_block[:, None]
        possible = at_node[..., None] & at_linker[:, :, None] & (ends.size > 0)[:, :, None, None]
        nodes = np.tile(np.arange(ends.size.shape[1]), (len(to), 1))
        return cls(
            rig, meetings_of(rig, possible), edges.shifts, nodes, edges.partner.cpu().numpy().copy(), preference, behind
        )

    def take(self, rows: Tensor) -> Kept:
        """The assemblies `rows`, each once."""
        place = _places(rows, len(self.images))
        at = rows.cpu().numpy()
        return Kept(
            self.rig.take(rows),
            [m.keep(place) for m in self.meetings],
            self.images[rows],
            self.nodes[at],
            self.linkers[at],
            self.preference[rows],
            self.behind,
        )

    def coarse(self) -> Kept:
        """The same edges and ends without the order of donors inside a contact."""
        rig = replace(self.rig, ends=coarse(self.rig.ends))
        return Kept.of(rig, self._pairing(), self.preference, self.behind)

    def on(self, pairing: Pairing) -> Kept:
        """For the same assemblies with other ends on the same edges."""
        return Kept.of(self.rig, pairing, self.preference, self.behind)

    def choose(self, points: Points, cells: Tensor, factor: Tensor | None = None, swap: bool = True) -> Choice:
        """The ends (unless `swap` is off) and orders that fit the present poses best."""
        ends = self.rig.ends
        b, e = ends.size.shape
        table = np.full((b, e, e, e), NEVER_ANG2, np.float32)
        found = []
        for some in self.meetings:
            shift = (self.images[some.row, some.edge][:, None].to(cells) @ cells[some.row])[:, 0]
            cost, donors = costs_of(some, ends, points, shift, self.behind)
            if factor is not None:
                cost = cost * factor[some.row, some.edge, some.node, some.linker]
            cost = cost - self.preference[some.row, some.node, some.linker]
            where = (x.cpu().numpy() for x in (some.row, some.edge, some.node, some.linker))
            table[tuple(where)] = cost.cpu().numpy()
            found.append(donors)
        if swap:
            for row, count in enumerate((ends.size > 0).sum(1).tolist()):
                self._improve(row, count, table[row])
        pairing = self._pairing()
        nodes, linkers = (torch.from_numpy(x).to(cells.device) for x in (self.nodes, self.linkers))
        chosen = []
        for some, donors in zip(self.meetings, found, strict=True):
            met = (nodes[some.row, some.edge] == some.node) & (linkers[some.row, some.edge] == some.linker)
            chosen.append((some.row[met], some.node[met], some.size, donors[met]))
        return Choice(pairing, _matched(self.rig, chosen, pairing))

    def _pairing(self) -> Pairing:
        """The present ends by node end."""
        nodes, linkers = (torch.from_numpy(x).to(self.images.device) for x in (self.nodes, self.linkers))
        images = torch.zeros_like(self.images).scatter_(1, nodes[..., None].expand_as(self.images), self.images)
        return Pairing(torch.zeros_like(nodes).scatter_(1, nodes, linkers), images)

    def _improve(self, row: int, count: int, table: np.ndarray) -> None:
        """Alternate between the sides of one assembly until neither changes; `table` [edge, node end, linker end]."""
        ends = self.rig.ends
        node, linker = self.nodes[row, :count], self.linkers[row, :count]  # views: what is chosen here stays
        at_node = _groups(ends.node_block[row].cpu().numpy()[node])
        at_linker = _groups(ends.linker_block[row].cpu().numpy()[linker])
        for _ in range(SWEEPS):
            before = node.copy(), linker.copy()
            for edges in at_node:
                offered = node[edges]
                node[edges] = _best(table[edges[:, None], offered, linker[edges][:, None]], offered)
            for edges in at_linker:
                offered = linker[edges]
                linker[edges] = _best(table[edges[:, None], node[edges][:, None], offered], offered)
            if (node == before[0]).all() and (linker == before[1]).all():
                return


def _best(costs: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """The ends `offered` [d] in the order that suits edges with costs [d, d]; as they are where nothing is possible."""
    rows, columns = linear_sum_assignment(costs)
    return offered[columns] if costs[rows, columns].max() < NEVER_ANG2 / 2 else offered


def _groups(blocks: np.ndarray) -> list[np.ndarray]:
    """Edges at one block [E], for every block with at least two."""
    return [found for k in np.unique(blocks) if len(found := np.flatnonzero(blocks == k)) > 1]


def _nearest_image(some: Meetings, rig: Rig, points: Points, cells: Tensor, inverse: Tensor) -> Tensor:
    """Cell image [N, 3] of the linker that brings the middles of two ends closest, in reduced cells."""
    row = some.row[:, None]
    at = sites_of(rig.ends.node_first, some.row, some.node, some.size)
    of = sites_of(rig.ends.linker_first, some.row, some.linker, some.size)
    wanted = (points.sites[row, at] + points.behinds[row, at]).mean(1) / 2
    offered = (points.donors[row, of] + points.backs[row, of]).mean(1) / 2
    apart = ((offered - wanted)[:, None] @ inverse[some.row])[:, 0]
    near = -apart.round()
    images = torch.tensor(list(product((-1, 0, 1), repeat=3))).to(cells) + near[:, None]  # [N, 27, 3]
    distance = ((apart[:, None] + images) @ cells[some.row]).square().sum(-1)
    return torch.gather(images, 1, distance.argmin(1)[:, None, None].expand(-1, 1, 3))[:, 0]


def _matched(rig: Rig, chosen: Sequence[tuple[Tensor, Tensor, int, Tensor]], pairing: Pairing) -> Matched:
    """What a pairing means for each site: `chosen` meetings as (row, node end, donors m, donors in order [n, m])."""
    ends = rig.ends
    donor, shift = torch.zeros_like(ends.donor_block), ends.site.new_zeros(ends.site.shape)
    for row, node, size, donors in chosen:
        at = sites_of(ends.node_first, row, node, size)
        donor[row[:, None], at] = donors
        shift[row[:, None], at] = pairing.shifts[row, node][:, None].to(shift).expand(-1, size, 3)
    return Matched(donor, shift)


def _places(rows: Tensor, count: int) -> Tensor:
    """New number of each of `count` assemblies when only `rows` are kept; -1 for the others."""
    place = torch.full((count,), -1, dtype=torch.long, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    return place
