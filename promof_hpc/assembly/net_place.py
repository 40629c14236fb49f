"""Blocks on the vertices of one donor's net: which block where, which end on which edge, and the poses that follow."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from promof_hpc.assembly.net_close import Placed
from promof_hpc.assembly.net_library import Donor
from promof_hpc.assembly.net_orient import BARRED, orientations, rotations_for
from promof_hpc.assembly.net_target import Group, Pattern, Target
from promof_hpc.chem.blocks import Kind

IMPOSSIBLE = 1e6
KEPT = 24  # orientations of a block on a vertex, in each torsion state
KEPT_OF_ONE = 6  # of them with one division of the patterns among the edges
MOST_STEPS = 400  # of a search for choices that agree
OTHER_SIZE, OTHER_ELEMENTS = 0.3, 0.02  # cost of an end on an edge that had another pattern in the donor
NOISE = 0.0125  # mean of the exponential noise of the second draw; it grows from draw to draw
SPIN = 0.02  # jitter of the covariance of an end: draws what no direction decides


@dataclass(frozen=True)
class _Vertex:
    """A vertex of the donor: its label and the edges that end there, as numbers and directions [k, 2, 3]."""

    kind: Kind
    edges: np.ndarray
    directions: np.ndarray


@dataclass(frozen=True)
class _Choices:
    """Ways to put one block on one vertex, the cheapest first: cost [n], edge of each end [n, k], state [n]."""

    cost: np.ndarray
    edges: np.ndarray
    state: np.ndarray


def propose(target: Target, donor: Donor, draws: int, generator: np.random.Generator) -> Placed:
    """Distinct proposals on a donor's net and on its mirror image, at most 2 x `draws`.

    Vertices are mapped by the least total misfit of directions (Hungarian), ends take the best orientations; from the
    second draw on both are chosen under noise. Poses are the donor's, scaled by the reach of the contacts.
    """
    found = [proposal for hand in (1.0, -1.0) for proposal in _Search(target, donor, hand, generator).run(draws)]
    return _placed(target, donor, found, generator)


@dataclass(frozen=True)
class _Proposal:
    """Discrete choices: vertex and state of every block, node end and linker end of every edge, hand of the net."""

    hand: float
    vertex: np.ndarray
    state: np.ndarray
    node_end: np.ndarray
    linker_end: np.ndarray


class _Search:
    """Draws of vertex mappings and slots on one donor's net of one hand."""

    def __init__(self, target: Target, donor: Donor, hand: float, generator: np.random.Generator) -> None:
        self.target, self.donor, self.hand, self.generator = target, donor, hand, generator
        self.by_size = all(
            sorted(a) == sorted(b) for a, b in ((map(len, target.node_patterns), map(len, donor.elements)),)
        )
        self.vertices = _vertices(donor, hand)
        self.group_of = {k: g for g in target.groups for k in g.blocks}
        self.fits = self._fits()
        self._choices: dict[tuple[int, int, tuple[Pattern, ...] | None], _Choices] = {}

    def run(self, draws: int) -> list[_Proposal]:
        """Distinct proposals."""
        if not self.fits.any(0).all() or not self.fits.any(1).all():
            return []
        found: dict[bytes, _Proposal] = {}
        for draw in range(draws):
            proposal = self._draw(NOISE * draw)
            if proposal is not None:
                found.setdefault(proposal.node_end.tobytes() + proposal.linker_end.tobytes(), proposal)
        return list(found.values())

    def _fits(self) -> np.ndarray:
        """Which block may stand on which vertex, bool [K, K]."""
        target, donor = self.target, self.donor
        fits = np.zeros((len(donor.kinds), len(donor.kinds)), bool)
        for w, vertex in enumerate(self.vertices):
            sizes = tuple(sorted(len(donor.elements[e]) if self.by_size else 1 for e in vertex.edges))
            for v, group in self.group_of.items():
                fits[v, w] = target.label(v, group.kind, self.by_size) == (int(vertex.kind), sizes)
        return fits

    def _draw(self, noise: float) -> _Proposal | None:
        """One mapping of blocks onto vertices with slots; None where ends and edges cannot be brought to agree."""
        cost = np.full(self.fits.shape, IMPOSSIBLE)
        for v, w in np.argwhere(self.fits).tolist():
            choices = self._ways(v, w, None)
            if len(choices.cost):
                cost[v, w] = choices.cost[0]
        cost = cost + (noise + 1e-6) * self.generator.exponential(size=cost.shape)
        blocks, vertex = linear_sum_assignment(cost)
        if cost[blocks, vertex].max() >= IMPOSSIBLE:
            return None
        state = np.zeros(len(blocks), int)
        ends = {kind: np.zeros(len(self.donor.edges), int) for kind in Kind}
        patterns: list[Pattern] = [()] * len(self.donor.edges)
        linkers = self._linkers(vertex, noise)
        if not linkers:
            return None
        for v, (choices, best) in linkers.items():
            state[v], ends[Kind.ORGANIC][choices.edges[best]] = choices.state[best], self.target.ends_of[v]
            for e, h in zip(choices.edges[best].tolist(), self.target.ends_of[v].tolist(), strict=True):
                patterns[e] = self.target.linker_patterns[h]
        for v in self._of_kind(Kind.METAL):
            at = self.vertices[int(vertex[v])]
            choices = self._ways(v, int(vertex[v]), tuple(patterns[e] for e in at.edges.tolist()))
            if not len(choices.cost):
                return None
            best = self._noisy_order(choices, noise)[0]
            ends[Kind.METAL][choices.edges[best]] = self.target.ends_of[v]
        return _Proposal(self.hand, vertex, state, ends[Kind.METAL], ends[Kind.ORGANIC])

    def _linkers(self, vertex: np.ndarray, noise: float) -> dict[int, tuple[_Choices, int]]:
        """A choice for every linker so that every node is offered the patterns that it has, cheap ones first.

        Depth first with a limit on steps; empty where none is found.
        """
        room = {int(vertex[v]): Counter(self.target.node_patterns[g] for g in self.target.ends_of[v])
                for v in self._of_kind(Kind.METAL)}  # fmt: skip
        linkers = sorted(self._of_kind(Kind.ORGANIC), key=lambda v: -len(self.target.ends_of[v]))
        ways = [self._ways(v, int(vertex[v]), None) for v in linkers]
        orders = [self._noisy_order(w, noise) for w in ways]
        chosen: list[int] = []
        steps = 0

        def offers(number: int, best: int) -> list[tuple[int, Pattern]]:
            nodes = self.donor.edges[ways[number].edges[best], 0].tolist()
            patterns = (self.target.linker_patterns[h] for h in self.target.ends_of[linkers[number]])
            return list(zip(nodes, patterns, strict=True))

        def choose(number: int) -> bool:
            nonlocal steps
            if number == len(linkers):
                return True
            for best in orders[number]:
                steps += 1
                if steps > MOST_STEPS:
                    return False
                offered = Counter(offers(number, best))
                if all(room[node][pattern] >= n for (node, pattern), n in offered.items()):
                    for (node, pattern), n in offered.items():
                        room[node][pattern] -= n
                    chosen.append(best)
                    if choose(number + 1):
                        return True
                    chosen.pop()
                    for (node, pattern), n in offered.items():
                        room[node][pattern] += n
            return False

        if not choose(0):
            return {}
        return {v: (w, best) for v, w, best in zip(linkers, ways, chosen, strict=True)}

    def _of_kind(self, kind: Kind) -> list[int]:
        return sorted(v for v, group in self.group_of.items() if group.kind is kind)

    def _noisy_order(self, choices: _Choices, noise: float) -> list[int]:
        order: list[int] = np.argsort(
            choices.cost + noise * self.generator.exponential(size=len(choices.cost))
        ).tolist()
        return order

    def _ways(self, block: int, vertex: int, asked: tuple[Pattern, ...] | None) -> _Choices:
        """Ways to put a block on a vertex; `asked` are the patterns that its edges need, where they are known."""
        group = self.group_of[block]
        key = (group.blocks[0], vertex, asked)
        if key not in self._choices:
            self._choices[key] = self._orient(group, self.vertices[vertex], asked)
        return self._choices[key]

    def _orient(self, group: Group, vertex: _Vertex, asked: tuple[Pattern, ...] | None) -> _Choices:
        target, n = self.target, len(group.states)
        if group.kind is Kind.METAL:
            ends, patterns = target.node_directions[None, group.ends], target.node_patterns
        else:
            ends, patterns = target.linker_directions[list(group.states)][:, group.ends], target.linker_patterns
        penalty = np.array([[self._penalty(patterns[h], e, i, asked) for i, e in enumerate(vertex.edges.tolist())]
                            for h in group.ends.tolist()])  # fmt: skip
        edges = np.broadcast_to(vertex.directions, ends.shape)
        found = orientations(ends, edges, np.broadcast_to(penalty, (n, *penalty.shape)), KEPT, self.generator)
        cost, slots = found.cost.ravel(), found.slots.reshape(-1, found.slots.shape[-1])
        state = np.repeat(group.states, found.cost.shape[1])
        order = np.argsort(cost, kind="stable")
        taken: Counter[tuple[tuple[int, Pattern], ...]] = Counter()
        best = []
        for k in order[np.isfinite(cost[order])].tolist():
            division = tuple(sorted(zip(slots[k].tolist(), (patterns[h] for h in group.ends), strict=True)))
            taken[division] += 1
            if taken[division] <= KEPT_OF_ONE:
                best.append(k)
        return _Choices(cost[best], vertex.edges[slots[best]], state[best])

    def _penalty(self, pattern: Pattern, edge: int, place: int, asked: tuple[Pattern, ...] | None) -> float:
        """Cost of an end on an edge: must fit what is asked, should be as in the donor."""
        if asked is not None:
            return 0.0 if pattern == asked[place] else BARRED
        before = self.donor.elements[edge]
        if len(pattern) != len(before):
            return BARRED if self.by_size else OTHER_SIZE
        return 0.0 if pattern == before else OTHER_ELEMENTS


