"""A round's proposals as a candidate shard, and back: batches for the farm, everything else in columns beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from promof_hpc.design.campaign.issuing import Issue
from promof_hpc.design.strategy import Proposal, Proposals, Round
from promof_hpc.store.candidates import candidate_shard, read_entries
from promof_hpc.store.shard import Column, Shard
from promof_hpc.structure import Structure

TRACE = "trace_"
TEXTS = ("sequence", "start")
WHOLE_NUMBERS = ("group", "target")
NUMBERS = ("gate_score", "misfit", "snap_energy_ang2", "displacement_ang")


def proposal_shard(
    asked: Round, proposals: Proposals, issued: Issue, batches: Sequence[Sequence[int]], attrs: dict[str, str]
) -> Shard:
    """The shard of a round: what `store.candidates` defines, proposals (a row an entry) and the strategy's trace.

    Args:
        batches: members of each batch, as rows of `issued.candidates`.
        attrs: text that describes the shard, for instance the strategy.
    """
    base = candidate_shard(issued.candidates, batches, issued.entries, {})
    columns: dict[str, Column] = {f"proposal_{n}": [str(getattr(p, n)) for p in proposals.items] for n in TEXTS}
    for names, kind in ((WHOLE_NUMBERS, np.int64), (NUMBERS, np.float64)):
        columns |= {f"proposal_{n}": np.array([getattr(p, n) for p in proposals.items], kind) for n in names}
    trace = {TRACE + name: value for name, value in proposals.trace.items()}
    facts = {"round": asked.number, "seed": asked.seed, "room": asked.room, "spent": asked.spent}
    return Shard({**base.arrays, **columns, **trace}, {**attrs, **facts})


def read_proposals(shard: Shard, structure_of: Callable[[str], Structure]) -> Proposals:
    """The proposals of a round as they were issued, with the strategy's trace.

    Args:
        structure_of: the structure of an evaluation id; that of a duplicate lies in an earlier round.
    """
    text = {n: [str(t) for t in shard.arrays[f"proposal_{n}"]] for n in TEXTS}
    whole = {n: np.asarray(shard.arrays[f"proposal_{n}"]).tolist() for n in WHOLE_NUMBERS}
    real = {n: np.asarray(shard.arrays[f"proposal_{n}"]).tolist() for n in NUMBERS}
    items = tuple(
        Proposal(
            name=entry.name,
            group=whole["group"][k],
            target=whole["target"][k],
            sequence=text["sequence"][k],
            structure=structure_of(entry.evaluation_id) if entry.evaluation_id else None,
            refusal=entry.refusal,
            detail=entry.detail,
            gate_score=real["gate_score"][k],
            start=text["start"][k],
            misfit=real["misfit"][k],
            snap_energy_ang2=real["snap_energy_ang2"][k],
            displacement_ang=real["displacement_ang"][k],
        )
        for k, entry in enumerate(read_entries(shard))
    )
    trace = {name.removeprefix(TRACE): value for name, value in shard.arrays.items() if name.startswith(TRACE)}
    return Proposals(items, trace)


def read_asked(shard: Shard, targets: Sequence[Mapping[str, float]]) -> Round:
    """What the strategy was asked for when it proposed this shard; targets follow from the task and are not stored."""
    number, seed, room, spent = (int(shard.attrs[name]) for name in ("round", "seed", "room", "spent"))
    return Round(number, seed, room, spent, targets)
