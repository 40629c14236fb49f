"""Why an entry of a library is turned away, the limits that decide it, and what a good reading returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from promof_hpc.structure import Structure


class ReadReason(StrEnum):
    """Every way in which reading one entry can end without a structure."""

    EMPTY = "empty"
    BINARY = "binary"
    NOT_A_CIF = "not_a_cif"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    TOO_BIG = "too_big"
    NO_CELL = "no_cell"
    NO_ATOMS = "no_atoms"
    NOT_FINITE = "not_finite"
    PARTIAL_OCCUPANCY = "partial_occupancy"
    OVERLAP = "overlap"
    UNKNOWN_ELEMENT = "unknown_element"
    NON_PERIODIC = "non_periodic"
    SYMMETRY_UNKNOWN = "symmetry_unknown"
    CONTRADICTION = "contradiction"
    SECOND_READER = "second_reader"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    LINK = "link"
    ARCHIVE_BOMB = "archive_bomb"


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on what is read at all.

    Attributes:
        file_bytes: largest file, also after decompression; a CIF of 20,000 atoms has about 2 MB.
        atoms: most atoms in the cell as read, before it is reduced.
        shortest_ang: two atoms closer than this (Å) are refused as overlapping.
        merge_ang: symmetry images of one site closer than this (Å) are one atom on a special position. Coordinates
            printed with three decimals lie up to 0.05 Å off their special position in a 50 Å cell.
        lightest_g_per_cm3: a crystal less dense than this is an asymmetric unit or a molecule in a box.
        heaviest_g_per_cm3: a crystal denser than this does not exist (osmium has 22.6).
    """

    file_bytes: int = 64 * 2**20
    atoms: int = 20_000
    shortest_ang: float = 0.6
    merge_ang: float = 0.1
    lightest_g_per_cm3: float = 0.005
    heaviest_g_per_cm3: float = 25.0


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class ReadStructure:
    """One crystal as it was read, neither reduced nor reordered.

    Attributes:
        structure: atoms in the order of the file (symmetry images follow their site), fractions as read.
        block: name of the data block, frame or row; empty where the file has only one.
        notes: what the reader decided that the file did not say outright, one sentence each.
    """

    structure: Structure
    block: str = ""
    notes: tuple[str, ...] = ()
