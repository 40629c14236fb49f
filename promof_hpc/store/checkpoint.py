"""Checkpoints: folders that are published whole, with the digest of every file, and read only if all of it is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import explain, flush, list_names

MANIFEST = "manifest.json"
KEPT = 2

Write = Callable[[], object]  # writes a copy of a state that was taken before
Publish = Callable[[], bool]


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that can be used.

    Attributes:
        number: rounds that its state has learned from; 0 where there is none.
        folder: its files; None where there is none.
        skipped: newer ones that cannot be used, and why.
    """

    number: int
    folder: Path | None
    skipped: tuple[str, ...] = ()


def save_checkpoint(run: RunDir, number: int, copy: Callable[[Path], Write]) -> Publish:
    """Copy the state that has learned from the rounds below `number`; what is returned writes and publishes it.

    The folder gets its name only when every file and the manifest are on disk, so whatever is killed when, a reader
    sees all of it or nothing. All but the newest `KEPT` are removed then.

    Args:
        copy: given the folder that is to be filled, takes a copy of the state and returns what writes it there;
            folders inside it are allowed.

    Returns:
        what publishes; False from it says that a sound one of this number was there already. A damaged one is
        replaced. It may be called in another thread.

    Raises:
        PromofError: the place cannot be written; from both.
    """
    final = run.checkpoints / f"{number:05d}"
    if final.name in _names(run):
        if what_is_wrong(final) is None:
            return lambda: False
        _remove(final)
    temporary = run.checkpoints / f".{final.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    with _cleared_on_failure(final, temporary):
        temporary.mkdir(parents=True)
        write = copy(temporary)
    return lambda: _publish(run, final, temporary, write)


def _publish(run: RunDir, final: Path, temporary: Path, write: Write) -> bool:
    with _cleared_on_failure(final, temporary):
        write()
        _finish(temporary)
        try:
            os.rename(temporary, final)  # fails on a folder with files in it: the first writer wins
        except OSError:
            if final.name not in _names(run):
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            return False
        flush(run.checkpoints)
    for old in _names(run)[:-KEPT]:
        _remove(run.checkpoints / old)
    return True


@contextmanager
def _cleared_on_failure(final: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise explain(final, error) from error
        raise


def newest_checkpoint(run: RunDir) -> Found:
    """The newest checkpoint of which every file is as it was written; damaged ones are passed over and named."""
    skipped: list[str] = []
    for name in reversed(_names(run)):
        folder = run.checkpoints / name
        wrong = what_is_wrong(folder)
        if wrong is None:
            return Found(int(name), folder, tuple(skipped))
        skipped.append(f"{folder}: {wrong}")
    return Found(0, None, tuple(skipped))


def what_is_wrong(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it is as it was written."""
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, digest in stated.items():
        try:
            if _sha256(folder / name) != digest:
                return f"{name} is damaged"
        except OSError:
            return f"{name} is missing"
    return None


def sweep_checkpoints(run: RunDir) -> None:
    """Remove what killed writers left behind; only for the process that leads the run."""
    if run.checkpoints.is_dir():
        for path in run.checkpoints.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _names(run: RunDir) -> list[str]:
    return [name for name in list_names(run.checkpoints) if name.isdigit()]


def _finish(folder: Path) -> None:
    """Write the manifest and flush everything to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digests = {str(p.relative_to(folder)): _sha256(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1, sort_keys=True), encoding="utf-8")
    for path in [*files, folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        flush(path)


def _remove(folder: Path) -> None:
    """Take the name away first: what is half removed must not be read as a checkpoint."""
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PromofError(f"Cannot remove the checkpoint {folder}: {error.strerror}; remove it yourself.") from error
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
