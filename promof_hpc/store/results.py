"""Result shards: the rows of a batch and the structures that its evaluations ended with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from promof_hpc.store.candidates import structure_at, structure_columns
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.schema import TIMING_COLUMNS, Evaluation, from_columns, to_columns
from promof_hpc.store.shard import Shard, publish_text, read_shard


def result_shard(evaluations: Sequence[Evaluation], batch: str, made_with: Mapping[str, str]) -> Shard:
    """The shard of a batch, in the order of its members; `made_with` names potential, weights and settings."""
    columns = to_columns([e.row for e in evaluations]) | structure_columns([e.structure for e in evaluations])
    return Shard(columns, {"batch": batch, **made_with})


def read_results(run: RunDir) -> Iterator[Evaluation]:
    """Every committed evaluation of a run, the first of each id (shards in the order of their names)."""
    seen: set[str] = set()
    for number in run.round_numbers():
        for batch in run.committed(number):
            shard = read_shard(run.result(batch))
            for k, row in enumerate(from_columns(shard.arrays)):
                if row.evaluation_id not in seen:
                    seen.add(row.evaluation_id)
                    yield Evaluation(row, structure_at(shard, k))


def content_digest(shard: Shard) -> str:
    """SHA-256 (hex) of a result shard without its timing: what a repetition of the same batch gives again."""
    return Shard({name: a for name, a in shard.arrays.items() if name not in TIMING_COLUMNS}, shard.attrs).digest()


def seal(run: RunDir, number: int) -> bool:
    """Fix which results a round was learned from: shards and content digests, published if absent."""
    content = {name: content_digest(read_shard(run.result(name))) for name in run.committed(number)}
    return publish_text(run.sealed(number), json.dumps(content, indent=1, sort_keys=True))
