"""What a round proposes: structures cut into batches, and for a library the entries they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promof_hpc.store.schema import Candidate
from promof_hpc.store.shard import Column, Shard, ragged
from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Entry:
    """One entry of a library and what became of it when it was read.

    Attributes:
        name: unique in the library.
        evaluation_id: of its structure; empty if it was refused.
        refusal: typed reason; empty if it was read.
        detail: the reason in words.
    """

    name: str
    evaluation_id: str = ""
    refusal: str = ""
    detail: str = ""


def cut_batches(atoms: Sequence[int], structures: int, total_atoms: int) -> list[list[int]]:
    """Cut structures into batches of similar size: largest first, at most `structures` and `total_atoms` each.

    Returns:
        indices into `atoms`, a list a batch; the same input always gives the same batches.
    """
    order = sorted(range(len(atoms)), key=lambda k: (-atoms[k], k))
    batches: list[list[int]] = []
    room = 0
    for k in order:
        if not batches or len(batches[-1]) >= structures or atoms[k] > room:
            batches.append([])
            room = total_atoms
        batches[-1].append(k)
        room -= atoms[k]
    return batches


def candidate_shard(
    candidates: Sequence[Candidate], batches: Sequence[Sequence[int]], entries: Sequence[Entry], attrs: dict[str, str]
) -> Shard:
    """The shard of a round; structures are stored in batch order."""
    ordered = [candidates[k] for members in batches for k in members]
    arrays: dict[str, Column] = {
        "evaluation_id": [c.evaluation_id for c in ordered],
        "batch_ptr": np.cumsum([0, *[len(members) for members in batches]]).astype(np.int64),
        "entry_name": [e.name for e in entries],
        "entry_evaluation_id": [e.evaluation_id for e in entries],
        "entry_refusal": [e.refusal for e in entries],
        "entry_detail": [e.detail for e in entries],
        **structure_columns([c.structure for c in ordered]),
    }
    return Shard(arrays, attrs)


def structure_columns(structures: Sequence[Structure]) -> dict[str, Column]:
    """Structures as flat arrays: `numbers` [ΣN], `positions` [ΣN, 3] in Å, `cell` [S, 3, 3] in Å, `ptr` [S + 1]."""
    numbers, ptr = ragged([s.numbers.astype(np.int32) for s in structures])
    positions, _ = ragged([s.positions for s in structures], (3,))
    cell = np.array([s.cell for s in structures], np.float64).reshape(-1, 3, 3)
    return {"numbers": numbers.astype(np.int32), "positions": positions, "cell": cell, "ptr": ptr}


def structure_at(shard: Shard, k: int) -> Structure:
    """The k-th structure of a shard with `structure_columns`."""
    arrays = {n: np.asarray(shard.arrays[n]) for n in ("numbers", "positions", "cell", "ptr")}
    a, b = arrays["ptr"][k], arrays["ptr"][k + 1]
    return Structure(arrays["numbers"][a:b], arrays["positions"][a:b], arrays["cell"][k])


def read_structures(shard: Shard, members: Sequence[int]) -> list[Candidate]:
    """Members of a candidate shard, ready to be evaluated."""
    return [Candidate(str(shard.arrays["evaluation_id"][k]), structure_at(shard, k)) for k in members]


def read_entries(shard: Shard) -> list[Entry]:
    """The library entries of a round."""
    names = ("entry_name", "entry_evaluation_id", "entry_refusal", "entry_detail")
    return [Entry(*(str(x) for x in values)) for values in zip(*(shard.arrays[n] for n in names), strict=True)]
