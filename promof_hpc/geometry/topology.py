"""Nets of a periodic graph: pieces, dimensionality, contraction, coordination sequences, and keys that name a net.

A quotient graph has one vertex per block of the cell and edges `(p, q, shift)`: vertex p of the home cell is
linked with vertex q of the cell at `shift`. Several edges may join the same two vertices.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from promof_hpc.chem.blocks import Decomposition

Shift = tuple[int, int, int]
Edge = tuple[int, int, Shift]
Level = Literal["size", "count"]
Neighbours = dict[int, list[tuple[int, Shift, int]]]  # vertex -> (neighbour, shift, edge number)

HOME: Shift = (0, 0, 0)
KEY_SHELLS = 5  # coordination shells that go into a net key
KEY_ROUNDS = 3  # rounds of neighbour refinement
KEY_VERTICES = 1500  # a key stops growing shells beyond so many vertices


@dataclass(frozen=True)
class Piece:
    """One connected component of a quotient graph.

    Attributes:
        vertices: its vertices in the order of discovery, int32 [k].
        images: cell image of each vertex that puts the piece together, int32 [k, 3].
        cycles: basis of the translations that map the piece onto itself, int64 [r, 3], echelon form.
    """

    vertices: np.ndarray
    images: np.ndarray
    cycles: np.ndarray

    @property
    def dimensionality(self) -> int:
        """Number of directions in which the piece repeats: 0 molecule, 1 chain, 2 layer, 3 framework."""
        return len(self.cycles)

    @property
    def nets(self) -> int:
        """Separate nets of a 3-periodic piece that share its vertices by translation alone; 1 otherwise.

        The translations that close cycles may be a sublattice of the cell's: its index counts the nets.
        """
        if self.dimensionality < 3:
            return 1
        return int(abs(np.diag(self.cycles).prod()))  # echelon form: the determinant


def reverse(shift: Sequence[int]) -> Shift:
    """The shift seen from the other end of an edge."""
    return (-int(shift[0]), -int(shift[1]), -int(shift[2]))


def oriented(p: int, q: int, shift: Sequence[int]) -> Edge:
    """The edge written with p <= q, and with a positive shift where it joins a vertex to its own image."""
    s = (int(shift[0]), int(shift[1]), int(shift[2]))
    if p > q or (p == q and s < HOME):
        return q, p, reverse(s)
    return p, q, s


def neighbours(vertices: Iterable[int], edges: Sequence[Edge]) -> Neighbours:
    """For every vertex the (neighbour, shift, edge number) of each edge end."""
    table: Neighbours = {v: [] for v in vertices}
    for number, (p, q, s) in enumerate(edges):
        table[p].append((q, s, number))
        table[q].append((p, reverse(s), number))
    return table


def pieces(vertices: Iterable[int], edges: Sequence[Edge]) -> list[Piece]:
    """Connected components with the images that put them together and the translations they repeat by."""
    vertices = list(vertices)
    table = neighbours(vertices, edges)
    image: dict[int, Shift] = {}
    found = []
    for start in vertices:
        if start in image:
            continue
        image[start] = HOME
        members, closing = [start], set()
        for u in members:  # grows while it is read: breadth first
            a, b, c = image[u]
            for w, (x, y, z), _ in table[u]:
                there = (a + x, b + y, c + z)
                known = image.setdefault(w, there)
                if known is there:
                    members.append(w)
                elif known != there:
                    closing.add((there[0] - known[0], there[1] - known[1], there[2] - known[2]))
        found.append(
            Piece(
                np.array(members, np.int32),
                np.array([image[m] for m in members], np.int32),
                _lattice_basis(closing),
            )
        )
    return found


def _lattice_basis(vectors: Iterable[Shift]) -> np.ndarray:
    """Echelon basis [r, 3] of the integer lattice that `vectors` span (Euclid's algorithm, column by column)."""
    rows = [list(v) for v in vectors]
    basis = []
    for column in range(3):
        active = [row for row in rows if row[column]]
        while len(active) > 1:
            active.sort(key=lambda row: abs(row[column]))
            pivot = active[0]
            for row in active[1:]:
                quotient = row[column] // pivot[column]
                row[:] = [r - quotient * p for r, p in zip(row, pivot, strict=True)]
            active = [row for row in active if row[column]]
        if active:
            basis.append(active[0])
            rows = [row for row in rows if row is not active[0]]
    return np.array(basis, np.int64).reshape(-1, 3)


def dimensionality(count: int, edges: Sequence[Edge]) -> int:
    """Largest number of directions in which one net of the quotient graph on `count` vertices is periodic."""
    return max((piece.dimensionality for piece in pieces(range(count), edges)), default=0)


def net_count(count: int, edges: Sequence[Edge]) -> int:
    """Number of separate nets (interpenetrated nets that translation maps onto one another included)."""
    return sum(piece.nets for piece in pieces(range(count), edges))


def cycle_rank(count: int, edges: Sequence[Edge]) -> int:
    """Independent cycles of the quotient graph: edges - vertices + components."""
    return len(edges) - count + len(pieces(range(count), edges))


def contracted(vertices: Iterable[int], edges: Iterable[Edge]) -> tuple[list[int], list[Edge]]:
    """The net without its unbranched parts: dead ends are dropped, two-connected vertices become edges.

    Parallel edges with one shift are merged. The last vertex of a cycle is kept.
    """
    alive = set(vertices)
    kept = {oriented(*edge) for edge in edges}
    while len(alive) > 1:
        table = neighbours(alive, list(kept))
        chosen = next((v for v in sorted(alive) if len(table[v]) <= 1), None)
        if chosen is None:
            chosen = next((v for v in sorted(alive) if len(table[v]) == 2 and table[v][0][0] != v), None)
        if chosen is None:
            break
        ends = table[chosen]
        kept = {edge for edge in kept if chosen not in edge[:2]}
        alive.discard(chosen)
        if len(ends) == 2:
            (p, s, _), (q, t, _) = ends
            joined = oriented(p, q, (t[0] - s[0], t[1] - s[1], t[2] - s[2]))
            if p != q or joined[2] != HOME:
                kept.add(joined)
    return sorted(alive), sorted(kept)


def coordination_sequence(vertex: int, table: Neighbours, shells: int) -> tuple[int, ...]:
    """Vertices at topological distance 1, 2, ... `shells` of `vertex` in the infinite net."""
    seen = {(vertex, HOME)}
    frontier = [(vertex, HOME)]
    sequence = []
    for _ in range(shells):
        following = []
        for u, (a, b, c) in frontier:
            for w, (x, y, z), _ in table[u]:
                there = (w, (a + x, b + y, c + z))
                if there not in seen:
                    seen.add(there)
                    following.append(there)
        sequence.append(len(following))
        frontier = following
    return tuple(sequence)


def coordination_sequences(vertices: Iterable[int], edges: Sequence[Edge], shells: int = 5) -> list[tuple[int, ...]]:
    """The distinct coordination sequences of a net, sorted (what RCSR lists beside each net)."""
    vertices = list(vertices)
    table = neighbours(vertices, edges)
    return sorted({coordination_sequence(v, table, shells) for v in vertices})


@dataclass(frozen=True)
class LabelledNet:
    """A quotient graph of blocks with the kind of each vertex and the contact size of each edge.

    Attributes:
        kinds: kind of each vertex (`chem.blocks.Kind`).
        edges: (p, q, shift) of each contact.
        sizes: donors of each contact, in the order of `edges`.
    """

    kinds: tuple[int, ...]
    edges: tuple[Edge, ...]
    sizes: tuple[int, ...]


def labelled_net(decomposition: Decomposition) -> LabelledNet:
    """The net of a decomposition: one vertex a block, one edge a contact."""
    return LabelledNet(
        kinds=tuple(int(b.kind) for b in decomposition.blocks),
        edges=tuple(
            (c.node, c.linker, (int(c.shift[0]), int(c.shift[1]), int(c.shift[2]))) for c in decomposition.contacts
        ),
        sizes=tuple(len(c.donors) for c in decomposition.contacts),
    )


def vertex_labels(net: LabelledNet, level: Level = "size") -> list[tuple[int, tuple[int, ...]]]:
    """Kind and sorted contact sizes of each vertex; at level `count` every size is taken as 1."""
    sizes: list[list[int]] = [[] for _ in net.kinds]
    for (p, q, _), size in zip(net.edges, net.sizes, strict=True):
        for v in (p, q):
            sizes[v].append(size if level == "size" else 1)
    return [(kind, tuple(sorted(s))) for kind, s in zip(net.kinds, sizes, strict=True)]


def signature(net: LabelledNet, level: Level = "size") -> str:
    """Hex digest of the vertex labels and their ratio: what a component set knows about its net beforehand.

    It says nothing of the number of formula units in the cell (a supercell has the same signature): compare the
    number of blocks as well where blocks are to be mapped one to one.
    """
    return signature_of_labels(vertex_labels(net, level))


def signature_of_labels(labels: Sequence[tuple[int, tuple[int, ...]]]) -> str:
    """The signature of blocks whose net is not known yet, from (kind, sorted contact sizes) of each block."""
    return _digest(_ratio(labels))


def net_key(net: LabelledNet, level: Level = "size") -> str:
    """Hex digest that is equal for equal labelled nets, whatever the numbering, the choice of images or the cell.

    Labelled coordination sequences with links inside each shell, then `KEY_ROUNDS` rounds in which a vertex takes
    in its neighbours' colours and contact sizes. An invariant, not a proof: two nets may share a key.
    """
    labels = vertex_labels(net, level)
    table = neighbours(range(len(labels)), net.edges)
    edge_label = [size if level == "size" else 1 for size in net.sizes]
    colours = [_digest(_profile(v, table, labels)) for v in range(len(labels))]
    for _ in range(KEY_ROUNDS):
        colours = [
            _digest((colours[v], sorted((colours[w], edge_label[number]) for w, _, number in table[v])))
            for v in range(len(labels))
        ]
    return _digest(_ratio(colours))


def _profile(vertex: int, table: Neighbours, labels: Sequence[tuple[int, tuple[int, ...]]]) -> list[object]:
    """Per shell of the infinite net around `vertex`: its size, the links inside it, the labels found there."""
    shell_of = {(vertex, HOME): 0}
    frontier = [(vertex, HOME)]
    profile: list[object] = [labels[vertex]]
    for shell in range(1, KEY_SHELLS + 1):
        following: list[tuple[int, Shift]] = []
        back_links = 0
        for u, (a, b, c) in frontier:
            for w, (x, y, z), _ in table[u]:
                there = (w, (a + x, b + y, c + z))
                known = shell_of.get(there)
                if known is None:
                    shell_of[there] = shell
                    following.append(there)
                elif known == shell:
                    back_links += 1
        found = sorted(Counter(labels[w] for w, _ in following).items())
        profile.append((len(following), back_links, found))
        if len(shell_of) > KEY_VERTICES:
            break
        frontier = following
    return profile


def _ratio(items: Iterable[object]) -> list[tuple[str, int]]:
    """Sorted (item, count) with the counts divided by their greatest common divisor."""
    counts = Counter(repr(item) for item in items)
    divisor = reduce(gcd, counts.values(), 0) or 1
    return sorted((item, count // divisor) for item, count in counts.items())


def _digest(value: object) -> str:
    """Short SHA-256 of a value made of numbers, strings, tuples and lists; the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
