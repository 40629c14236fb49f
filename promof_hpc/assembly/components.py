"""Components: the blocks of one cell with their geometry and the ends of their contacts, not yet put together.

This is what every assembler starts from. A component set says which blocks there are; here each has coordinates in
its own frame and knows where it can be bound: a node by sites that donors must reach, a linker by its donors. How many
donors go into one contact is part of it, so the two sides offer equally many ends of every kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rdkit import Chem
from scipy.optimize import linear_sum_assignment

from promof_hpc.assembly.gate import Expected
from promof_hpc.assembly.node_library import NodeLibrary, pattern_of
from promof_hpc.assembly.prepared import NO_TEMPLATE, PreparedMof, block_torsions
from promof_hpc.assembly.sites import Site
from promof_hpc.chem.blocks import Block, Contact, Kind
from promof_hpc.geometry.topology import Level, signature_of_labels
from promof_hpc.geometry.torsion import Torsions, measure

SAME_PLACE_ANG = 1.5  # template and crystal sites further apart than this are not the same contact


@dataclass(frozen=True)
class BuildingBlock:
    """One block with geometry to build with.

    Attributes:
        kind: metal node or organic linker.
        key: as `chem.blocks.Block.key`.
        numbers: atomic numbers, int32 [n].
        local: coordinates in Å with the centroid at the origin, [n, 3].
        mol: the linker's molecule with explicit H, atoms in the same order; None for a node.
        torsions: rotatable bonds; None for a rigid block.
        template: index of a node's template in the node library; `NO_TEMPLATE` where the geometry is another.
    """

    kind: Kind
    key: str
    numbers: np.ndarray
    local: np.ndarray
    mol: Chem.Mol | None
    torsions: Torsions | None
    template: int = NO_TEMPLATE


@dataclass(frozen=True)
class End:
    """One end of a contact, before anyone knows what it meets.

    Attributes:
        block: the block that it belongs to.
        site: in the block's frame: of a node where donors must come, of a linker where its donors are.
        donors: the donor atoms in the block's numbering, int32 [m]; empty for a node.
        backs: heavy neighbours of each donor, the donor itself where it has none; empty for a node.
    """

    block: int
    site: Site
    donors: np.ndarray
    backs: tuple[np.ndarray, ...]

    @property
    def pattern(self) -> tuple[int, ...]:
        """Sorted elements of the donors: ends meet only ends of their own pattern."""
        return tuple(sorted(self.site.elements.tolist()))


@dataclass(frozen=True)
class Components:
    """The blocks of one cell and the ends of their contacts.

    Attributes:
        blocks: nodes first, in the order of the sequence, [K].
        node_ends: ends that nodes offer, by block, [E].
        linker_ends: ends that linkers offer, by block, [E]; as many of each pattern as `node_ends`.
        sequence: the component set as text.
    """

    blocks: tuple[BuildingBlock, ...]
    node_ends: tuple[End, ...]
    linker_ends: tuple[End, ...]
    sequence: str

    def __post_init__(self) -> None:
        offered, wanted = (Counter(e.pattern for e in ends) for ends in (self.node_ends, self.linker_ends))
        if offered != wanted:
            raise ValueError(f"nodes offer contacts {dict(offered)}, linkers {dict(wanted)}")

    @cached_property
    def numbers(self) -> np.ndarray:
        """Atomic numbers of all blocks one after the other, int32 [A]."""
        return np.concatenate([b.numbers for b in self.blocks]).astype(np.int32)

    @cached_property
    def block_of(self) -> np.ndarray:
        """Block of every atom, int [A]."""
        return np.repeat(np.arange(len(self.blocks)), [len(b.numbers) for b in self.blocks])

    @cached_property
    def first_atom(self) -> np.ndarray:
        """Number of the first atom of every block, int [K]."""
        return np.cumsum([0, *[len(b.numbers) for b in self.blocks]])[:-1]

    def signature(self, level: Level = "size") -> str:
        """As `geometry.topology.signature` of any net that these components can form."""
        sizes: list[list[int]] = [[] for _ in self.blocks]
        for end in (*self.node_ends, *self.linker_ends):
            sizes[end.block].append(len(end.site.elements) if level == "size" else 1)
        return signature_of_labels([(int(b.kind), tuple(sorted(s))) for b, s in zip(self.blocks, sizes, strict=True)])

    @property
    def expected(self) -> Expected:
        """What the gate should see in an assembly of these components."""
        bound: list[set[int]] = [set() for _ in self.blocks]
        for end in self.linker_ends:
            bound[end.block].update(end.donors.tolist())
        return Expected(
            keys=tuple(b.key for b in self.blocks),
            kinds=np.array([int(b.kind) for b in self.blocks]),
            block_of=self.block_of,
            images=np.zeros((len(self.numbers), 3), np.int32),
            contacts=len(self.node_ends),
            donors=np.array([len(b) for b in bound]),
        )


@dataclass(frozen=True)
class Solution:
    """A known way to put components together, for instance the crystal they were taken from.

    Attributes:
        cell: lattice vectors in rows in Å, [3, 3].
        rotations: proper rotation of every block, [K, 3, 3]; points are rows, `local @ R.T`.
        centroids: mean of the atoms of every block in Å, [K, 3].
        angles: torsion angles of all blocks one after the other in rad, [T].
        partner: linker end that each node end meets, int [E].
        shifts: cell image of that linker end's block relative to the node's, int [E, 3].
    """

    cell: np.ndarray
    rotations: np.ndarray
    centroids: np.ndarray
    angles: np.ndarray
    partner: np.ndarray
    shifts: np.ndarray


def crystal_components(mof: PreparedMof) -> tuple[Components, Solution]:
    """The components of a MOF with the crystal's own block geometry, and how the crystal puts them together."""
    found = mof.decomposition
    blocks = tuple(BuildingBlock(b.kind, b.key, b.numbers, b.local, b.mol, block_torsions(b)) for b in found.blocks)
    node_ends = [End(c.node, Site(c.sites, c.behind, c.elements), np.zeros(0, np.int32), ()) for c in found.contacts]
    return _put_together(mof, blocks, node_ends, [b.rotation for b in found.blocks], [b.centroid for b in found.blocks])


