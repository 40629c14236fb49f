"""Starts for an assembly: a net taken from a known MOF of the same signature, the blocks put on its vertices.

Candidates are the nets that MOFs of the same signature and number of blocks have. On each, blocks are mapped onto
vertices by how well their contacts point along the edges, ends onto edges likewise, and the contacts are closed with
rigid blocks; what misfit is left ranks the proposals. Nets take turns, so that none is starved by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from promof_hpc.assembly.components import Components, Solution
from promof_hpc.assembly.net_cells import in_cells_of
from promof_hpc.assembly.net_close import Placed, close
from promof_hpc.assembly.net_library import Donor, NetLibrary
from promof_hpc.assembly.net_place import propose
from promof_hpc.assembly.net_target import Target, target_of
from promof_hpc.assembly.sites import worst_bite
from promof_hpc.chem.blocks import Kind
from promof_hpc.geometry.topology import Level

STATES = 6  # torsion states in which linkers are oriented
MOST_NETS = 10
MOST_DONORS, MOST_CELLS = 4, 8  # of each net, and cells in which they are described
DRAWS = 600  # over all donors and both hands
DRAWS_OF_ONE = (8, 48)  # at least and at most for one donor and hand
QUICK_TURNS, LONG_TURNS = 3, 12
LONG_FACTOR = 2  # proposals closed to the end for each start that is asked for
LEAST_VOLUME_ANG3 = 11.0  # per atom, while contacts are closed
SAME_ENERGY = 1e-4  # relative; symmetry makes many proposals the same


@dataclass(frozen=True)
class NetStart:
    """One way to put components together, before any finisher.

    Attributes:
        solution: poses, and who meets whom at which image.
        misfit: root mean square distance in Å of what should meet (donors on sites, and what lies behind them).
        net_key: the net it was taken from.
        donor: the MOF that lent the net.
    """

    solution: Solution
    misfit: float
    net_key: str
    donor: str


def net_starts(
    components: Components,
    library: NetLibrary,
    count: int,
    generator: np.random.Generator,
    *,
    without_skeletons: frozenset[str] = frozenset(),
    preference: Callable[[NetStart], float] | None = None,
) -> list[NetStart]:
    """The most promising starts, at most `count`; none where no known net has the signature.

    Args:
        without_skeletons: donors with any of these linker skeletons are left out, to assess on held-out linkers.
        preference: starts that it values higher come earlier, among the `LONG_FACTOR` x `count` least misfits.
    """
    nets = candidate_nets(components, library, without_skeletons)
    if not nets or count < 1:
        return []
    target = target_of(components, STATES, generator)
    draws = int(np.clip(DRAWS / (2 * sum(map(len, nets))), *DRAWS_OF_ONE))
    quick = [_on_net(target, donors, draws, generator) for donors in nets]
    chosen = _interleaved([f.misfit for f in quick], LONG_FACTOR * count)
    found = [_closed(target, f, [row for k, row in chosen if k == net], LONG_TURNS) for net, f in enumerate(quick)]
    wanted = count if preference is None else LONG_FACTOR * count
    starts = [_start(target, found[net], row) for net, row in _interleaved([f.misfit for f in found], wanted)]
    if preference is not None:
        starts.sort(key=preference, reverse=True)
    return starts[:count]


def candidate_nets(
    components: Components, library: NetLibrary, without_skeletons: frozenset[str] = frozenset()
) -> list[list[Donor]]:
    """Donors of every net that the components may form, the likeliest nets and donors first.

    Nets of the same contact sizes come before nets that only have the same numbers of contacts. Donors with other
    numbers of formula units are described in a larger or smaller cell.
    """
    found: list[list[Donor]] = []
    known: set[str] = set()
    for level in ("size", "count"):
        nets = _nets(components, library, level, without_skeletons, known)
        found += nets
        known |= {donors[0].net_key for donors in nets}
    return found[:MOST_NETS]


def _nets(
    components: Components, library: NetLibrary, level: Level, without_skeletons: frozenset[str], known: set[str]
) -> list[list[Donor]]:
    """Donors by net for one level of signature, without the nets `known`."""
    signature, blocks = components.signature(level), len(components.blocks)
    scored: dict[str, list[tuple[float, str, Donor]]] = {}
    for donor in library.donors:
        own = donor.signature if level == "size" else donor.count_signature
        if own == signature and donor.net_key not in known and not without_skeletons & set(donor.skeletons):
            score = _unlikeness(components, donor) + abs(float(np.log(blocks / len(donor.kinds))))
            scored.setdefault(donor.net_key, []).append((score, donor.name, donor))
    ranked = sorted((-sum(np.exp(-score) for score, *_ in found), key) for key, found in scored.items())
    nets: list[list[Donor]] = []
    for _, key in ranked:
        described = (in_cells_of(d, blocks) for *_, d in sorted(scored[key], key=lambda x: x[:2]))
        some = list(islice((d for cells in islice(filter(None, described), MOST_DONORS) for d in cells), MOST_CELLS))
        nets += [some] if some else []
        if len(nets) == MOST_NETS:
            break
    return nets


def bite_ang(components: Components) -> float:
    """How badly linkers bite the nodes, in Å: `sites.worst_bite` over all ends.

    Beyond `sites.FITTING_BITE_ANG` no pair of a node and a linker that were never seen together was ever put together.
    """
    return worst_bite([e.site for e in components.node_ends], [e.site for e in components.linker_ends])


def _unlikeness(components: Components, donor: Donor) -> float:
    """Small for donors with the same nodes and about the same size."""
    nodes = {b.key for b in components.blocks if b.kind is Kind.METAL}
    ends = (*components.node_ends, *components.linker_ends)
    reach = float(np.mean([np.linalg.norm(e.site.positions.mean(0)) for e in ends]))
    return -3.0 * (nodes == set(donor.node_keys)) + float(abs(np.log(reach / max(float(donor.lengths.mean()), 1e-6))))


@dataclass(frozen=True)
class _Found:
    """Proposals on one net, the least misfit first: poses [N], misfit in Å [N], donor of each."""

    placed: Placed
    misfit: np.ndarray
    donors: Sequence[Donor]


def _on_net(target: Target, donors: Sequence[Donor], draws: int, generator: np.random.Generator) -> _Found:
    """Proposals on the donors of one net, roughly closed."""
    parts = [propose(target, donor, draws, generator) for donor in donors]
    placed = Placed(**{name: np.concatenate([vars(p)[name] for p in parts]) for name in vars(parts[0])})
    owners = [donor for donor, part in zip(donors, parts, strict=True) for _ in part.cells]
    return _closed(target, _Found(placed, np.zeros(len(owners)), owners), range(len(owners)), QUICK_TURNS)


def _closed(target: Target, found: _Found, rows: Sequence[int], turns: int) -> _Found:
    """Some of the proposals with their contacts closed further, the distinct ones sorted by misfit."""
    placed, energy = close(
        target.points, found.placed.take(np.array(rows, int)), turns, LEAST_VOLUME_ANG3 * target.atoms
    )
    right_handed = np.flatnonzero(np.linalg.det(placed.cells) > 0.0)
    order = right_handed[np.argsort(energy[right_handed], kind="stable")]
    order = order[_new(energy[order])]
    misfit = np.sqrt(energy[order] / (2 * target.points.sizes.sum()))
    return _Found(placed.take(order), misfit, [found.donors[rows[k]] for k in order.tolist()])


def _new(energy: np.ndarray) -> np.ndarray:
    """True where a sorted energy is not that of the one before."""
    new = np.ones(len(energy), bool)
    new[1:] = np.diff(energy) > SAME_ENERGY * energy[1:] + 1e-9
    return new


def _interleaved(misfits: Sequence[np.ndarray], count: int) -> list[tuple[int, int]]:
    """(net, proposal) in the order of trial: by rank within its net, misfit, and rank of the net."""
    least = min((float(m.min()) for m in misfits if len(m)), default=0.0)
    entries = [
        ((row + 1) * np.exp(2.0 * (misfit[row] - least)) * (1.0 + 0.3 * net), net, row)
        for net, misfit in enumerate(misfits)
        for row in range(len(misfit))
    ]
    return [(net, row) for _, net, row in sorted(entries)[:count]]


def _start(target: Target, found: _Found, row: int) -> NetStart:
    placed, donor = found.placed, found.donors[row]
    state = placed.state[row, target.torsion_block]
    solution = Solution(
        cell=placed.cells[row],
        rotations=placed.rotations[row],
        centroids=placed.centroids[row],
        angles=target.angles[state, np.arange(len(state))],
        partner=placed.partner[row],
        shifts=placed.shifts[row],
    )
    return NetStart(solution, float(found.misfit[row]), donor.net_key, donor.name)
