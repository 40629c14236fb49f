"""Assemblies that snap brought to the same crystal share one structure, so that a round pays for it once.

Starts on one net often end in one crystal, equal but for the finisher's last digits. The ledger knows only exact
duplicates; giving such assemblies the structure of the first of them makes them exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from promof_hpc.design.judging.metrics import CERTAIN_AMD_ANG
from promof_hpc.design.strategy import Proposal
from promof_hpc.geometry.minimum_distances import average_minimum_distances
from promof_hpc.structure import Structure


def shared(proposals: Sequence[Proposal]) -> list[Proposal]:
    """The proposals of a round, those of one component set and one crystal with the same structure."""
    kept: dict[str, list[tuple[np.ndarray, Structure]]] = defaultdict(list)
    result = []
    for proposal in proposals:
        if proposal.structure is None:
            result.append(proposal)
            continue
        mine = average_minimum_distances(proposal.structure)
        alike = (s for d, s in kept[proposal.sequence] if np.abs(d - mine).max() <= CERTAIN_AMD_ANG)
        structure = next(alike, None)
        if structure is None:
            kept[proposal.sequence].append((mine, proposal.structure))
        else:
            proposal = replace(proposal, structure=structure)
        result.append(proposal)
    return result