def matched_components(
    mof: PreparedMof, library: NodeLibrary, same_place_ang: float = SAME_PLACE_ANG
) -> tuple[Components, Solution]:
    """The components of a MOF with conformers and node templates, and the poses that fit the crystal best.

    Args:
        same_place_ang: how far a template's contact may lie from the crystal's. Infinite where the solution does not
            matter: components are the same, however badly their poses then repeat the crystal.

    Raises:
        ValueError: a block has no match, or a node's template has other contacts than the node.
    """
    found = mof.decomposition
    if not mof.fully_matched:
        raise ValueError(f"{mof.name} has a block without matched geometry")
    blocks, rotations, centroids = [], [], []
    for block, fit in zip(found.blocks, mof.matched, strict=True):
        assert fit is not None  # fully matched
        blocks.append(
            BuildingBlock(
                block.kind, block.key, block.numbers, fit.local, block.mol, block_torsions(block), fit.template
            )
        )
        rotations.append(fit.rotation)
        centroids.append(fit.centroid)
    node_ends: list[End | None] = [None] * len(found.contacts)
    for k, built in enumerate(blocks):
        if built.kind is Kind.METAL:
            mine = [i for i, c in enumerate(found.contacts) if c.node == k]
            contacts = [found.contacts[i] for i in mine]
            ends, off_ang = _template_ends(
                k, library, built.template, contacts, found.blocks[k], rotations[k], centroids[k]
            )
            if off_ang > same_place_ang:
                raise ValueError(f"the template of a node {built.key} has a contact {off_ang:.1f} Å elsewhere")
            for i, end in zip(mine, ends, strict=True):
                node_ends[i] = end
    ends_found = [e for e in node_ends if e is not None]
    if len(ends_found) != len(found.contacts):
        raise ValueError(f"{mof.name} has a contact without a node")
    return _put_together(mof, tuple(blocks), ends_found, rotations, centroids)


