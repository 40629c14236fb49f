"""A crystal taken apart into metal nodes and organic linkers, with poses, bond orders, torsions and contacts.

The split is MOFid's metal-oxo one (Bucior et al., 2019): a carbon-free fragment bonded to a metal belongs to the
node, a fragment with carbon is a linker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from promof_hpc.chem.blocks import Block, Contact, DecomposeReason, Decomposition, Kind
from promof_hpc.chem.bond_orders import Fragment, Pair, perceive, skeleton
from promof_hpc.chem.bonds import IS_METAL, BondKind, Bonds, atom_pieces, bonds, formulas
from promof_hpc.chem.linkers import linker_molecule, with_positions
from promof_hpc.errors import Refused
from promof_hpc.geometry.topology import Edge, Piece, dimensionality, net_count
from promof_hpc.structure import Structure, canonical, primitive

OVERLAP_ANG = 0.6  # no two atoms of a crystal are closer, H-H of disordered models included
MAX_ATOMS = 600


def decompose(structure: Structure, *, reduce: bool = True, max_atoms: int = MAX_ATOMS) -> Decomposition:
    """Blocks and contacts of a crystal.

    Args:
        reduce: take the primitive canonical cell first; False decomposes the cell as given, atom indices kept.
        max_atoms: larger (reduced) cells are refused.

    Raises:
        Refused: with a `DecomposeReason` and the place in the structure.
    """
    finite = np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()
    if not len(structure) or not finite or structure.volume < 1e-3:  # spglib crashes on such arrays
        raise Refused(DecomposeReason.NOT_A_CRYSTAL, "no atoms, a flat cell, or coordinates that are not numbers")
    cell = primitive(structure) if reduce else structure
    if len(cell) > max_atoms:
        raise Refused(DecomposeReason.TOO_LARGE, f"{len(cell)} atoms in the primitive cell, the limit is {max_atoms}")
    if reduce:
        cell = canonical(cell)
    found = bonds(cell)
    split = _split(cell, found)
    blocks = [_node(cell, piece) for piece in split.nodes] + _linkers(cell, found, split.linkers)
    blocks.sort(key=_rank)
    contacts = _contacts(cell, found, blocks)
    lone = [b for k, b in enumerate(blocks) if all(k not in (c.node, c.linker) for c in contacts)]
    if lone:
        raise Refused(
            DecomposeReason.FREE_FRAGMENT, f"{len(lone)} metal nodes without a linker, for instance {lone[0].key}"
        )
    edges: tuple[Edge, ...] = tuple(sorted((c.node, c.linker, _shift(c.shift)) for c in contacts))
    return Decomposition(
        structure=cell,
        blocks=tuple(blocks),
        contacts=tuple(contacts),
        edges=edges,
        dimensionality=dimensionality(len(blocks), edges),
        components=net_count(len(blocks), edges),
        split_metals=split.split_metals,
    )


def node_class(structure: Structure) -> str:
    """What kind of framework a structure is, for a table; never raises.

    One of `discrete` (finite nodes, one three-periodic net), `interpenetrated` (several such nets), `layered`
    (periodic in two directions at most), `rod` (infinite nodes), `undecomposed (reason)`.
    """
    try:
        found = decompose(structure)
    except Refused as refusal:
        rod = refusal.reason is DecomposeReason.ROD
        return "rod" if rod else f"undecomposed ({refusal.reason})"
    except Exception as error:  # a table row must not fail on one odd file
        return f"undecomposed ({type(error).__name__})"
    if found.dimensionality < 3:
        return "layered"
    return "interpenetrated" if found.components > 1 else "discrete"


@dataclass(frozen=True)
class _Split:
    """Atoms of each node and each linker, in one piece each."""

    nodes: list[Piece]
    linkers: list[Piece]
    split_metals: bool


def _split(cell: Structure, found: Bonds) -> _Split:
    """Divide the atoms among nodes and linkers, or refuse the structure."""
    numbers, count = cell.numbers, len(cell)
    metal = IS_METAL[numbers]
    if found.shortest < OVERLAP_ANG:
        raise Refused(DecomposeReason.OVERLAP, f"two atoms are {found.shortest:.2f} Å apart")
    if not metal.any():
        raise Refused(DecomposeReason.NO_METAL, f"{cell.formula} has no metal")
    if not (numbers == 6).any():
        raise Refused(DecomposeReason.NO_CARBON, f"{cell.formula} has no carbon")
    fragments = atom_pieces(count, found.of_kind(BondKind.COVALENT), ~metal)
    to_metal = found.of_kind(BondKind.METAL_DONOR)
    donor = np.zeros(count, bool)
    donor[to_metal.i] = donor[to_metal.j] = True
    free = [f for f in fragments if not donor[f.vertices].any()]
    if free:
        raise Refused(DecomposeReason.FREE_FRAGMENT, formulas(cell, free))
    linkers = [f for f in fragments if (numbers[f.vertices] == 6).any()]
    if not linkers:
        raise Refused(DecomposeReason.NO_LINKER, "no fragment with carbon is bonded to a metal")
    infinite = [f for f in linkers if f.dimensionality]
    if infinite:
        raise Refused(DecomposeReason.INFINITE_LINKER, f"an organic part is {infinite[0].dimensionality}-periodic")
    in_node = np.ones(count, bool)
    in_node[np.concatenate([f.vertices for f in linkers])] = False
    nodes, split_metals = _nodes(cell, found, in_node)
    return _Split(nodes, linkers, split_metals)


def _nodes(cell: Structure, found: Bonds, in_node: np.ndarray) -> tuple[list[Piece], bool]:
    """Finite nodes; metal-metal bonds are cut where they make a node infinite, and only there."""
    nodes = atom_pieces(len(cell), found, in_node)
    infinite = np.zeros(len(cell), bool)
    for node in nodes:
        infinite[node.vertices] = node.dimensionality > 0
    if not infinite.any():
        return nodes, False
    cut = (found.kind == BondKind.METAL_METAL) & infinite[found.i]
    nodes = atom_pieces(len(cell), found.chosen(~cut), in_node)
    rods = [n for n in nodes if n.dimensionality]
    if rods:
        elements = "-".join(chemical_symbols[z] for z in np.unique(cell.numbers[rods[0].vertices])[::-1])
        raise Refused(DecomposeReason.ROD, f"the {elements} node is {rods[0].dimensionality}-periodic")
    return nodes, True


def node_key(numbers: Sequence[int]) -> str:
    """Bag of bracket atoms, metals first, then by symbol: `[Zn][Zn][Zn][Zn][O]`."""
    counts = Counter(int(z) for z in numbers)
    order = sorted(counts, key=lambda z: (not IS_METAL[z], chemical_symbols[z]))
    return "".join(f"[{chemical_symbols[z]}]" * counts[z] for z in order)


def _node(cell: Structure, piece: Piece) -> Block:
    """The block of a metal node: atoms metals first, then by symbol and index."""
    order = sorted(
        range(len(piece.vertices)),
        key=lambda k: (
            not IS_METAL[cell.numbers[piece.vertices[k]]],
            chemical_symbols[cell.numbers[piece.vertices[k]]],
            piece.vertices[k],
        ),
    )
    atoms, images = piece.vertices[order], piece.images[order]
    images, centroid, rotation, local = _placed(cell, atoms, images)
    numbers = cell.numbers[atoms]
    no_torsions = np.zeros((0, 4), np.int32)
    return Block(Kind.METAL, node_key(numbers), atoms, images, numbers, centroid, rotation, local, None, 0, no_torsions)


@dataclass(frozen=True)
class _Copy:
    """One linker numbered canonically: its atoms, their images, its bonds and their lengths in Å."""

    atoms: np.ndarray
    images: np.ndarray
    pairs: tuple[Pair, ...]
    lengths: np.ndarray


def _linkers(cell: Structure, found: Bonds, parts: Sequence[Piece]) -> list[Block]:
    """Blocks of all linkers. Copies with one skeleton share bond orders, perceived from their mean bond lengths."""
    to_metal = found.of_kind(BondKind.METAL_DONOR)
    donor = np.zeros(len(cell), bool)
    donor[to_metal.i] = donor[to_metal.j] = True
    donor &= ~IS_METAL[cell.numbers]
    bonded: dict[int, list[tuple[int, float]]] = defaultdict(list)
    covalent = found.of_kind(BondKind.COVALENT)
    for i, j, length in zip(covalent.i.tolist(), covalent.j.tolist(), covalent.distance.tolist(), strict=True):
        bonded[i].append((j, length))
    groups: dict[str, list[_Copy]] = defaultdict(list)
    for piece in parts:
        text, copy = _numbered(cell, piece, bonded)
        groups[text].append(copy)
    blocks = []
    for text, copies in groups.items():
        first = copies[0]
        numbers = cell.numbers[first.atoms]
        fragment = Fragment(
            numbers=numbers,
            pairs=first.pairs,
            lengths=np.mean([c.lengths for c in copies], axis=0),
            donors=np.any([donor[c.atoms] for c in copies], axis=0),
        )
        molecule = linker_molecule(text, tuple(numbers.tolist()), first.pairs, perceive(fragment))
        for copy in copies:
            images, centroid, rotation, local = _placed(cell, copy.atoms, copy.images)
            blocks.append(
                Block(
                    kind=Kind.ORGANIC,
                    key=molecule.key,
                    atoms=copy.atoms,
                    images=images,
                    numbers=numbers,
                    centroid=centroid,
                    rotation=rotation,
                    local=local,
                    mol=with_positions(molecule.mol, local),
                    charge=molecule.charge,
                    torsions=molecule.torsions,
                )
            )
    return blocks


def _numbered(cell: Structure, piece: Piece, bonded: dict[int, list[tuple[int, float]]]) -> tuple[str, _Copy]:
    """The skeleton of a linker and the linker in that skeleton's numbering."""
    place = {int(a): k for k, a in enumerate(piece.vertices)}
    ends = [(place[i], place[j], d) for i in place for j, d in bonded.get(i, ())]
    text, order = skeleton(cell.numbers[piece.vertices].tolist(), [(a, b) for a, b, _ in ends])
    new = {old: k for k, old in enumerate(order)}
    renamed = sorted((min(new[a], new[b]), max(new[a], new[b]), d) for a, b, d in ends)
    pairs = tuple((a, b) for a, b, _ in renamed)
    return text, _Copy(piece.vertices[order], piece.images[order], pairs, np.array([d for *_, d in renamed]))


