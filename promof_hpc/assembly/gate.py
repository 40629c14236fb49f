"""The design gate: geometry and connectivity that an assembly must have before a potential is asked about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from promof_hpc.chem.blocks import Block, Contact, DecomposeReason, Decomposition, Kind
from promof_hpc.chem.bonds import BondKind, Bonds, atom_pieces, bonds, near_pairs
from promof_hpc.chem.decompose import decompose
from promof_hpc.errors import Refused
from promof_hpc.structure import Structure

OVERLAP_FACTOR = 0.75  # of the sum of covalent radii, between atoms of different blocks
DENSITY_RANGE = (0.1, 4.0)  # g/cm³
LEAST_VOLUME_PER_ATOM = 10.5  # Å³; nets that collapse to half their volume still close every contact
LEAST_DONORS = 2  # bound donors of a linker that is not a terminal ligand
ATOM_CAP = 600
BEST_FAILED_SCORE = 0.95


class GateReason(StrEnum):
    """Why an assembly is not worth a relaxation."""

    TOO_MANY_ATOMS = "too_many_atoms"
    DENSITY = "density"
    CROWDED = "crowded"
    OVERLAP = "overlap"
    FREE_FRAGMENT = "free_fragment"
    UNDECOMPOSED = "undecomposed"
    OTHER_BLOCKS = "other_blocks"
    MISSING_CONTACTS = "missing_contacts"
    LOOSE_LINKER = "loose_linker"
    NOT_ONE_NET = "not_one_net"
    NOT_3D = "not_3d"


@dataclass(frozen=True)
class GateFailure:
    """One reason and the place or the number behind it."""

    reason: GateReason
    detail: str


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        passed: no failure.
        score: 1 where passed; otherwise in [0, 0.95], to grade rejects: 1/(1 + depth of all overlaps) times the mean of
            1, the share of contacts that are bonded, and how far the net is a single net periodic in three directions.
            Overlaps multiply because atoms on top of each other close every contact. The depth of a pair is 1 where
            two atoms coincide and 0 at the limit.
        failures: every reason, in the order of `GateReason`.
    """

    passed: bool
    score: float
    failures: tuple[GateFailure, ...]


@dataclass(frozen=True)
class Expected:
    """What an assembly was made of.

    Attributes:
        keys: key of every block, in the order of the blocks.
        kinds: kind of every block, int [K].
        block_of: block of every atom, int [N].
        images: cell image that puts each atom beside the rest of its block, int [N, 3]; zero in a fresh assembly.
        contacts: node-linker contacts that should be closed.
        donors: donors that each block binds with (0 for nodes), int [K].
    """

    keys: tuple[str, ...]
    kinds: np.ndarray
    block_of: np.ndarray
    images: np.ndarray
    contacts: int
    donors: np.ndarray


def expect(blocks: Sequence[Block], contacts: Sequence[Contact]) -> Expected:
    """What an assembly of these blocks should show, its atoms in the order of the blocks and not wrapped."""
    sizes = [len(b.numbers) for b in blocks]
    bound: list[set[int]] = [set() for _ in blocks]
    for contact in contacts:
        bound[contact.linker].update(contact.donors.tolist())
    return Expected(
        keys=tuple(b.key for b in blocks),
        kinds=np.array([int(b.kind) for b in blocks]),
        block_of=np.repeat(np.arange(len(blocks)), sizes),
        images=np.zeros((sum(sizes), 3), np.int32),
        contacts=len(contacts),
        donors=np.array([len(b) for b in bound]),
    )


def gate(structure: Structure, expected: Expected, *, atom_cap: int = ATOM_CAP, hopeless: str = "") -> GateResult:
    """Check an assembly before any potential call.

    It must be within the cap, the density and the volume per atom; no two blocks may come closer than 0.75 times the
    sum of covalent radii; decomposing its atoms must give the same blocks, at least as many contacts, each linker
    bound by at least two donors (or as many as it has), and one net periodic in three directions.

    Args:
        hopeless: why the caller knows that contacts are open; such an assembly is graded without being decomposed,
            which is most of the cost, and fails with `missing_contacts`.
    """
    failures = _packing(structure, atom_cap)
    if len(structure) != len(expected.block_of):
        detail = f"{len(structure)} atoms, the blocks have {len(expected.block_of)}"
        return GateResult(False, 0.0, (*failures, GateFailure(GateReason.OTHER_BLOCKS, detail)))
    found = bonds(structure)
    depth, worst = _overlap_between_blocks(structure, expected)
    if depth > 0.0:
        failures.append(GateFailure(GateReason.OVERLAP, worst))
    if hopeless:
        failures.append(GateFailure(GateReason.MISSING_CONTACTS, hopeless))
    elif found.shortest > 0.0:
        failures += _connectivity(structure, expected, atom_cap)
    if not failures:
        return GateResult(True, 1.0, ())
    share = _closed_contacts(found, expected) / max(1, expected.contacts)
    graded = (1.0 + min(1.0, share) + _net_share(structure, found)) / 3 / (1.0 + depth)
    order = list(GateReason)
    failures.sort(key=lambda f: order.index(f.reason))
    return GateResult(False, min(BEST_FAILED_SCORE, graded), tuple(failures))