def linker_end(block: int, built: BuildingBlock, donors: np.ndarray) -> End:
    """The end that a linker offers with these donors, int [m]."""
    if built.mol is None:
        raise ValueError(f"block {block} is no linker")
    backs = tuple(_heavy_neighbours(built.mol, int(d)) for d in donors)
    behind = np.array([built.local[b].mean(0) for b in backs])
    site = Site(built.local[donors], behind, built.numbers[donors])
    return End(block, site, np.asarray(donors, np.int32), backs)


def _put_together(
    mof: PreparedMof,
    blocks: tuple[BuildingBlock, ...],
    node_ends: Sequence[End],
    rotations: Sequence[np.ndarray],
    centroids: Sequence[np.ndarray],
) -> tuple[Components, Solution]:
    """Ends in an order that says nothing about who meets whom; `node_ends` come in the order of the contacts."""
    contacts = mof.decomposition.contacts
    linker_ends = [linker_end(c.linker, blocks[c.linker], c.donors) for c in contacts]
    node_order = sorted(range(len(contacts)), key=lambda i: (node_ends[i].block, *node_ends[i].site.positions.mean(0)))
    linker_order = sorted(range(len(contacts)), key=lambda i: (linker_ends[i].block, *contacts[i].donors.tolist()))
    place = np.argsort(linker_order)
    angles = [measure(b.local, b.torsions.quads) for b in blocks if b.torsions is not None]
    solution = Solution(
        cell=mof.decomposition.structure.cell,
        rotations=np.array(rotations),
        centroids=np.array(centroids),
        angles=np.concatenate([np.zeros(0), *angles]),
        partner=place[node_order],
        shifts=np.array([contacts[i].shift for i in node_order], np.int32).reshape(-1, 3),
    )
    components = Components(
        blocks, tuple(node_ends[i] for i in node_order), tuple(linker_ends[i] for i in linker_order), mof.sequence
    )
    return components, solution


def _template_ends(
    node: int,
    library: NodeLibrary,
    template: int,
    contacts: Sequence[Contact],
    block: Block,
    rotation: np.ndarray,
    centroid: np.ndarray,
) -> tuple[list[End], float]:
    """The template's ends in the order of the crystal's contacts that they lie nearest to, and the worst distance.

    Raises:
        ValueError: the template has other contacts.
    """
    offered = library.templates[template].contacts
    if pattern_of(offered) != pattern_of(contacts):
        raise ValueError(f"no template of a node {block.key} has its contacts")
    cost = np.full((len(contacts), len(offered)), np.inf)
    for i, contact in enumerate(contacts):
        wanted = (contact.sites @ block.rotation.T + block.centroid).mean(0)
        for j, other in enumerate(offered):
            if sorted(other.elements.tolist()) == sorted(contact.elements.tolist()):
                cost[i, j] = np.linalg.norm((other.sites @ rotation.T + centroid).mean(0) - wanted)
    rows, columns = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e6))
    chosen = [offered[j] for j in columns]
    ends = [End(node, Site(c.sites, c.behind, c.elements), np.zeros(0, np.int32), ()) for c in chosen]
    return ends, float(cost[rows, columns].max(initial=0.0))


def _heavy_neighbours(mol: Chem.Mol, atom: int) -> np.ndarray:
    """Heavy neighbours of an atom, the atom itself where it has none."""
    heavy = [n.GetIdx() for n in mol.GetAtomWithIdx(atom).GetNeighbors() if n.GetAtomicNum() > 1]
    return np.array(sorted(heavy) or [atom], np.int32)
