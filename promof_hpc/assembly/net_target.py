"""A component set seen by the search for nets: the ends of its blocks as points and directions, in torsion states."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from promof_hpc.assembly.components import Components, End
from promof_hpc.assembly.net_close import EndPoints
from promof_hpc.assembly.sites import unit
from promof_hpc.assembly.stack import bend, stack
from promof_hpc.chem.blocks import Kind

ALIKE = 0.05  # copies of a block whose directions differ less are oriented together

Label = tuple[int, tuple[int, ...]]
Pattern = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Copies of a block that are alike: what fits one fits all.

    Attributes:
        kind: node or linker.
        blocks: the copies; the first stands for all.
        ends: numbers of the first copy's ends among the node ends or the linker ends.
        states: torsion states worth telling apart: 0 alone where the block is rigid.
    """

    kind: Kind
    blocks: tuple[int, ...]
    ends: np.ndarray
    states: tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """What a search for nets needs of a component set.

    Attributes:
        points: ends as points, linkers in S torsion states.
        node_directions: unit vectors (to the contact, behind it) of the node ends, [E, 2, 3].
        linker_directions: of the linker ends in every state, [S, E, 2, 3].
        angles: torsion angles of every state in rad, [S, T].
        torsion_block: block of every torsion, int [T].
        node_patterns: sorted donor elements of the node ends; `linker_patterns` of the linker ends.
        ends_of: numbers of the ends of every block, among those of its kind.
        groups: alike blocks.
        atoms: atoms in the cell.
    """

    points: EndPoints
    node_directions: np.ndarray
    linker_directions: np.ndarray
    angles: np.ndarray
    torsion_block: np.ndarray
    node_patterns: tuple[Pattern, ...]
    linker_patterns: tuple[Pattern, ...]
    ends_of: tuple[np.ndarray, ...]
    groups: tuple[Group, ...]
    atoms: int

    def label(self, block: int, kind: Kind, sizes: bool) -> Label:
        """Kind and sorted contact sizes of a block (or as many ones), as `geometry.topology.vertex_labels`."""
        patterns = self.node_patterns if kind is Kind.METAL else self.linker_patterns
        return int(kind), tuple(sorted(len(patterns[e]) if sizes else 1 for e in self.ends_of[block]))


def target_of(components: Components, states: int, generator: np.random.Generator) -> Target:
    """Prepare a component set, its linkers in `states` torsion states: as given, and drawn at random.

    Copies of one linker share their states.
    """
    fixed = stack([components] * states, torch.float64)
    angles = _draw_states(components, fixed.base_angles[0].numpy(), fixed.torsion_block[0].numpy(), states, generator)
    local = bend(fixed, torch.as_tensor(angles)).numpy() if angles.shape[1] else fixed.local.numpy()
    most = max((len(e.site.elements) for e in components.node_ends), default=0)
    node = np.array([_padded(e.site.positions, e.site.behind, most) for e in components.node_ends])
    linker = np.array([[_linker_points(e, components, x, most) for e in components.linker_ends] for x in local])
    points = EndPoints(
        node_block=np.array([e.block for e in components.node_ends]),
        linker_block=np.array([e.block for e in components.linker_ends]),
        node=node,
        linker=linker,
        node_elements=np.array([_padded_elements(e, most) for e in components.node_ends]),
        linker_elements=np.array([_padded_elements(e, most) for e in components.linker_ends]),
        blocks=len(components.blocks),
    )
    node_directions = _directions(points.node, points.node_elements)
    linker_directions = _directions(points.linker, points.linker_elements)
    ends_of = tuple(
        np.flatnonzero((points.node_block if b.kind is Kind.METAL else points.linker_block) == k)
        for k, b in enumerate(components.blocks)
    )
    return Target(
        points=points,
        node_directions=node_directions,
        linker_directions=linker_directions,
        angles=angles,
        torsion_block=fixed.torsion_block[0].numpy()[: angles.shape[1]],
        node_patterns=tuple(e.pattern for e in components.node_ends),
        linker_patterns=tuple(e.pattern for e in components.linker_ends),
        ends_of=ends_of,
        groups=_groups(components, node_directions, linker_directions, ends_of),
        atoms=len(components.numbers),
    )


