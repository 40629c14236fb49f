"""Strategy `external`: structures that another program has made, under the same gate, budget and scorer as all others.

A folder of CIFs (or anything else that `promof screen` takes) is proposed in the order of the names, so many a round
as the other strategies propose. Nothing is learned; when the folder is used up, a round is empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promof_hpc.assembly.gate import Expected, GateReason, GateResult, gate
from promof_hpc.chem.blocks import Decomposition
from promof_hpc.chem.decompose import decompose
from promof_hpc.chem.sequence import component_set
from promof_hpc.config import DesignConfig
from promof_hpc.design.strategy import Judged, Proposal, Proposals, Round
from promof_hpc.errors import Refused, UsageError
from promof_hpc.screen.library import Entry, scan
from promof_hpc.store.checkpoint import Write
from promof_hpc.store.shard import replace_text

STATE = "names.json"


class External:
    """Proposes the entries of a library, `targets * sets * assemblies` a round."""

    def __init__(self, config: DesignConfig):
        self._library = config.external
        self._entries = scan(config.external).entries
        self._per_target = config.rounds.sets * config.rounds.assemblies
        self._atom_cap = config.assembly.atom_cap

    def propose(self, asked: Round) -> Proposals:
        """The next entries by name, a group each; those that cannot be read or fail the gate say why."""
        count = self._per_target * len(asked.targets)
        part = self._entries[asked.number * count : (asked.number + 1) * count]
        return Proposals(tuple(self._proposal(e, k, k // self._per_target) for k, e in enumerate(part)))

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Nothing is learned."""
        seen = (asked.number + 1) * self._per_target * len(asked.targets)
        return {"entries_left": float(max(0, len(self._entries) - seen))}

    def save(self, folder: Path) -> Write:
        """The names, so that a library that has changed is noticed."""
        text = json.dumps([e.name for e in self._entries])
        return lambda: replace_text(folder / STATE, text)

    def load(self, folder: Path) -> None:
        """Check that the library is the one that the run began with.

        Raises:
            UsageError: it has other entries.
        """
        before = json.loads((folder / STATE).read_text(encoding="utf-8"))
        changed = set(before) ^ {e.name for e in self._entries}
        if changed:
            raise UsageError(
                f"{self._library} has changed since the run began ({len(changed)} entries differ, for instance "
                f"'{min(changed)}'); put it back, or begin another run with it."
            )

    def _proposal(self, entry: Entry, group: int, target: int) -> Proposal:
        try:
            structure = entry.read()
        except Refused as refusal:
            return Proposal(entry.name, group, target, "", None, str(refusal.reason), refusal.detail, 0.0, "file")
        try:
            found = decompose(structure, reduce=False, max_atoms=self._atom_cap)
        except Refused as refusal:
            reason = str(GateReason.UNDECOMPOSED)
            return Proposal(entry.name, group, target, "", structure, reason, str(refusal), 0.0, "file")
        result = gate_crystal(found, self._atom_cap)
        reason = "" if result.passed else str(result.failures[0].reason)
        detail = "" if result.passed else result.failures[0].detail
        sequence = component_set(found).sequence
        return Proposal(entry.name, group, target, sequence, structure, reason, detail, result.score, "file")


def gate_crystal(found: Decomposition, atom_cap: int) -> GateResult:
    """The design gate on a crystal that was not assembled here: it must be sound as the blocks that it shows."""
    order = np.concatenate([b.atoms for b in found.blocks])
    block_of, images = np.zeros(len(order), int), np.zeros((len(order), 3), np.int32)
    bound: list[set[int]] = [set() for _ in found.blocks]
    for k, block in enumerate(found.blocks):
        block_of[block.atoms], images[block.atoms] = k, block.images
    for contact in found.contacts:
        bound[contact.linker].update(contact.donors.tolist())
    expected = Expected(
        keys=tuple(b.key for b in found.blocks),
        kinds=np.array([int(b.kind) for b in found.blocks]),
        block_of=block_of,
        images=images,
        contacts=len(found.contacts),
        donors=np.array([len(b) for b in bound]),
    )
    return gate(found.structure, expected, atom_cap=atom_cap)
