"""Our own shards as a library: a run directory gives the structures that its evaluations ended with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from promof_hpc.errors import Refused
from promof_hpc.screen.refusals import ReadReason, ReadStructure
from promof_hpc.store.candidates import read_entries, structure_at
from promof_hpc.store.run_dir import RunDir, read_round
from promof_hpc.store.shard import CorruptShard, Shard, list_names, read_shard


@dataclass(frozen=True)
class ShardSource:
    """One structure of a candidate or result shard."""

    path: Path
    row: int

    def load(self) -> ReadStructure:
        """Read it.

        Raises:
            Refused: the shard is damaged.
        """
        try:
            return ReadStructure(structure_at(_shard(self.path), self.row))
        except (CorruptShard, FileNotFoundError) as error:
            raise Refused(ReadReason.UNREADABLE, str(error)) from error


@lru_cache(maxsize=4)
def _shard(path: Path) -> Shard:
    return read_shard(path)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    names = list_names(folder)
    return "config.yaml" in names and "rounds" in names


def list_run(folder: Path) -> Iterator[tuple[str, ShardSource]]:
    """The final structures of a run under the names of their library entries, the first entry of each."""
    run = RunDir.open(folder)
    for number in run.round_numbers():
        names: dict[str, str] = {}
        for entry in read_entries(read_round(run, number)):
            names.setdefault(entry.evaluation_id, entry.name)
        for batch in run.committed(number):
            path = run.result(batch)
            for row, evaluation_id in enumerate(read_shard(path).arrays["evaluation_id"]):
                yield names.get(str(evaluation_id), str(evaluation_id)), ShardSource(path, row)


def list_shard(path: Path) -> Iterator[tuple[str, ShardSource]]:
    """The structures of one shard, named by their evaluation ids."""
    for row, evaluation_id in enumerate(read_shard(path).arrays["evaluation_id"]):
        yield str(evaluation_id), ShardSource(path, row)