def _draw_states(
    components: Components, base: np.ndarray, block: np.ndarray, states: int, generator: np.random.Generator
) -> np.ndarray:
    """Angles [S, T] in rad: those given, then uniform ones, the same for copies of one linker."""
    angles = np.tile(base, (states, 1))
    drawn: dict[str, np.ndarray] = {}
    for k, built in enumerate(components.blocks):
        mine = np.flatnonzero(block == k) if built.torsions is not None else np.zeros(0, int)
        if not len(mine):
            continue
        if built.key not in drawn or drawn[built.key].shape[1] != len(mine):
            drawn[built.key] = generator.uniform(-np.pi, np.pi, (states - 1, len(mine)))
        angles[1:, mine] = drawn[built.key]
    return angles


def _padded(sites: np.ndarray, behind: np.ndarray, most: int) -> np.ndarray:
    """Points [2, most, 3] of one end."""
    points = np.zeros((2, most, 3))
    points[0, : len(sites)], points[1, : len(sites)] = sites, behind
    return points


def _padded_elements(end: End, most: int) -> np.ndarray:
    elements = np.zeros(most, np.int64)
    elements[: len(end.site.elements)] = end.site.elements
    return elements


def _linker_points(end: End, components: Components, local: np.ndarray, most: int) -> np.ndarray:
    """Points [2, most, 3] of a linker end in one torsion state, `local` [A, 3]."""
    first = int(components.first_atom[end.block])
    behind = np.array([local[first + b].mean(0) for b in end.backs])
    return _padded(local[first + end.donors], behind, most)


def _directions(points: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Unit vectors [..., E, 2, 3] of ends [..., E, 2, M, 3]: `sites.directions` with the centroid as centre."""
    count = (elements > 0).sum(-1)[:, None]
    contact, behind = points[..., 0, :, :].sum(-2) / count, points[..., 1, :, :].sum(-2) / count
    through = behind - contact
    alone = np.linalg.norm(through, axis=-1, keepdims=True) < 1e-6
    return unit(np.stack([contact, np.where(alone, contact, through)], axis=-2))


def _groups(
    components: Components,
    node_directions: np.ndarray,
    linker_directions: np.ndarray,
    ends_of: tuple[np.ndarray, ...],
) -> tuple[Group, ...]:
    """Blocks of one key, the same patterns in their order, and the same angles between their ends."""
    found: dict[tuple[Kind, str, tuple[Pattern, ...]], list[tuple[np.ndarray, list[int]]]] = defaultdict(list)
    ends = {Kind.METAL: components.node_ends, Kind.ORGANIC: components.linker_ends}
    for k, block in enumerate(components.blocks):
        mine = node_directions[None, ends_of[k]] if block.kind is Kind.METAL else linker_directions[:, ends_of[k]]
        vectors = mine.reshape(len(mine), -1, 3)
        shape = np.concatenate([vectors @ np.swapaxes(vectors, 1, 2), _handedness(vectors)], axis=-1)
        alike = found[block.kind, block.key, tuple(ends[block.kind][e].pattern for e in ends_of[k])]
        for known, members in alike:
            if np.abs(known - shape).max(initial=0.0) < ALIKE:
                members.append(k)
                break
        else:
            alike.append((shape, [k]))
    flexible = {k for k, b in enumerate(components.blocks) if b.torsions is not None}
    states = len(linker_directions)
    return tuple(
        Group(kind, tuple(members), ends_of[members[0]], tuple(range(states if members[0] in flexible else 1)))
        for (kind, _, _), alike in found.items()
        for _, members in alike
    )


def _handedness(vectors: np.ndarray) -> np.ndarray:
    """Triple products of each vector with the first two, [S, v, 1]: tells mirror images apart."""
    normal = np.cross(vectors[:, 0], vectors[:, 1 % vectors.shape[1]])
    triple: np.ndarray = np.einsum("sva,sa->sv", vectors, normal)[..., None]
    return triple