def _packing(structure: Structure, atom_cap: int) -> list[GateFailure]:
    """Size, density and volume per atom."""
    failures = []
    count = len(structure)
    if count > atom_cap:
        failures.append(GateFailure(GateReason.TOO_MANY_ATOMS, f"{count} atoms, the cap is {atom_cap}"))
    if not DENSITY_RANGE[0] <= structure.density <= DENSITY_RANGE[1]:
        failures.append(GateFailure(GateReason.DENSITY, f"{structure.density:.2f} g/cm³"))
    if structure.volume < LEAST_VOLUME_PER_ATOM * count:
        failures.append(GateFailure(GateReason.CROWDED, f"{structure.volume / count:.1f} Å³ per atom"))
    return failures


def _overlap_between_blocks(structure: Structure, expected: Expected) -> tuple[float, str]:
    """Summed depth of the pairs of atoms of different blocks that are too close, and the worst of them in words."""
    numbers = np.asarray(structure.numbers)
    if structure.volume < len(numbers):
        return float(len(numbers)), "less than 1 Å³ per atom"
    reach = 2 * OVERLAP_FACTOR * covalent_radii[numbers].max()
    i, j, shift, distance = near_pairs(structure, float(reach))
    together = (shift == expected.images[j] - expected.images[i]).all(1)
    between = (expected.block_of[i] != expected.block_of[j]) | ~together
    i, j, distance = i[between], j[between], distance[between]
    room = distance / (OVERLAP_FACTOR * (covalent_radii[numbers[i]] + covalent_radii[numbers[j]]))
    if not len(room) or room.min() >= 1.0:
        return 0.0, ""
    k = int(room.argmin())
    pair = f"{chemical_symbols[numbers[i[k]]]}-{chemical_symbols[numbers[j[k]]]}"
    close = room < 1.0
    worst = f"{int(close.sum())} pairs between blocks too close, the worst {pair} {distance[k]:.2f} Å"
    return float((1.0 - room[close]).sum()), worst


def _connectivity(structure: Structure, expected: Expected, atom_cap: int) -> list[GateFailure]:
    """What the decomposer sees in the assembled atoms against what they were assembled from."""
    try:
        seen = decompose(structure, reduce=False, max_atoms=atom_cap)
    except Refused as refusal:
        free = refusal.reason is DecomposeReason.FREE_FRAGMENT
        reason = GateReason.FREE_FRAGMENT if free else GateReason.UNDECOMPOSED
        return [GateFailure(reason, refusal.detail if free else str(refusal))]
    failures = []
    unlike = Counter(b.key for b in seen.blocks)
    unlike.subtract(expected.keys)
    changed = [f"{n:+d} {key}" for key, n in sorted(unlike.items()) if n]
    if changed:
        failures.append(GateFailure(GateReason.OTHER_BLOCKS, ", ".join(changed)))
    if len(seen.contacts) < expected.contacts:
        failures.append(GateFailure(GateReason.MISSING_CONTACTS, f"{len(seen.contacts)} of {expected.contacts}"))
    if not changed:
        failures += _loose_linkers(seen, expected)
    if seen.components != 1:
        failures.append(GateFailure(GateReason.NOT_ONE_NET, f"{seen.components} separate nets"))
    if seen.dimensionality < 3:
        failures.append(GateFailure(GateReason.NOT_3D, f"the net is {seen.dimensionality}-periodic"))
    return failures


def _loose_linkers(seen: Decomposition, expected: Expected) -> list[GateFailure]:
    """Linkers bound by fewer donors than two, or than they have."""
    bound: list[set[int]] = [set() for _ in seen.blocks]
    for contact in seen.contacts:
        bound[contact.linker].update(contact.donors.tolist())
    loose = []
    for block, donors in zip(seen.blocks, bound, strict=True):
        if block.kind is Kind.ORGANIC:
            needed = min(LEAST_DONORS, int(expected.donors[expected.block_of[block.atoms[0]]]))
            if len(donors) < needed:
                loose.append(f"{block.key} by {len(donors)} of {needed} donors")
    return [GateFailure(GateReason.LOOSE_LINKER, "; ".join(loose))] if loose else []


def _closed_contacts(found: Bonds, expected: Expected) -> int:
    """Pairs of a node and a linker image that at least one metal-donor bond joins."""
    block, image = expected.block_of, expected.images
    kinds = expected.kinds[block]
    joins = found.of_kind(BondKind.METAL_DONOR)
    joins = joins.chosen(kinds[joins.i] != kinds[joins.j])
    turn = kinds[joins.i] == Kind.ORGANIC
    node, linker = np.where(turn, joins.j, joins.i), np.where(turn, joins.i, joins.j)
    shift = np.where(turn[:, None], -joins.shift, joins.shift) + image[node] - image[linker]
    return len(np.unique(np.column_stack([block[node], block[linker], shift]), axis=0))


def _net_share(structure: Structure, found: Bonds) -> float:
    """1 for one framework periodic in three directions, less for fewer directions and for more pieces."""
    parts = atom_pieces(len(structure), found)
    directions = max(p.dimensionality for p in parts)
    return directions / 3 / sum(p.nets for p in parts)
