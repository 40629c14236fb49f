"""Blocks on the vertices of one donor's net: which block where, which end on which edge, and the poses that follow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from promof_hpc.assembly.net_close import Placed
from promof_hpc.assembly.net_library import Donor
from promof_hpc.assembly.net_orient import BARRED, orientations, rotations_for
from promof_hpc.assembly.net_target import Group, Pattern, Target
from promof_hpc.chem.blocks import Kind

IMPOSSIBLE = 1e6
AT_ONCE = 128  # blocks on vertices oriented together
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


@dataclass(frozen=True)
class _Draft:
    """A mapping with slots for the linkers: vertex and state of every block, linker end and pattern of every edge."""

    vertex: np.ndarray
    state: np.ndarray
    linker_end: np.ndarray
    patterns: np.ndarray


# (first block of a group, vertex), and the numbers of the patterns asked of its edges, none where it is free
Key = tuple[tuple[int, int], tuple[int, ...]]


class _Search:
    """Draws of vertex mappings and slots on one donor's net of one hand; patterns are numbered."""

    def __init__(self, target: Target, donor: Donor, hand: float, generator: np.random.Generator) -> None:
        self.target, self.donor, self.hand, self.generator = target, donor, hand, generator
        self.vertices = _vertices(donor, hand)
        self.group_of = {k: g for g in target.groups for k in g.blocks}
        self.blocks = {kind: sorted(v for v, g in self.group_of.items() if g.kind is kind) for kind in Kind}
        number = {p: k for k, p in enumerate(sorted({*target.node_patterns, *target.linker_patterns, *donor.elements}))}
        self.node_patterns, self.linker_patterns, self.edge_patterns = (
            np.array([number[p] for p in patterns], int)
            for patterns in (target.node_patterns, target.linker_patterns, donor.elements)
        )
        self.fits = self._fits(True)
        self.by_size = bool(self.fits.any(0).all() and self.fits.any(1).all())
        if not self.by_size:
            self.fits = self._fits(False)
        self.table = _penalties(list(number), self.by_size)
        self._choices: dict[Key, _Choices] = {}

    def run(self, draws: int) -> list[_Proposal]:
        """Distinct proposals."""
        if not (self.fits.any(0).all() and self.fits.any(1).all()):
            return []
        self._orient((self._key(v, w), ()) for v, w in np.argwhere(self.fits).tolist())
        drafts = [(NOISE * k, draft) for k in range(draws) if (draft := self._draft(NOISE * k)) is not None]
        self._orient(key for _, draft in drafts for key in self._asked(draft).values())
        found: dict[bytes, _Proposal] = {}
        for noise, draft in drafts:
            proposal = self._completed(draft, noise)
            if proposal is not None:
                found.setdefault(proposal.node_end.tobytes() + proposal.linker_end.tobytes(), proposal)
        return list(found.values())

    def _fits(self, by_size: bool) -> np.ndarray:
        """Which block may stand on which vertex, bool [K, K]."""
        target, donor = self.target, self.donor
        fits = np.zeros((len(donor.kinds), len(donor.kinds)), bool)
        for w, vertex in enumerate(self.vertices):
            sizes = tuple(sorted(len(donor.elements[e]) if by_size else 1 for e in vertex.edges))
            for v, group in self.group_of.items():
                fits[v, w] = target.label(v, group.kind, by_size) == (int(vertex.kind), sizes)
        return fits

    def _draft(self, noise: float) -> _Draft | None:
        """One mapping of blocks onto vertices, and slots for the linkers; None where these offer no node its own."""
        cost = np.full(self.fits.shape, IMPOSSIBLE)
        for v, w in np.argwhere(self.fits).tolist():
            choices = self._choices[self._key(v, w), ()]
            if len(choices.cost):
                cost[v, w] = choices.cost[0]
        cost = cost + (noise + 1e-6) * self.generator.exponential(size=cost.shape)
        blocks, vertex = linear_sum_assignment(cost)
        if cost[blocks, vertex].max() >= IMPOSSIBLE:
            return None
        ways = {v: self._choices[self._key(v, int(vertex[v])), ()] for v in self.blocks[Kind.ORGANIC]}
        chosen = self._agreed(vertex, ways, noise)
        if chosen is None:
            return None
        state, ends = np.zeros(len(blocks), int), np.zeros(len(self.donor.edges), int)
        for v, best in chosen.items():
            state[v], ends[ways[v].edges[best]] = ways[v].state[best], self.target.ends_of[v]
        return _Draft(vertex, state, ends, self.linker_patterns[ends])

    def _agreed(self, vertex: np.ndarray, ways: dict[int, _Choices], noise: float) -> dict[int, int] | None:
        """A choice for every linker so that every node is offered the patterns that it has, cheap ones first.

        Depth first, given up after `MOST_STEPS`.
        """
        room: Counter[tuple[int, int]] = Counter()
        for v in self.blocks[Kind.METAL]:
            room.update((int(vertex[v]), int(p)) for p in self.node_patterns[self.target.ends_of[v]])
        linkers = sorted(ways, key=lambda v: -len(self.target.ends_of[v]))
        orders = [self._noisy_order(ways[v], noise) for v in linkers]
        chosen: list[int] = []
        steps = 0

        def choose(number: int) -> bool:
            nonlocal steps
            if number == len(linkers):
                return True
            v = linkers[number]
            patterns = self.linker_patterns[self.target.ends_of[v]].tolist()
            for best in orders[number]:
                steps += 1
                if steps > MOST_STEPS:
                    return False
                offered = Counter(zip(self.donor.edges[ways[v].edges[best], 0].tolist(), patterns, strict=True))
                if all(room[place] >= n for place, n in offered.items()):
                    room.subtract(offered)
                    chosen.append(best)
                    if choose(number + 1):
                        return True
                    chosen.pop()
                    room.update(offered)
            return False

        return dict(zip(linkers, chosen, strict=True)) if choose(0) else None

    def _asked(self, draft: _Draft) -> dict[int, Key]:
        """For every node of a draft, the choices that it needs: those for the patterns offered to it."""
        wanted = {}
        for v in self.blocks[Kind.METAL]:
            w = int(draft.vertex[v])
            wanted[v] = self._key(v, w), tuple(draft.patterns[self.vertices[w].edges].tolist())
        return wanted

    def _completed(self, draft: _Draft, noise: float) -> _Proposal | None:
        """A draft with slots for the nodes; None where one has none."""
        ends = np.zeros(len(self.donor.edges), int)
        for v, key in self._asked(draft).items():
            choices = self._choices[key]
            if not len(choices.cost):
                return None
            ends[choices.edges[self._noisy_order(choices, noise)[0]]] = self.target.ends_of[v]
        return _Proposal(self.hand, draft.vertex, draft.state, ends, draft.linker_end)

    def _noisy_order(self, choices: _Choices, noise: float) -> list[int]:
        cost = choices.cost + noise * self.generator.exponential(size=len(choices.cost))
        order: list[int] = np.argsort(cost, kind="stable").tolist()
        return order

    def _key(self, block: int, vertex: int) -> tuple[int, int]:
        return self.group_of[block].blocks[0], vertex

    def _orient(self, keys: Iterable[Key]) -> None:
        """Find the choices of all keys that are not known yet, those with equally many ends together."""
        by_ends: dict[int, list[Key]] = defaultdict(list)
        for key in dict.fromkeys(keys):
            if key not in self._choices:
                by_ends[len(self.vertices[key[0][1]].edges)].append(key)
        for some in by_ends.values():
            for first in range(0, len(some), AT_ONCE):
                self._orient_some(some[first : first + AT_ONCE])

    def _orient_some(self, keys: list[Key]) -> None:
        """The same for keys with equally many ends."""
        problems = [self._problem(key) for key in keys]
        ends, edges, penalty = (np.concatenate([p[i] for p in problems]) for i in range(3))
        found = orientations(ends, edges, penalty, KEPT, self.generator)
        row = 0
        for key in keys:
            group, vertex = self.group_of[key[0][0]], self.vertices[key[0][1]]
            span = slice(row, row + len(group.states))
            row += len(group.states)
            cost, slots = found.cost[span].ravel(), found.slots[span].reshape(-1, found.slots.shape[-1])
            state = np.repeat(group.states, found.cost.shape[1])
            best = self._varied(group, cost, slots)
            self._choices[key] = _Choices(cost[best], vertex.edges[slots[best]], state[best])

    def _problem(self, key: Key) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ends [S, k, 2, 3], edges and penalties [S, k, k] of a group in its S states on a vertex."""
        group, vertex, asked = self.group_of[key[0][0]], self.vertices[key[0][1]], key[1]
        if group.kind is Kind.METAL:
            ends, patterns = self.target.node_directions[None, group.ends], self.node_patterns
        else:
            ends, patterns = self.target.linker_directions[list(group.states)][:, group.ends], self.linker_patterns
        own = patterns[group.ends][:, None]
        before = self.edge_patterns[vertex.edges][None]
        penalty = np.where(own == np.array(asked)[None], 0.0, BARRED) if asked else self.table[own, before]
        return (
            ends,
            np.broadcast_to(vertex.directions, ends.shape),
            np.broadcast_to(penalty, (len(ends), *penalty.shape)),
        )

    def _varied(self, group: Group, cost: np.ndarray, slots: np.ndarray) -> list[int]:
        """The cheapest answers, but few with the same division of patterns among the edges."""
        patterns = (self.node_patterns if group.kind is Kind.METAL else self.linker_patterns)[group.ends]
        division = ((1 + patterns) * (1 + len(self.table)) ** slots.astype(float)).sum(1)
        taken: Counter[float] = Counter()
        best = []
        for k in np.argsort(cost, kind="stable")[: np.isfinite(cost).sum()].tolist():
            taken[division[k]] += 1
            if taken[division[k]] <= KEPT_OF_ONE:
                best.append(k)
        return best


def _penalties(patterns: Sequence[Pattern], by_size: bool) -> np.ndarray:
    """Cost of an end of each pattern (row) on an edge that had another in the donor (column), [p, p]."""
    other_size = BARRED if by_size else OTHER_SIZE
    return np.array(
        [[0.0 if a == b else OTHER_ELEMENTS if len(a) == len(b) else other_size for b in patterns] for a in patterns]
    )


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
