"""A library of structures: what it holds, listed in a fixed order, and each entry read when it is asked for."""

from __future__ import annotations

import difflib
import importlib.util
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from promof_hpc.errors import Refused, UsageError
from promof_hpc.screen import archive
from promof_hpc.screen.refusals import ReadReason, ReadStructure
from promof_hpc.screen.shards import is_run, list_run
from promof_hpc.screen.sources import LISTERS, RefusedSource, Source, list_file, lister_of, stem_of
from promof_hpc.structure import Structure, canonical, primitive

COREMOF_SETS = ("2019-ASR", "2019-FSR", "2014")
IN_FOLDERS = (".cif", ".cif.gz", ".extxyz", ".xyz")
DEMO = Path(__file__).parents[1] / "data" / "demo"


@dataclass(frozen=True)
class Entry:
    """One structure of a library.

    Attributes:
        name: unique in the library and printable; the file's path inside the library without its ending, then
            `#` and the data block, frame or row where a file holds several.
        source: what reads it.
    """

    name: str
    source: Source

    def load(self) -> ReadStructure:
        """The crystal as it lies there, with the reader's notes.

        Raises:
            Refused: it cannot be read right; the detail names the entry, what is wrong and the remedy.
        """
        try:
            return self.source.load()
        except Refused as refusal:
            raise Refused(refusal.reason, f"{self.name}: {refusal.detail}") from refusal
        except OSError as error:
            raise Refused(
                ReadReason.UNREADABLE, f"{self.name}: {error.strerror or error}; check the file and its permissions"
            ) from error

    def read(self, *, primitive: bool = True) -> Structure:
        """The crystal in canonical form, reduced to its primitive cell unless told otherwise.

        Raises:
            Refused: as `load`.
        """
        return to_canonical(self.load().structure, reduce=primitive)


def to_canonical(structure: Structure, *, reduce: bool = True) -> Structure:
    """The canonical form, of the primitive cell if `reduce`."""
    return canonical(primitive(structure) if reduce else structure)


@dataclass(frozen=True)
class Library:
    """Entries in a fixed order: files sorted by path, the structures of a file in its own order.

    Attributes:
        name: as the user gave it.
        entries: at least one.
    """

    name: str
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)


def scan(library: str | Path) -> Library:
    """List a library without reading its structures.

    A library is a folder (searched to the bottom for CIF and extended XYZ files), an archive of one, a single such
    file, an ASE database, a run directory or one of its shards, or a name: `coremof:2019-ASR`, `coremof:2019-FSR`,
    `coremof:2014`, or `demo`. Hidden files are passed over; files are linked to freely, linked folders are not entered.

    Raises:
        UsageError: it does not exist, is of no known kind, or holds no structures.
    """
    text = str(library)
    found: Iterator[tuple[str, Source]]
    if text == "demo":
        found = _in_folder(DEMO)
    elif text.startswith("coremof:"):
        found = _in_archive(_coremof_archive(text))
    else:
        path = Path(text).expanduser()
        found = _in_path(path, text)
    entries = tuple(_name_uniquely(found))
    if not entries:
        raise UsageError(
            f"{text} holds no structures; put files ending in {', '.join(IN_FOLDERS)} into it, or give another library."
        )
    return Library(text, entries)


def _in_path(path: Path, text: str) -> Iterator[tuple[str, Source]]:
    if path.is_dir():
        return list_run(path) if is_run(path) else _in_folder(path)
    if not path.exists():
        raise UsageError(f"There is no library '{text}'.{_near(path, text)} {_kinds()}")
    if path.name.lower().endswith(archive.SUFFIXES):
        return _in_archive(path)
    lister = lister_of(path.name)
    if lister is None:
        raise UsageError(f"{text} is no library: its ending says nothing. {_kinds()}")
    return list_file(path, stem_of(path.name), lister)


def _kinds() -> str:
    kinds = sorted({*IN_FOLDERS, *LISTERS, *archive.SUFFIXES})
    names = [*(f"coremof:{s}" for s in COREMOF_SETS), "demo"]
    return f"Give a folder, a file ({', '.join(kinds)}) or a name ({', '.join(names)})."


def _near(path: Path, text: str) -> str:
    """A hint at the nearest file or name."""
    names = [*(f"coremof:{s}" for s in COREMOF_SETS), "demo"]
    beside = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    if near:
        return f" Did you mean {visible(str(path.parent / near[0]))}?"
    near = difflib.get_close_matches(text, names, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _coremof_archive(text: str) -> Path:
    wanted = text.partition(":")[2]
    if wanted not in COREMOF_SETS:
        near = difflib.get_close_matches(wanted, COREMOF_SETS, n=1, cutoff=0.3)
        hint = f" Did you mean coremof:{near[0]}?" if near else ""
        raise UsageError(f"CoRE MOF has no set '{wanted}'.{hint} Known: {', '.join(COREMOF_SETS)}.")
    spec = importlib.util.find_spec("CoRE_MOF")
    if spec is None or spec.origin is None:
        raise UsageError(f"{text} comes from the package core-mof, which is not installed; run: pip install core-mof")
    path = Path(spec.origin).parent / "data" / f"{wanted}.tar.xz"
    if not path.is_file():
        raise UsageError(f"{path} is missing; run: pip install --force-reinstall core-mof")
    return path


def _is_structure_file(name: str) -> bool:
    last = name.rstrip("/").rpartition("/")[2]
    return last.lower().endswith(IN_FOLDERS) and not last.startswith(".") and "__MACOSX" not in name


def _in_folder(folder: Path) -> Iterator[tuple[str, Source]]:
    """Structure files below a folder; folders that cannot be opened are refused entries."""
    unreadable: list[OSError] = []
    files = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if _is_structure_file(name)]
    for error in unreadable:
        detail = f"{error.strerror}; check the permissions of the folder"
        yield os.path.relpath(str(error.filename), folder), RefusedSource(ReadReason.UNREADABLE, detail)
    for path in sorted(files):
        yield from _file_entries(path, path.relative_to(folder).as_posix())


def _in_archive(path: Path) -> Iterator[tuple[str, Source]]:
    """Structure files of an archive, and what was refused of it."""
    for member in sorted(archive.unpack(path, _is_structure_file), key=lambda m: m.name):
        if member.reason:
            yield stem_of(member.name), RefusedSource(ReadReason(member.reason), member.detail)
        else:
            yield from _file_entries(Path(member.file), member.name.removeprefix("./"))


def _file_entries(path: Path, name: str) -> Iterator[tuple[str, Source]]:
    lister = lister_of(name)
    if lister is not None:
        yield from list_file(path, stem_of(name), lister)


def visible(name: str) -> str:
    """A name as printable text: bytes that are not UTF-8, control and direction characters become escapes."""
    return "".join(_visible_character(c) for c in name)


def _visible_character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return c.encode("unicode_escape").decode() if hidden else c


def _name_uniquely(found: Iterable[tuple[str, Source]]) -> Iterator[Entry]:
    """Entries under printable names; a name that is taken gets `~2`, `~3`, in the order of the listing."""
    taken: set[str] = set()
    for name, source in found:
        plain = visible(name)
        unique, copies = plain, 1
        while unique in taken:
            copies += 1
            unique = f"{plain}~{copies}"
        taken.add(unique)
        yield Entry(unique, source)
