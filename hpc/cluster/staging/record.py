"""A folder of staged files: its record with the digest of every file, and copying that is compared with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.shard import flush, replace, replace_text

RECORD, ENVIRONMENT = "staged.json", "environment"
DIGITS = 12


@dataclass(frozen=True)
class File:
    """SHA-256 (hex) and bytes of a file."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> File:
        """What is on disk."""
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


@dataclass(frozen=True)
class Item:
    """What is staged for one key of a configuration, or the environment.

    Attributes:
        key: such as policy.weights.
        source: where it was copied from.
        path: what the key is to be set to, relative to the folder of the staged; its first part is the item's own.
        files: by path relative to that folder.
        unpacked_bytes: of an archive.
    """

    key: str
    source: str
    path: str
    files: Mapping[str, File]
    unpacked_bytes: int = 0


@dataclass(frozen=True)
class Staged:
    """A folder with all that a configuration needs; `notes` say what needs nothing."""

    target: Path
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all files with their names."""
        return digest_of({name: file for item in self.items for name, file in item.files.items()})

    def set_options(self) -> list[str]:
        """Options with which a configuration uses the copies, quoted for a shell."""
        values = {item.key: _yaml(str(self.target / item.path)) for item in self.items if item.key != ENVIRONMENT}
        return [f"--set {shlex.quote(f'{key}={value}')}" for key, value in values.items()]


def read_staged(target: Path) -> Staged:
    """What a folder holds, by its record.

    Raises:
        UsageError: nothing was staged there.
        PromofError: the record is damaged.
    """
    path = target / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        items = [
            Item(**{**item, "files": {name: File(**file) for name, file in item["files"].items()}})
            for item in content["items"]
        ]
    except FileNotFoundError as error:
        raise UsageError(f"Nothing is staged in {target} ({RECORD} is missing); run `promof stage` first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromofError(f"{path} cannot be read ({error}); run `promof stage` again.") from error
    return Staged(target, tuple(items), tuple(content.get("notes", ())))


def write_staged(staged: Staged) -> None:
    """Write the record of a folder whose files are all there."""
    content = {"items": [asdict(item) for item in staged.items], "notes": staged.notes}
    replace_text(staged.target / RECORD, json.dumps(content, indent=1) + "\n")
    flush(staged.target)


def put(source: Path, final: Path, file: File) -> bool:
    """Copy a file unless it is there with this content; whole or not at all, and read back; whether it was copied.

    Raises:
        OSError: it cannot be read or written (a PromofError of the store has it as its cause).
        PromofError: what came out differs.
    """

    def write(temporary: Path) -> None:
        shutil.copyfile(source, temporary)
        flush(temporary)
        found = File.of(temporary)
        if found != file:
            raise PromofError(
                f"{source} was copied to {final.parent}, and the copy differs ({found.sha256[:DIGITS]}…, not "
                f"{file.sha256[:DIGITS]}…): it changed meanwhile, or a disk is faulty; run `promof stage` again."
            )

    if final.is_file() and final.stat().st_size == file.bytes and File.of(final) == file:
        return False
    final.parent.mkdir(parents=True, exist_ok=True)
    replace(final, write)
    flush(final.parent)
    return True


def remove_left(folder: Path) -> None:
    """Remove what a killed process has left; nobody else may be at work in this folder."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def refused(error: OSError | PromofError) -> str:
    """What the operating system refused; empty where something else is wrong."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return (cause.strerror or str(cause)) if isinstance(cause, OSError) else ""


def digest_of(files: Mapping[str, File]) -> str:
    """SHA-256 (hex) of files and their names."""
    lines = [f"{name}\0{file.sha256}\n" for name, file in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _yaml(value: str) -> str:
    """A text that `--set` reads back as itself."""
    with contextlib.suppress(yaml.YAMLError):
        node = yaml.compose(value, Loader=yaml.BaseLoader)
        if isinstance(node, yaml.ScalarNode) and node.value == value:
            return value
    return str(yaml.safe_dump(value, default_style='"', width=len(value) * 10 + 10)).strip()
