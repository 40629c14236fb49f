"""Archives of structure files: unpacked once into a cache under numbers of our own, never by a member's path."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from promof_hpc.errors import UsageError
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadLimits, ReadReason

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
BROKEN = (tarfile.TarError, zipfile.BadZipFile)
MANIFEST = "members.json"
REST = "(rest of the archive)"
STALE_S = 86_400  # an unpacking that was killed so long ago is swept away
CHUNK = 1 << 20


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds on what is unpacked.

    Attributes:
        members: entries of any kind.
        total_bytes: inflated bytes, together.
        ratio: inflated over packed bytes, together; CIFs pack by 5 to 25.
        ratio_from_bytes: the ratio is looked at only beyond so many inflated bytes.
    """

    members: int = 2_000_000
    total_bytes: int = 64 * 2**30
    ratio: float = 200.0
    ratio_from_bytes: int = 128 * 2**20


@dataclass(frozen=True)
class Member:
    """One structure file of an archive.

    Attributes:
        name: path inside the archive, as text.
        file: where it was unpacked; empty where it was refused.
        reason: why it was refused, a `ReadReason`; empty where it was not.
        detail: the sentence that goes with the reason.
    """

    name: str
    file: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class _Packed:
    """A member as an archive announces it; `open` gives its bytes."""

    name: str
    size: int
    kind: str  # file, folder, link, device
    open: Callable[[], IO[bytes] | None]


class _Bomb(Exception):
    """The archive inflates beyond its limits."""


def cache_folder() -> Path:
    """Where unpacked archives are kept: `$XDG_CACHE_HOME/promof`, or `~/.cache/promof`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "promof"


def unpack(
    archive: Path,
    wanted: Callable[[str], bool],
    *,
    cache: Path | None = None,
    limits: ArchiveLimits = ArchiveLimits(),
    read_limits: ReadLimits = DEFAULT_LIMITS,
) -> list[Member]:
    """Members of an archive, unpacked into the cache if they are not there yet.

    The cache folder of an archive (named after its path, size and time) appears whole or not at all. Links, devices
    and paths that leave the archive are refused and never opened; so is a member too large. An archive that inflates
    beyond the limits, or breaks off, ends with one refused member that stands for the rest.

    Args:
        wanted: whether a member of this name is a structure file; others are passed over.
        cache: parent folder; `cache_folder()` by default.

    Raises:
        UsageError: it is no archive, or the cache cannot be written.
    """
    facts = archive.stat()
    key = f"{archive.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\0{limits}\0{read_limits.file_bytes}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    parent = (cache or cache_folder()) / "archives"
    final = parent / f"{re.sub(r'[^A-Za-z0-9.-]', '_', archive.name)[:80]}-{digest}"
    try:
        if not (final / MANIFEST).is_file():
            _publish(archive, facts.st_size, parent, final, wanted, limits, read_limits)
        rows = json.loads((final / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"Cannot unpack {archive} into {parent} ({error.strerror or error}); "
            "make room or point XDG_CACHE_HOME at a folder that can be written."
        ) from error
    return [Member(name, str(final / file) if file else "", reason, detail) for name, file, reason, detail in rows]


def _publish(
    archive: Path,
    packed_bytes: int,
    parent: Path,
    final: Path,
    wanted: Callable[[str], bool],
    limits: ArchiveLimits,
    read_limits: ReadLimits,
) -> None:
    """Unpack beside the final folder and rename; whoever renames first wins."""
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=parent))
    try:
        members = _Unpacking(work, packed_bytes, limits, read_limits).run(archive, wanted)
        rows = [[m.name, m.file, m.reason, m.detail] for m in members]
        (work / MANIFEST).write_text(json.dumps(rows), encoding="utf-8")
        try:
            work.rename(final)
        except OSError:
            if not (final / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for left in parent.glob(".unpacking-*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)


class _Unpacking:
    """One pass over an archive, counting what it inflates to."""

    def __init__(self, folder: Path, packed_bytes: int, limits: ArchiveLimits, read_limits: ReadLimits):
        self.folder = folder
        self.packed_bytes = packed_bytes
        self.limits = limits
        self.read_limits = read_limits
        self.inflated = 0
        self.seen = 0

    def run(self, archive: Path, wanted: Callable[[str], bool]) -> list[Member]:
        """All structure files and refusals, in the order of the archive.

        Raises:
            UsageError: nothing can be read of it.
        """
        members: list[Member] = []
        try:
            for packed in _announce(archive, self._count):
                self.seen += 1
                if self.seen > self.limits.members:
                    raise _Bomb(f"more than {self.limits.members:,} members")
                member = self._take(packed, wanted)
                if member is not None:
                    members.append(member)
        except _Bomb as bomb:
            members.append(
                Member(REST, "", ReadReason.ARCHIVE_BOMB, f"{bomb}; unpack it yourself if you trust it, or split it")
            )
        except BROKEN as error:
            if self.seen == 0:
                raise UsageError(
                    f"{archive} is no archive that can be opened ({error}); give one of {', '.join(SUFFIXES)}."
                ) from error
            members.append(Member(REST, "", ReadReason.TRUNCATED, f"the archive breaks off ({error}); fetch it again"))
        return members

    def _take(self, packed: _Packed, wanted: Callable[[str], bool]) -> Member | None:
        """Unpack one member, or refuse it; None for folders and files that are no structures."""
        name = packed.name
        if packed.kind == "link":
            return Member(name, "", ReadReason.LINK, "a link inside an archive is not followed; pack the file itself")
        if packed.kind == "device":
            return Member(name, "", ReadReason.UNREADABLE, "not a regular file; pack regular files only")
        if leaves_archive(name):
            return Member(
                name, "", ReadReason.UNSAFE_PATH, "its path leads out of the archive; pack it with a relative path"
            )
        if packed.kind == "folder" or not wanted(name):
            return None
        if packed.size > self.read_limits.file_bytes:
            return self._too_big(name, packed.size)
        return self._store(packed)

    def _store(self, packed: _Packed) -> Member:
        number = self.seen
        file = Path(f"{number // 1000:04d}") / f"{number:07d}{_suffix(packed.name)}"
        (self.folder / file).parent.mkdir(exist_ok=True)
        try:
            source = packed.open()
            if source is None:
                return Member(packed.name, "", ReadReason.UNREADABLE, "it holds no data; pack it again")
            with source, (self.folder / file).open("wb") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    if target.tell() > self.read_limits.file_bytes:  # larger than it announced
                        return self._too_big(packed.name, target.tell())
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression that Python lacks
            return Member(packed.name, "", ReadReason.UNREADABLE, f"{error}; pack it plainly")
        except zipfile.BadZipFile as error:  # this member only: the directory of a zip stays good
            return Member(packed.name, "", ReadReason.TRUNCATED, f"{error}; pack it again")
        return Member(packed.name, str(file))

    def _too_big(self, name: str, size: int) -> Member:
        most = self.read_limits.file_bytes / 2**20
        return Member(name, "", ReadReason.TOO_BIG, f"{size / 2**20:.0f} MiB, more than {most:.0f} MiB; split it")

    def _count(self, size: int) -> None:
        self.inflated += size
        if self.inflated > self.limits.total_bytes:
            raise _Bomb(f"it inflates to more than {self.limits.total_bytes / 2**30:.0f} GiB")
        if self.inflated > self.limits.ratio_from_bytes and self.inflated > self.limits.ratio * self.packed_bytes:
            raise _Bomb(f"it inflates more than {self.limits.ratio:.0f}-fold")


def leaves_archive(name: str) -> bool:
    """Whether a member's path is absolute, has a drive letter, or climbs with `..`."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"[A-Za-z]:", name))


