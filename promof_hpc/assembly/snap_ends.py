"""The ends of contacts as padded tensors: where donors must come, and which atoms can come there.

Contacts are split into sites: one donor at one place. A node end and the linker end that it meets have equally many,
so both sides of a stack have the same number of sites M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promof_hpc.assembly.components import Components, End
from promof_hpc.assembly.stack import Stack


@dataclass(frozen=True)
class Ends:
    """The ends of B assemblies, padded to E ends on each side, M sites and N atoms behind a donor.

    Attributes:
        site: node sites in the frame of their block in Å, [B, M, 3].
        behind: the points behind them in the same frame in Å, [B, M, 3].
        site_block: their block, int64 [B, M].
        site_element: atomic number that a site asks for, int64 [B, M].
        donor: atoms of every donor, int64 [B, M, D]; `donor_weight` their weight in the mean, [B, M, D]. One atom,
            except in `coarse` ends.
        donor_block: its block, int64 [B, M].
        donor_element: its atomic number, int64 [B, M].
        back: atoms behind every donor, int64 [B, M, N]; `back_weight` their weight in the mean, [B, M, N].
        sites: True for real sites, [B, M].
        node_first, linker_first: first site (donor) of each end, int64 [B, E].
        node_block, linker_block: block of each end, int64 [B, E].
        node_pattern, linker_pattern: equal where two ends can meet, int64 [B, E]; -1 in padding.
        size: donors of each node end, int64 [B, E]; 0 in padding. `linker_size` likewise.
    """

    site: Tensor
    behind: Tensor
    site_block: Tensor
    site_element: Tensor
    donor: Tensor
    donor_weight: Tensor
    donor_block: Tensor
    donor_element: Tensor
    back: Tensor
    back_weight: Tensor
    sites: Tensor
    node_first: Tensor
    linker_first: Tensor
    node_block: Tensor
    linker_block: Tensor
    node_pattern: Tensor
    linker_pattern: Tensor
    size: Tensor
    linker_size: Tensor


def ends_of(fixed: Stack) -> Ends:
    """The ends of a stack's components, in its dtype and on its device."""
    different = {id(c): c for c in fixed.components}
    place = {key: k for k, key in enumerate(different)}
    rows = torch.tensor([place[id(c)] for c in fixed.components], dtype=torch.long)
    arrays = _arrays(list(different.values()))
    tensors = {name: torch.from_numpy(a)[rows].to(fixed.local.device) for name, a in arrays.items()}
    return Ends(**{name: t.to(fixed.local.dtype) if t.is_floating_point() else t for name, t in tensors.items()})


def _arrays(many: Sequence[Components]) -> dict[str, np.ndarray]:
    """The tensors of `Ends`, one row for each of the given components."""
    every = [e for c in many for e in (*c.node_ends, *c.linker_ends)]
    most = max((len(c.node_ends) for c in many), default=0)
    sites = max((sum(len(e.site.elements) for e in c.node_ends) for c in many), default=0)
    backs = max((len(b) for e in every for b in e.backs), default=1)
    patterns = {p: k for k, p in enumerate(sorted({e.pattern for e in every}))}
    b = len(many)
    by_end = ("node_first", "linker_first", "node_block", "linker_block", "size", "linker_size")
    by_site = ("site_block", "site_element", "donor_block", "donor_element")
    arrays: dict[str, np.ndarray] = {name: np.zeros((b, most), np.int64) for name in by_end}
    arrays |= {name: np.full((b, most), -1, np.int64) for name in ("node_pattern", "linker_pattern")}
    arrays |= {name: np.zeros((b, sites), np.int64) for name in by_site}
    arrays |= {name: np.zeros((b, sites, 3)) for name in ("site", "behind")}
    arrays |= {"donor": np.zeros((b, sites, 1), np.int64), "donor_weight": np.ones((b, sites, 1))}
    arrays |= {"back": np.zeros((b, sites, backs), np.int64), "back_weight": np.zeros((b, sites, backs))}
    arrays["sites"] = np.zeros((b, sites), bool)
    for i, c in enumerate(many):
        row = {name: a[i] for name, a in arrays.items()}
        _fill_nodes(row, c, patterns)
        _fill_linkers(row, c, patterns)
    return arrays