def _vertices(donor: Donor, hand: float) -> list[_Vertex]:
    ends: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, (p, q, *_) in enumerate(donor.edges.tolist()):
        ends[p].append((number, 0))
        ends[q].append((number, 1))
    return [
        _Vertex(
            Kind(int(kind)),
            np.array([e for e, _ in ends[k]], int),
            hand * np.array([donor.directions[e, side] for e, side in ends[k]]).reshape(-1, 2, 3),
        )
        for k, kind in enumerate(donor.kinds)
    ]


def _placed(target: Target, donor: Donor, found: list[_Proposal], generator: np.random.Generator) -> Placed:
    """Poses of proposals: the donor's embedding scaled, blocks turned along the edges."""
    n, e, k = len(found), len(donor.edges), len(donor.kinds)
    if not n:
        return Placed(
            np.zeros((0, e), int), np.zeros((0, e, 3), int), np.zeros((0, k), int), np.zeros((0, 3, 3)),
            np.zeros((0, k, 3, 3)), np.zeros((0, k, 3)),
        )  # fmt: skip
    hand = np.array([p.hand for p in found])
    vertex, state, node_end, linker_end = (
        np.array([getattr(p, name) for p in found]) for name in ("vertex", "state", "node_end", "linker_end")
    )
    rows = np.arange(n)[:, None]
    partner, shifts = np.zeros((n, e), int), np.zeros((n, e, 3), int)
    partner[rows, node_end] = linker_end
    shifts[rows, node_end] = hand[:, None, None] * donor.edges[None, :, 2:]
    linker_state = state[rows, target.points.linker_block[linker_end]]
    reach = _reach(target.points.node, target.points.node_elements)[node_end].sum(1)
    linker_reach = _reach(target.points.linker, target.points.linker_elements)
    scale = (reach + linker_reach[linker_state, linker_end].sum(1)) / max(float(donor.lengths.sum()), 1e-6)
    return Placed(
        partner=partner,
        shifts=shifts,
        state=state,
        cells=donor.cell * scale[:, None, None],
        rotations=_rotations(target, donor, hand, (node_end, linker_end, linker_state), generator),
        centroids=hand[:, None, None] * donor.centroids[vertex] * scale[:, None, None],
    )