def _announce(archive: Path, count: Callable[[int], None]) -> Iterator[_Packed]:
    """Members in the order of the archive; `count` is told every inflated byte."""
    with archive.open("rb") as file:
        if file.read(2) == b"PK":
            yield from _announce_zip(archive, count)
        else:
            yield from _announce_tar(archive, count)


def _announce_zip(archive: Path, count: Callable[[int], None]) -> Iterator[_Packed]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = "folder" if info.is_dir() else "file"
            if stat.S_ISLNK(info.external_attr >> 16):
                kind = "link"
            yield _Packed(info.filename, info.file_size, kind, partial(_open_zipped, opened, info, count))


def _open_zipped(opened: zipfile.ZipFile, info: zipfile.ZipInfo, count: Callable[[int], None]) -> IO[bytes]:
    return cast("IO[bytes]", _Counted(opened.open(info), count, zipfile.BadZipFile))


def _announce_tar(archive: Path, count: Callable[[int], None]) -> Iterator[_Packed]:
    with archive.open("rb") as file:
        magic = file.read(6)
    inflaters: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}
    inflater = next((f for start, f in inflaters.items() if magic.startswith(start)), open)
    # as a stream: nothing is read twice, and what lies between the members is counted too
    with (
        _Counted(inflater(archive, "rb"), count, tarfile.ReadError) as stream,
        tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as opened,
    ):
        for info in opened:
            kind = "folder" if info.isdir() else "link" if info.issym() or info.islnk() else "device"
            yield _Packed(info.name, info.size, "file" if info.isreg() else kind, partial(opened.extractfile, info))
        rest = cast("IO[bytes]", opened.fileobj).read(CHUNK)
        if rest.strip(b"\0"):  # tarfile takes a broken header for the end
            raise tarfile.ReadError("a broken header, with data behind it")


class _Counted(io.RawIOBase):
    """Reads through to an inflating file and counts; every failure of the file becomes `failure`."""

    def __init__(self, source: IO[bytes], count: Callable[[int], None], failure: type[Exception]):
        self.source = source
        self.count = count
        self.failure = failure

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
        try:
            data = self.source.read(size)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise self.failure(str(error)) from error
        self.count(len(data))
        return data

    def close(self) -> None:
        """Close the file too."""
        self.source.close()
        super().close()


def _suffix(name: str) -> str:
    """The ending that says what a file is, in lower case: `.cif`, `.cif.gz`."""
    match = re.search(r"(\.[A-Za-z]+)(\.gz)?$", name)
    return match[0].lower() if match else ""
