"""A genome of the genetic algorithm: which blocks, which net, which poses; and genomes as columns of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from promof_hpc.assembly.components import Solution
from promof_hpc.store.shard import Column, ragged

POSE = "genome_"


@dataclass(frozen=True)
class Genome:
    """Everything that a structure is made from.

    Attributes:
        sequence: the component set as text.
        seed: of the draws of its realisation (node templates).
        net: key of the net that it was assembled on.
        pose: where every block ended, and who meets whom.
    """

    sequence: str
    seed: int
    net: str
    pose: Solution

    @property
    def niche(self) -> tuple[str, str]:
        """Genomes that differ in poses only share a niche."""
        return self.sequence, self.net


def genome_columns(genomes: Sequence[Genome]) -> dict[str, Column]:
    """Genomes as flat arrays beside their offsets, poses in float64."""
    poses = [g.pose for g in genomes]
    rotations, blocks = ragged([np.asarray(p.rotations, np.float64) for p in poses], (3, 3))
    centroids, _ = ragged([np.asarray(p.centroids, np.float64) for p in poses], (3,))
    angles, torsions = ragged([np.asarray(p.angles, np.float64) for p in poses])
    partner, ends = ragged([np.asarray(p.partner, np.int64) for p in poses])
    shifts, _ = ragged([np.asarray(p.shifts, np.int64).reshape(-1, 3) for p in poses], (3,))
    columns: dict[str, Column] = {
        "sequence": [g.sequence for g in genomes],
        "net": [g.net for g in genomes],
        "seed": np.array([g.seed for g in genomes], np.int64),
        "cell": np.array([p.cell for p in poses], np.float64).reshape(-1, 3, 3),
        "blocks": blocks,
        "rotations": rotations,
        "centroids": centroids,
        "torsions": torsions,
        "angles": angles,
        "ends": ends,
        "partner": partner.astype(np.int64),
        "shifts": shifts.astype(np.int64),
    }
    return {POSE + name: column for name, column in columns.items()}


def genomes_of(columns: Mapping[str, Column]) -> list[Genome]:
    """The inverse of `genome_columns`."""
    text = {n: [str(t) for t in columns[POSE + n]] for n in ("sequence", "net")}
    a = {n: np.asarray(columns[POSE + n]) for n in ("seed", "cell", "rotations", "centroids", "angles", "partner")}
    shifts = np.asarray(columns[POSE + "shifts"])
    spans = [list(pairwise(np.asarray(columns[POSE + n]).tolist())) for n in ("blocks", "torsions", "ends")]
    genomes = []
    for k, ((b, b_end), (t, t_end), (e, e_end)) in enumerate(zip(*spans, strict=True)):
        pose = Solution(
            cell=a["cell"][k],
            rotations=a["rotations"][b:b_end],
            centroids=a["centroids"][b:b_end],
            angles=a["angles"][t:t_end],
            partner=a["partner"][e:e_end],
            shifts=shifts[e:e_end],
        )
        genomes.append(Genome(text["sequence"][k], int(a["seed"][k]), text["net"][k], pose))
    return genomes
