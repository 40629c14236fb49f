"""Building blocks of a decomposed structure: metal nodes, organic linkers, their poses and their contacts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
from rdkit import Chem

from promof_hpc.structure import Structure


class Kind(IntEnum):
    """What a block is; metals sort first."""

    METAL = 0
    ORGANIC = 1


class DecomposeReason(StrEnum):
    """Why a structure is not taken apart into finite metal nodes and closed-shell organic linkers."""

    NOT_A_CRYSTAL = "not_a_crystal"
    TOO_LARGE = "too_large"
    OVERLAP = "overlap"
    NO_METAL = "no_metal"
    NO_CARBON = "no_carbon"
    FREE_FRAGMENT = "free_fragment"
    INFINITE_LINKER = "infinite_linker"
    NO_LINKER = "no_linker"
    ROD = "rod"
    UNKNOWN_ELEMENT = "unknown_element"
    VALENCE = "valence"
    RADICAL = "radical"
    UNSOLVED = "unsolved"
    ODD_CHEMISTRY = "odd_chemistry"


@dataclass(frozen=True)
class Block:
    """One building block of the cell, in one piece (periodic images resolved).

    Attributes:
        kind: metal node or organic linker.
        key: canonical SMILES without H and without stereo of a linker; bag of bracket atoms of a node, metals first
            (`[Zn][Zn][Zn][Zn][O]`).
        atoms: indices into the structure's atoms, int32 [n]. Linkers with equal keys list their atoms in the same
            order (up to symmetry), so torsions and donors can be compared between structures.
        images: cell image of each atom, int32 [n, 3]: position = structure position + images @ cell.
        numbers: atomic numbers, int32 [n].
        centroid: mean position in Å, float64 [3].
        rotation: proper rotation R [3, 3]; position = local @ R.T + centroid.
        local: block coordinates in Å in its own frame, float64 [n, 3].
        mol: RDKit molecule with explicit H, bond orders and charges, atoms in the order of `atoms`; None for a node.
        charge: formal charge of a linker in e; 0 for a node (oxidation states are not perceived).
        torsions: rotatable bonds as atom quadruples in block numbering, int32 [t, 4].
    """

    kind: Kind
    key: str
    atoms: np.ndarray
    images: np.ndarray
    numbers: np.ndarray
    centroid: np.ndarray
    rotation: np.ndarray
    local: np.ndarray
    mol: Chem.Mol | None
    charge: int
    torsions: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Cartesian coordinates in Å in the structure's frame, in one piece, [n, 3]."""
        return self.local @ self.rotation.T + self.centroid


@dataclass(frozen=True)
class Contact:
    """All connection sites between one node and one image of one linker (1 to 4 donors, sometimes more).

    Attributes:
        node: index of the metal block.
        linker: index of the organic block.
        shift: cell image of the linker relative to the node, int32 [3].
        donors: donor atoms in the linker's block numbering, int32 [m].
        elements: atomic numbers of the donors, int32 [m].
        sites: donor positions in the node's local frame in Å, [m, 3].
        behind: mean position of each donor's heavy neighbours in the node's local frame in Å, [m, 3].
        linker_behind: mean position of each donor's heavy neighbours in the linker's local frame in Å, [m, 3].
    """

    node: int
    linker: int
    shift: np.ndarray
    donors: np.ndarray
    elements: np.ndarray
    sites: np.ndarray
    behind: np.ndarray
    linker_behind: np.ndarray


@dataclass(frozen=True)
class Decomposition:
    """A structure as blocks and contacts.

    Attributes:
        structure: the primitive canonical cell that was decomposed.
        blocks: metals first, then linkers, each sorted by molecular mass, key, position.
        contacts: every node-linker contact.
        edges: quotient graph: (p, q, shift) of every bonded pair of blocks, p <= q, q at image shift of p;
            metal-metal bonds that were cut are left out.
        dimensionality: number of directions in which the net is periodic.
        components: number of separate nets (2 or more: interpenetrated).
        split_metals: True where metal-metal bonds had to be cut to get finite nodes.
    """

    structure: Structure
    blocks: tuple[Block, ...]
    contacts: tuple[Contact, ...]
    edges: tuple[tuple[int, int, tuple[int, int, int]], ...]
    dimensionality: int
    components: int
    split_metals: bool
