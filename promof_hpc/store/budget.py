"""The budget, folded from the files: distinct charged evaluation ids in committed result shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from promof_hpc.store.candidates import read_entries
from promof_hpc.store.claims import live_claims
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import Shard, read_column, read_shard


@dataclass(frozen=True)
class Budget:
    """Where the budget stands; `committed + uncharged <= issued`, and `issued - uncharged <= budget` if there is one.

    What ended before the potential has cost nothing, so a campaign issues another in its place.

    Attributes:
        budget: evaluations that may be spent, or None.
        issued: distinct evaluations proposed.
        committed: distinct charged evaluations in result shards.
        uncharged: distinct evaluations that ended before the potential (filtered, refused).
        in_flight: issued evaluations in batches that somebody is at work on.
        wasted: charged rows beyond the first of their id.
        outcomes: distinct evaluations by outcome.
    """

    budget: int | None
    issued: int
    committed: int
    uncharged: int
    in_flight: int
    wasted: int
    outcomes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    @property
    def finished(self) -> bool:
        """Whether every issued evaluation has its result."""
        return self.committed + self.uncharged == self.issued


@dataclass(frozen=True)
class BatchPlan:
    """A batch as its proposer cut it: fixed members in a fixed order.

    Attributes:
        name: round and place, for instance `00000-00012`.
        members: rows of the round's structures.
        atoms: atoms of each member.
    """

    name: str
    members: tuple[int, ...]
    atoms: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Relative cost, for dealing the largest first."""
        return float(sum(n**1.2 for n in self.atoms))


@dataclass(frozen=True)
class Issued:
    """What a round asks for, without its structures; it never changes.

    Attributes:
        entries: library entries or proposals that it looked at.
        refused: of these, by reason.
        evaluations: ids, one a structure.
        plans: its batches.
    """

    entries: int
    refused: Mapping[str, int]
    evaluations: tuple[str, ...]
    plans: tuple[BatchPlan, ...]


def batches_of(candidates: Shard, number: int) -> list[BatchPlan]:
    """The batches of a round's candidates."""
    ptr, batch_ptr = np.asarray(candidates.arrays["ptr"]), np.asarray(candidates.arrays["batch_ptr"])
    atoms = np.diff(ptr)
    return [
        BatchPlan(f"{number:05d}-{k:05d}", tuple(range(a, b)), tuple(int(n) for n in atoms[a:b]))
        for k, (a, b) in enumerate(pairwise(batch_ptr.tolist()))
    ]


def fold(run: RunDir, budget: int | None, claim_expiry_s: float = 300.0) -> Budget:
    """Count the ledger.

    The rule for an id with several rows: the row in the shard whose name sorts first counts, the others are waste.
    """
    ids: set[str] = set()
    in_flight = 0
    first: dict[str, tuple[bool, str]] = {}
    wasted = 0
    live = set(live_claims(run, claim_expiry_s))
    for number in run.round_numbers():
        asked = issued(run.candidates(number))
        ids.update(asked.evaluations)
        committed = set(run.committed(number))
        in_flight += sum(len(plan.members) for plan in asked.plans if plan.name in live - committed)
        for name in sorted(committed):
            for evaluation, charged, outcome in _rows(run.result(name)):
                if evaluation in first:
                    wasted += charged
                else:
                    first[evaluation] = (charged, outcome)
    committed_count = sum(charged for charged, _ in first.values())
    return Budget(
        budget=budget,
        issued=len(ids),
        committed=committed_count,
        uncharged=len(first) - committed_count,
        in_flight=in_flight,
        wasted=wasted,
        outcomes=dict(sorted(Counter(outcome for _, outcome in first.values()).items())),
    )


def all_committed(run: RunDir) -> bool:
    """Whether every batch of every round has its results; looks at names and reads none, so it is quick at any size."""
    return all(len(run.committed(n)) >= _batch_count(run.candidates(n)) for n in run.round_numbers())


@lru_cache(maxsize=10_000)
def _batch_count(candidates: Path) -> int:
    return len(read_column(candidates, "batch_ptr")) - 1


@lru_cache(maxsize=10_000)
def issued(candidates: Path) -> Issued:
    """What the round of a file of candidates asks for; read once by a process."""
    shard = read_shard(candidates)
    entries = read_entries(shard)
    return Issued(
        entries=len(entries),
        refused=dict(Counter(entry.refusal for entry in entries if entry.refusal)),
        evaluations=tuple(str(e) for e in shard.arrays["evaluation_id"]),
        plans=tuple(batches_of(shard, int(candidates.parent.name))),
    )


@lru_cache(maxsize=100_000)
def _rows(path: Path) -> tuple[tuple[str, bool, str], ...]:
    """Id, charged and outcome of the rows of one shard; shards never change, so they are read once."""
    arrays = read_shard(path).arrays
    charged = np.asarray(arrays["charged"])
    return tuple((e, bool(c), o) for e, c, o in zip(arrays["evaluation_id"], charged, arrays["outcome"], strict=True))