def _fill_nodes(row: dict[str, np.ndarray], c: Components, patterns: dict[tuple[int, ...], int]) -> None:
    """Write the node ends of one set of components."""
    first = 0
    for e, end in enumerate(c.node_ends):
        size = _fill_end(row, "node", e, first, end, patterns)
        at = slice(first, first + size)
        centre = c.blocks[end.block].local.mean(0)  # blocks are stacked about the mean of their atoms
        row["site"][at], row["behind"][at] = end.site.positions - centre, end.site.behind - centre
        row["site_block"][at], row["site_element"][at], row["sites"][at] = end.block, end.site.elements, True
        row["size"][e] = size
        first += size


def _fill_linkers(row: dict[str, np.ndarray], c: Components, patterns: dict[tuple[int, ...], int]) -> None:
    """Write the linker ends of one set of components."""
    first = 0
    for e, end in enumerate(c.linker_ends):
        size = _fill_end(row, "linker", e, first, end, patterns)
        base = int(c.first_atom[end.block])
        at = slice(first, first + size)
        row["donor"][at, 0], row["donor_block"][at] = end.donors + base, end.block
        row["donor_element"][at] = c.blocks[end.block].numbers[end.donors]
        for m, behind in enumerate(end.backs):
            row["back"][first + m, : len(behind)] = behind + base
            row["back_weight"][first + m, : len(behind)] = 1.0 / len(behind)
        row["linker_size"][e] = size
        first += size


def _fill_end(
    row: dict[str, np.ndarray], side: str, e: int, first: int, end: End, patterns: dict[tuple[int, ...], int]
) -> int:
    """Write what both sides share; returns the number of donors."""
    row[f"{side}_first"][e], row[f"{side}_block"][e] = first, end.block
    row[f"{side}_pattern"][e] = patterns[end.pattern]
    return len(end.site.elements)


def coarse(ends: Ends) -> Ends:
    """The same ends with one site each, in the middle of its donors: who meets whom without the order of the donors."""
    b, e = ends.size.shape
    most = int(ends.size.max()) if ends.size.numel() else 0
    offset = torch.arange(most, device=ends.size.device)
    within = offset < ends.size[..., None]  # [B, E, m]
    within_linker = offset < ends.linker_size[..., None]
    limit = max(ends.sites.shape[1] - 1, 0)
    at = (ends.node_first[..., None] + offset).clamp_max(limit)
    of = (ends.linker_first[..., None] + offset).clamp_max(limit)
    row = torch.arange(b, device=at.device)[:, None, None]
    share, share_linker = (w / w.sum(-1, keepdim=True).clamp_min(1) for w in (within, within_linker))
    share, share_linker = share.to(ends.site), share_linker.to(ends.site)
    weight = share_linker[..., None]
    number = torch.arange(e, device=at.device).expand(b, e)
    return Ends(
        site=(ends.site[row, at] * share[..., None]).sum(2),
        behind=(ends.behind[row, at] * share[..., None]).sum(2),
        site_block=ends.node_block,
        site_element=torch.zeros_like(number),
        donor=ends.donor[row, of].reshape(b, e, -1),
        donor_weight=(ends.donor_weight[row, of] * weight).reshape(b, e, -1),
        donor_block=ends.linker_block,
        donor_element=torch.zeros_like(number),
        back=ends.back[row, of].reshape(b, e, -1),
        back_weight=(ends.back_weight[row, of] * weight).reshape(b, e, -1),
        sites=ends.size > 0,
        node_first=number,
        linker_first=number,
        node_block=ends.node_block,
        linker_block=ends.linker_block,
        node_pattern=ends.node_pattern,
        linker_pattern=ends.linker_pattern,
        size=ends.size.clamp_max(1),
        linker_size=ends.linker_size.clamp_max(1),
    )