def _rotations(
    target: Target,
    donor: Donor,
    hand: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray, np.ndarray],
    generator: np.random.Generator,
) -> np.ndarray:
    """Rotation of every block of every proposal, [N, K, 3, 3], from all ends and edges at once."""
    node_end, linker_end, linker_state = ends
    n, k = len(hand), target.points.blocks
    rotations = np.zeros((n, k, 3, 3))
    sides = (
        (target.points.node_block[node_end], target.node_directions[node_end]),
        (target.points.linker_block[linker_end], target.linker_directions[linker_state, linker_end]),
    )
    for side, (block, directions) in enumerate(sides):
        order = np.argsort(block, axis=1, kind="stable")
        rows = np.arange(n)[:, None]
        own = directions[rows, order]
        edges = (hand[:, None, None, None] * donor.directions[None, :, side])[rows, order]
        which, first = np.unique(np.sort(block[0]), return_index=True)
        bounds = [*first.tolist(), block.shape[1]]
        for number, b in enumerate(which.tolist()):
            span = slice(bounds[number], bounds[number + 1])
            jitter = SPIN * (bounds[number + 1] - bounds[number]) * generator.normal(size=(n, 3, 3))
            rotations[:, b] = rotations_for(own[:, span], edges[:, span], jitter)
    return rotations


def _reach(points: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Distance in Å from the centroid to the middle of the sites of every end, [..., E]."""
    count = (elements > 0).sum(-1)[:, None]
    reach: np.ndarray = np.linalg.norm(points[..., 0, :, :].sum(-2) / count, axis=-1)
    return reach
