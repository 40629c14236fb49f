"""A prepared MOF: its decomposition, its net, and the matched geometry that a generator is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from promof_hpc.assembly.build import Part
from promof_hpc.chem.blocks import Block, Decomposition
from promof_hpc.geometry.torsion import Torsions, measure

NO_TEMPLATE = -1


@dataclass(frozen=True)
class MatchedBlock:
    """A block's geometry as a sampler gets it, placed where it fits the crystal best.

    Attributes:
        local: conformer (with the crystal's torsions) or node template in the block's atom order, in Å, [n, 3].
        rotation: proper rotation [3, 3].
        centroid: in Å, [3]; position = local @ rotation.T + centroid.
        rmsd_ang: distance from the crystal in Å: heavy atoms of a linker, all atoms of a node.
        template: index of a node's template in the node library; `NO_TEMPLATE` for a linker.
    """

    local: np.ndarray
    rotation: np.ndarray
    centroid: np.ndarray
    rmsd_ang: float
    template: int = NO_TEMPLATE


@dataclass(frozen=True)
class PreparedMof:
    """One MOF of a training set.

    Attributes:
        name: its name in the source.
        decomposition: blocks, contacts and quotient graph of the primitive canonical cell.
        sequence: canonical block sequence.
        signature: digest of the block kinds and contact sizes (`geometry.topology.signature`).
        net_key: invariant of the labelled quotient graph.
        properties: measured values by name with unit; a missing one is left out.
        matched: one entry a block; None where nothing fits.
    """

    name: str
    decomposition: Decomposition
    sequence: str
    signature: str
    net_key: str
    properties: Mapping[str, float] = field(default_factory=dict)
    matched: tuple[MatchedBlock | None, ...] = ()

    @property
    def fully_matched(self) -> bool:
        """True where every block has a matched geometry."""
        return len(self.matched) == len(self.decomposition.blocks) and None not in self.matched


def block_torsions(block: Block) -> Torsions | None:
    """The rotatable bonds of a linker; None for a node or a rigid linker."""
    if block.mol is None or not len(block.torsions):
        return None
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in block.mol.GetBonds()], int).reshape(-1, 2)
    return Torsions.of(len(block.numbers), bonds, block.torsions)


def crystal_parts(decomposition: Decomposition) -> list[Part]:
    """The blocks with the crystal's own geometry, torsion angles and poses."""
    parts = []
    for block in decomposition.blocks:
        torsions = block_torsions(block)
        angles = None if torsions is None else measure(block.local, torsions.quads)
        parts.append(Part(block.numbers, block.local, block.rotation, block.centroid, torsions, angles))
    return parts


def matched_parts(mof: PreparedMof) -> list[Part]:
    """The blocks with conformers and templates in place of the crystal's geometry.

    Raises:
        ValueError: some block has no match; ask `fully_matched` first.
    """
    parts = []
    for block, matched in zip(mof.decomposition.blocks, mof.matched, strict=True):
        if matched is None:
            raise ValueError(f"{mof.name} has no matched geometry for a block {block.key}")
        torsions = block_torsions(block)
        angles = None if torsions is None else measure(matched.local, torsions.quads)
        parts.append(Part(block.numbers, matched.local, matched.rotation, matched.centroid, torsions, angles))
    return parts
