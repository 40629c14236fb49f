"""The evaluations of a campaign by id: where each lies, its structure and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from promof_hpc.store.budget import batches_of
from promof_hpc.store.candidates import structure_at
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.schema import Evaluation, Row, from_columns
from promof_hpc.store.shard import Shard, read_shard
from promof_hpc.structure import Structure


class Evaluated:
    """Every evaluation that was issued, with the round, row and batch that hold it."""

    def __init__(self, run: RunDir):
        self._run = run
        self._at: dict[str, tuple[int, int, str, int]] = {}
        self._batches: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, evaluation_id: object) -> bool:
        return evaluation_id in self._at

    def add(self, number: int, candidates: Shard) -> None:
        """Take in what a round issued."""
        ids, plans = candidates.arrays["evaluation_id"], batches_of(candidates, number)
        self._batches[number] = tuple(plan.name for plan in plans)
        for plan in plans:
            for place, row in enumerate(plan.members):
                self._at.setdefault(str(ids[row]), (number, row, plan.name, place))

    def batches(self, number: int) -> tuple[str, ...]:
        """Names of the batches of a round."""
        return self._batches[number]

    def structure(self, evaluation_id: str) -> Structure:
        """What was evaluated."""
        number, row, _, _ = self._at[evaluation_id]
        return structure_at(_read(self._run.candidates(number)), row)

    def results(self, evaluation_ids: Sequence[str]) -> list[Evaluation | None]:
        """Results of ids, in order; None for an empty id. All their batches must have been committed."""
        return [self._result(e) if e else None for e in evaluation_ids]

    def uncharged(self, number: int) -> int:
        """Evaluations that a round issued and that cost nothing. All its batches must have been committed."""
        return sum(not row.charged for batch in self._batches[number] for row in _rows(self._run.result(batch)))

    def _result(self, evaluation_id: str) -> Evaluation:
        _, _, batch, place = self._at[evaluation_id]
        path = self._run.result(batch)
        return Evaluation(replace(_rows(path)[place]), structure_at(_read(path), place))


@lru_cache(maxsize=16)
def _read(path: Path) -> Shard:
    return read_shard(path)


@lru_cache(maxsize=16)
def _rows(path: Path) -> tuple[Row, ...]:
    return tuple(from_columns(_read(path).arrays))
