"""Files that hold structures: what each kind lists, and how one entry of it is read later, maybe by another process."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from promof_hpc.errors import Refused, UsageError
from promof_hpc.screen.cif import block_names, read_bytes, read_cif
from promof_hpc.screen.contacts import check_physical
from promof_hpc.screen.extxyz import Frame, list_frames, read_file_frame
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadReason, ReadStructure
from promof_hpc.screen.shards import list_shard
from promof_hpc.structure import Structure

SQLITE_MAGIC = b"SQLite format 3\0"


class Source(Protocol):
    """Where an entry comes from; picklable, so that other processes can read it."""

    def load(self) -> ReadStructure:
        """Read it.

        Raises:
            Refused: it cannot be read right.
        """
        ...


Lister = Callable[[Path], Iterable[tuple[str, Source]]]


@dataclass(frozen=True)
class Stamp:
    """A file as it was when it was listed: reading another one is refused."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now."""
        facts = path.stat()
        return cls(path, facts.st_size, facts.st_mtime_ns)

    @contextmanager
    def unchanged(self) -> Iterator[Path]:
        """The path, checked before and after its use.

        Raises:
            Refused: the file is gone or another one.
        """
        self._check()
        try:
            yield self.path
        except Refused:
            self._check()  # what was read half-written is refused for that, not for its syntax
            raise
        self._check()

    def _check(self) -> None:
        try:
            now = Stamp.of(self.path)
        except FileNotFoundError:
            raise Refused(ReadReason.CHANGED, "the file is gone since the library was listed; put it back") from None
        if now != self:
            raise Refused(
                ReadReason.CHANGED, "the file has changed since the library was listed; keep the library still"
            )


@dataclass(frozen=True)
class CifSource:
    """A CIF file, or one of its data blocks."""

    stamp: Stamp
    block: str | None = None

    def load(self) -> ReadStructure:
        """Read it.

        Raises:
            Refused: it cannot be read right.
        """
        with self.stamp.unchanged() as path:
            return read_cif(path, block=self.block)[0]


@dataclass(frozen=True)
class FrameSource:
    """One frame of an extended XYZ file."""

    stamp: Stamp
    frame: Frame

    def load(self) -> ReadStructure:
        """Read it.

        Raises:
            Refused: it cannot be read right.
        """
        with self.stamp.unchanged() as path:
            return read_file_frame(path, self.frame)


@dataclass(frozen=True)
class RowSource:
    """One row of an ASE database."""

    stamp: Stamp
    row: int

    def load(self) -> ReadStructure:
        """Read it.

        Raises:
            Refused: it cannot be read right.
        """
        from ase.db import connect

        with self.stamp.unchanged() as path:
            try:
                atoms = connect(str(path), type="db").get_atoms(id=self.row)
            except (KeyError, ValueError, sqlite3.Error) as error:
                raise Refused(
                    ReadReason.MALFORMED, f"row {self.row} cannot be read ({error}); write it again"
                ) from error
        if not atoms.pbc.all():
            raise Refused(ReadReason.NON_PERIODIC, "it is not periodic in three directions; give it a full cell")
        structure = Structure.from_ase(atoms)
        check_physical(structure)
        return ReadStructure(structure, str(self.row))


@dataclass(frozen=True)
class RefusedSource:
    """An entry that was turned away when the library was listed."""

    reason: ReadReason
    detail: str

    def load(self) -> ReadStructure:
        """Say why.

        Raises:
            Refused: always.
        """
        raise Refused(self.reason, self.detail)


def lister_of(name: str) -> Lister | None:
    """What lists a file of this ending; None where nothing does."""
    lower = name.lower()
    return next((lister for suffix, lister in LISTERS.items() if lower.endswith(suffix)), None)


def stem_of(name: str) -> str:
    """A file's path without the ending that says its kind."""
    lower = name.lower()
    for suffix in sorted(LISTERS, key=len, reverse=True):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def list_file(path: Path, stem: str, lister: Lister) -> Iterator[tuple[str, Source]]:
    """Entries of one file; what cannot even be listed is one refused entry."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Refused(ReadReason.UNREADABLE, "not a regular file; put the file itself there")
        for part, source in lister(path):
            yield (f"{stem}#{part}" if part else stem), source
    except FileNotFoundError:
        yield stem, RefusedSource(ReadReason.CHANGED, "the file is gone, or a link to nothing; put it back")
    except OSError as error:
        detail = f"{error.strerror or error}; check the file and its permissions"
        yield stem, RefusedSource(ReadReason.UNREADABLE, detail)
    except Refused as refusal:
        yield stem, RefusedSource(ReadReason(refusal.reason), refusal.detail)


def _list_cif(path: Path) -> Iterator[tuple[str, Source]]:
    stamp = Stamp.of(path)
    if stamp.size > DEFAULT_LIMITS.file_bytes:
        yield "", CifSource(stamp)
        return
    data = read_bytes(path)
    packed = data[:2] in (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff")
    if not packed and data.lower().count(b"data_") < 2:  # nearly every file; the others are parsed to be listed
        yield "", CifSource(stamp)
        return
    try:
        names = block_names(data)
    except Refused:  # reading it says why
        names = []
    if len(names) < 2:
        yield "", CifSource(stamp)
        return
    for name in names:
        yield name, CifSource(stamp, name)


def _list_extxyz(path: Path) -> Iterator[tuple[str, Source]]:
    stamp = Stamp.of(path)
    if stamp.size == 0:
        raise Refused(ReadReason.EMPTY, "the file is empty; fetch or write it again")
    frames = list(list_frames(path))
    for frame in frames:
        yield (frame.name if len(frames) > 1 else ""), FrameSource(stamp, frame)


def _list_database(path: Path) -> Iterator[tuple[str, Source]]:
    stamp = Stamp.of(path)
    with path.open("rb") as file:
        if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
            raise UsageError(f"{path} is no ASE database (SQLite); write it with ase.db.connect('NAME.db').")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = [row for (row,) in database.execute("SELECT id FROM systems ORDER BY id")]
    except sqlite3.Error as error:
        raise UsageError(f"{path} is no ASE database that can be read ({error}); write it again.") from error
    for row in rows:
        yield str(row), RowSource(stamp, row)


LISTERS: dict[str, Lister] = {
    ".cif": _list_cif,
    ".cif.gz": _list_cif,
    ".extxyz": _list_extxyz,
    ".xyz": _list_extxyz,
    ".db": _list_database,
    ".h5": list_shard,
}
