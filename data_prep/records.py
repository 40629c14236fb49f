"""One entry of a source becomes a prepared MOF or a typed rejection; a chunk of entries becomes one shard of both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.match import match_linkers
from data_prep.parallel import TimedOut, run_alone, time_limit
from data_prep.settings import PrepReason, PrepSettings
from promof_hpc.assembly.prepared import MatchedBlock, PreparedMof
from promof_hpc.assembly.prepared_shard import FORMAT, mofs_of_columns, prepared_columns
from promof_hpc.chem.blocks import Decomposition
from promof_hpc.chem.decompose import decompose
from promof_hpc.chem.sequence import component_set
from promof_hpc.chem.validity import check
from promof_hpc.errors import Refused
from promof_hpc.geometry.topology import labelled_net, net_key, signature
from promof_hpc.screen.library import Entry
from promof_hpc.store.shard import Shard, read_shard, write_shard
from promof_hpc.structure import Structure


@dataclass(frozen=True)
class Rejection:
    """An entry that is left out.

    Attributes:
        name: the entry.
        reason: member of the `StrEnum` of whoever refused it, as text.
        detail: what was found, in words.
    """

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class EntryJob:
    """What is known of one entry before it is read."""

    entry: Entry
    properties: Mapping[str, float]
    disordered: bool


@dataclass(frozen=True)
class Chunk:
    """Entries that are prepared together and published as one shard."""

    path: Path
    jobs: tuple[EntryJob, ...]
    settings: PrepSettings
    alone: bool = False


@dataclass(frozen=True)
class Records:
    """What became of the entries of a chunk."""

    mofs: list[PreparedMof] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


def prepare_chunk(chunk: Chunk) -> float:
    """Prepare the entries of a chunk and publish its shard.

    With `alone`, each entry has a process of its own, and one that kills it is rejected as `crashed`.

    Returns:
        CPU time in s that it took in this process.
    """
    start = time.process_time()
    records = Records()
    for job in chunk.jobs:
        outcome = _alone(job, chunk.settings) if chunk.alone else prepare_entry((job, chunk.settings))
        if isinstance(outcome, Rejection):
            records.rejections.append(outcome)
        else:
            records.mofs.append(outcome)
    write_records(chunk.path, records)
    return time.process_time() - start


def prepare_entry(task: tuple[EntryJob, PrepSettings]) -> PreparedMof | Rejection:
    """Prepare one entry; whatever goes wrong with it is a rejection, never an exception."""
    job, settings = task
    name = job.entry.name
    try:
        with time_limit(settings.time_limit_s):
            if job.disordered and not settings.keep_disordered:
                raise Refused(PrepReason.DISORDERED, "its source marks it as disordered")
            return prepare_structure(name, job.entry.read(), job.properties, settings)
    except Refused as refusal:
        return Rejection(name, str(refusal.reason), refusal.detail)
    except TimedOut as error:
        return Rejection(name, str(PrepReason.TIMED_OUT), str(error))
    except Exception as error:  # one odd structure must not stop twelve thousand
        return Rejection(name, str(PrepReason.FAILED), f"{type(error).__name__}: {error}")


def write_records(path: Path, records: Records) -> bool:
    """Publish a chunk's shard; see `store.shard.publish` for what is returned and raised."""
    refused = {
        "rejected_name": [r.name for r in records.rejections],
        "rejected_reason": [r.reason for r in records.rejections],
        "rejected_detail": [r.detail for r in records.rejections],
    }
    return write_shard(path, Shard({**prepared_columns(records.mofs), **refused}, {"format": FORMAT}))


def read_records(path: Path, molecules: bool = True) -> Records:
    """Read a shard written by `write_records`.

    Raises:
        CorruptShard: the file is damaged.
    """
    columns = read_shard(path).arrays
    rejected = zip(*(columns[f"rejected_{part}"] for part in ("name", "reason", "detail")), strict=True)
    return Records(mofs_of_columns(columns, molecules), [Rejection(*map(str, row)) for row in rejected])


def _alone(job: EntryJob, settings: PrepSettings) -> PreparedMof | Rejection:
    died = Rejection(job.entry.name, str(PrepReason.CRASHED), "the process that prepared it died (signal or memory)")
    return run_alone(prepare_entry, (job, settings)) or died


def prepare_structure(
    name: str, cell: Structure, properties: Mapping[str, float], settings: PrepSettings
) -> PreparedMof:
    """Decompose, filter, match.

    Args:
        cell: a primitive cell in canonical form, as libraries give it.

    Raises:
        Refused: it is not a MOF to train on.
    """
    if len(cell) > settings.max_atoms:
        raise Refused(PrepReason.TOO_MANY_ATOMS, f"{len(cell)} atoms in the primitive cell")
    found = decompose(cell, reduce=False)
    _filter(found, settings)
    matched: tuple[MatchedBlock | None, ...] = ()
    if settings.conformers:
        matched = match_linkers(found, settings.seed)
        _check_conformers(found, matched, settings.max_conformer_rmsd_ang)
    net = labelled_net(found)
    return PreparedMof(
        name=name,
        decomposition=found,
        sequence=component_set(found).sequence,
        signature=signature(net),
        net_key=net_key(net),
        properties=dict(properties),
        matched=matched,
    )


def _filter(found: Decomposition, settings: PrepSettings) -> None:
    """Raises: Refused: a MOF that a generator is not trained on."""
    if len(found.blocks) > settings.max_blocks:
        raise Refused(PrepReason.TOO_MANY_BLOCKS, f"{len(found.blocks)} blocks in the primitive cell")
    largest = max(len(b.atoms) for b in found.blocks)
    if largest > settings.max_block_atoms:
        raise Refused(PrepReason.BLOCK_TOO_LARGE, f"a block of {largest} atoms")
    if found.dimensionality < 3 and not settings.keep_low_dimensional:
        raise Refused(PrepReason.LOW_DIMENSIONAL, f"the net is periodic in {found.dimensionality} directions")
    if not settings.keep_hydrogen_missing and not check(found.structure).h_complete:
        raise Refused(PrepReason.HYDROGEN_MISSING, "some atoms have fewer neighbours than their geometry asks for")


def _check_conformers(found: Decomposition, matched: Sequence[MatchedBlock | None], limit_ang: float) -> None:
    """Raises: Refused: a linker is too far from its conformer."""
    far = {
        block.key: fit.rmsd_ang
        for block, fit in zip(found.blocks, matched, strict=True)
        if fit is not None and fit.rmsd_ang > limit_ang
    }
    if far:
        key = max(far, key=lambda k: far[k])
        raise Refused(PrepReason.CONFORMER_TOO_DIFFERENT, f"{far[key]:.2f} Å for {key}")