def _placed(
    cell: Structure, atoms: np.ndarray, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images with the centroid in the home cell, centroid [3], rotation [3, 3], local coordinates [n, 3]."""
    positions = cell.positions[atoms] + images @ cell.cell
    fractional = np.linalg.solve(cell.cell.T, positions.mean(0))
    home = np.floor(fractional + 1e-6).astype(np.int32)
    positions = positions - home @ cell.cell
    centroid = positions.mean(0)
    rotation = principal_axes(positions - centroid)
    return (images - home).astype(np.int32), centroid, rotation, (positions - centroid) @ rotation


def principal_axes(centred: np.ndarray) -> np.ndarray:
    """Proper rotation [3, 3] with the principal axes of centred points [n, 3] in columns, the longest first.

    The first two axes point to the side of the positive third moment. Where moments are equal (tetrahedral and
    octahedral nodes) the axes are arbitrary.
    """
    if len(centred) == 1:
        return np.eye(3)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1].copy()
    skew = ((centred @ axes) ** 3).sum(0)
    axes[:, :2] *= np.where(skew[:2] < 0, -1.0, 1.0)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return axes


def _rank(block: Block) -> tuple[int, float, str, list[float]]:
    """Metals first, then molecular mass, key and place."""
    mass = round(float(atomic_masses[block.numbers].sum()), 3)
    return int(block.kind), mass, block.key, np.round(block.centroid, 3).tolist()


def _shift(images: np.ndarray) -> tuple[int, int, int]:
    return int(images[0]), int(images[1]), int(images[2])


def _contacts(cell: Structure, found: Bonds, blocks: Sequence[Block]) -> list[Contact]:
    """Every contact of a node with an image of a linker, ordered by node, linker and shift."""
    count = len(cell)
    block_of, place, image = np.zeros(count, int), np.zeros(count, int), np.zeros((count, 3), int)
    for k, block in enumerate(blocks):
        block_of[block.atoms], place[block.atoms] = k, np.arange(len(block.atoms))
        image[block.atoms] = block.images
    kind = np.array([int(b.kind) for b in blocks])
    joins = found.chosen(kind[block_of[found.i]] != kind[block_of[found.j]])
    turn = kind[block_of[joins.i]] == Kind.ORGANIC
    metal_end, donor_end = np.where(turn, joins.j, joins.i), np.where(turn, joins.i, joins.j)
    shift = np.where(turn[:, None], -joins.shift, joins.shift) + image[metal_end] - image[donor_end]
    donors: dict[Edge, set[int]] = defaultdict(set)
    for m, d, s in zip(metal_end, donor_end, shift, strict=True):
        donors[int(block_of[m]), int(block_of[d]), _shift(s)].add(int(place[d]))
    neighbours = [_heavy_neighbours(b) for b in blocks]
    return [
        _contact(cell, blocks, neighbours[q], (p, q, s), sorted(members))
        for (p, q, s), members in sorted(donors.items())
    ]


def _heavy_neighbours(block: Block) -> list[list[int]]:
    """Each atom's neighbours in the block other than H; all of them where there are only H; itself if it has none."""
    if block.mol is None:
        return []
    table = []
    for atom in block.mol.GetAtoms():
        bonded = atom.GetNeighbors()
        heavy = [n.GetIdx() for n in bonded if n.GetAtomicNum() > 1]
        table.append(heavy or [n.GetIdx() for n in bonded] or [atom.GetIdx()])
    return table


def _contact(
    cell: Structure, blocks: Sequence[Block], neighbours: list[list[int]], edge: Edge, donors: list[int]
) -> Contact:
    node, linker = blocks[edge[0]], blocks[edge[1]]
    linker_behind = np.array([linker.local[neighbours[d]].mean(0) for d in donors])
    offset = linker.centroid + np.array(edge[2]) @ cell.cell - node.centroid
    return Contact(
        node=edge[0],
        linker=edge[1],
        shift=np.array(edge[2], np.int32),
        donors=np.array(donors, np.int32),
        elements=linker.numbers[donors],
        sites=(linker.local[donors] @ linker.rotation.T + offset) @ node.rotation,
        behind=(linker_behind @ linker.rotation.T + offset) @ node.rotation,
        linker_behind=linker_behind,
    )
