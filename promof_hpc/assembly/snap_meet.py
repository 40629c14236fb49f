"""Which ends of contacts can meet, and at what cost.

The cost of a meeting is the sum of squared distances from site to donor and from the point behind the site to that
behind the donor, in the best order of the donors, plus how far the two ends differ in shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from promof_hpc.assembly.snap_ends import Ends
from promof_hpc.assembly.snap_energy import Points, Rig, mean_of_backs, mean_of_donors

MOST_PERMUTED = 4  # donors of a contact up to which every order is tried; beyond, donors are assigned one by one
NEVER_ANG2 = 1e6
SHAPE_WEIGHT = 3.0  # of the squared difference between the internal distances of site and donors


@dataclass(frozen=True)
class Meetings:
    """N possible meetings of a node end with a linker end of the same m donors.

    Attributes:
        size: donors m.
        row: assembly, int64 [N].
        node, linker: the ends, int64 [N].
        edge: edge that the meeting would realise, int64 [N]; 0 where there are no edges to keep.
        bias: added to the cost of each order in Å², [N, F].
    """

    size: int
    row: Tensor
    node: Tensor
    linker: Tensor
    edge: Tensor
    bias: Tensor

    def keep(self, place: Tensor) -> Meetings:
        """Those of assemblies that have a new number in `place` [B]; -1: gone."""
        here = place[self.row] >= 0
        kept = (x[here] for x in (self.node, self.linker, self.edge, self.bias))
        return Meetings(self.size, place[self.row[here]], *kept)


def orders(size: int) -> Tensor:
    """Orders of `size` donors that are tried, int64 [F, size]; beyond `MOST_PERMUTED` only the given one."""
    return torch.tensor(list(permutations(range(size))) if size <= MOST_PERMUTED else [list(range(size))])


def meetings_of(rig: Rig, possible: Tensor) -> list[Meetings]:
    """Meetings among those flagged in `possible` [B, edges, E, E], by number of donors."""
    ends = rig.ends
    same = (ends.node_pattern[:, :, None] == ends.linker_pattern[:, None]) & (ends.size > 0)[:, :, None]
    row, edge, node, linker = (possible & same[:, None]).nonzero(as_tuple=True)
    size = ends.size[row, node]
    found = []
    for m in sorted(set(size.tolist())):
        mine = size == m
        r, n, k = row[mine], node[mine], linker[mine]
        found.append(Meetings(m, r, n, k, edge[mine], _bias(rig, r, n, k, m)))
    return found


def _bias(rig: Rig, row: Tensor, node: Tensor, linker: Tensor, size: int) -> Tensor:
    """What speaks against each order whatever the poses: other elements, other distances among the donors, [N, F]."""
    ends = rig.ends
    order = orders(size).to(row.device)
    at, of = sites_of(ends.node_first, row, node, size), sites_of(ends.linker_first, row, linker, size)
    wanted = ends.site_element[row[:, None], at]
    unlike = ends.donor_element[row[:, None], of][:, order] != wanted[:, None]
    bias = NEVER_ANG2 * unlike.any(-1).to(ends.site)
    if size == 1 or size > MOST_PERMUTED:
        return bias
    donors, backs = mean_of_donors(ends, rig.fixed.local), mean_of_backs(ends, rig.fixed.local)
    asked = torch.cat([ends.site[row[:, None], at], ends.behind[row[:, None], at]], 1)
    offered = torch.cat([donors[row[:, None], of][:, order], backs[row[:, None], of][:, order]], 2)
    one, other = torch.triu_indices(2 * size, 2 * size, 1, device=row.device)
    wide = (asked[:, one] - asked[:, other]).norm(dim=-1)[:, None]
    return bias + SHAPE_WEIGHT * ((offered[:, :, one] - offered[:, :, other]).norm(dim=-1) - wide).square().sum(-1)


def sites_of(first: Tensor, row: Tensor, end: Tensor, size: int) -> Tensor:
    """Numbers of the sites (or donors) of ends, int64 [N, size]."""
    return first[row, end][:, None] + torch.arange(size, device=first.device)


def costs_of(some: Meetings, ends: Ends, points: Points, shift: Tensor, behind: float) -> tuple[Tensor, Tensor]:
    """Cost in Å² of each meeting with the linker moved by `shift` [N, 3], and the donors in their best order [N, m]."""
    row = some.row[:, None]
    at = sites_of(ends.node_first, some.row, some.node, some.size)
    of = sites_of(ends.linker_first, some.row, some.linker, some.size)
    apart = (points.donors[row, of] + shift[:, None])[:, None] - points.sites[row, at][:, :, None]
    apart_behind = (points.backs[row, of] + shift[:, None])[:, None] - points.behinds[row, at][:, :, None]
    table = apart.square().sum(-1) + behind * apart_behind.square().sum(-1)  # [N, site, donor]
    order = orders(some.size).to(row.device)
    if some.size <= MOST_PERMUTED:
        each = table[:, torch.arange(some.size, device=row.device), order].sum(-1) + some.bias
        cost, best = each.min(-1)
        return cost, torch.gather(of, 1, order[best])
    table = table + NEVER_ANG2 * (ends.donor_element[row, of][:, None] != ends.site_element[row, at][:, :, None])
    assigned = [linear_sum_assignment(t)[1] for t in table.cpu().numpy()]
    best = torch.from_numpy(np.array(assigned, np.int64).reshape(-1, some.size)).to(row.device)
    return torch.gather(table, 2, best[..., None]).sum((1, 2)), torch.gather(of, 1, best)
