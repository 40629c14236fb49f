"""Write-once files: published whole, if absent, and carrying the digest of their content."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from promof_hpc.errors import PromofError

SCHEMA_VERSION = 1
Column = np.ndarray | list[str]


@dataclass(frozen=True)
class Shard:
    """The content of one shard.

    Attributes:
        arrays: numeric arrays or lists of text by name; ragged data is a flat array beside its `ptr`.
        attrs: scalars and text that describe the shard as a whole.
    """

    arrays: Mapping[str, Column]
    attrs: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 (hex) of names, types, shapes and bytes, in the order of the names."""
        h = hashlib.sha256()
        for name in sorted(self.arrays):
            value = self.arrays[name]
            if isinstance(value, list):
                h.update(f"{name}|text|{len(value)}|".encode())
                for text in value:
                    raw = _storable(text).encode()
                    h.update(len(raw).to_bytes(8, "little") + raw)
            else:
                h.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
                h.update(np.ascontiguousarray(value).tobytes())
        for name in sorted(self.attrs):
            h.update(f"{name}={self.attrs[name]!r}|".encode())
        return h.hexdigest()


class CorruptShard(PromofError):
    """A shard cannot be read, or its content does not have the digest that it states."""


def publish(path: Path, write: Callable[[Path], None]) -> bool:
    """Write a file under a temporary name, flush it to disk and give it its name if nobody has yet.

    A reader therefore sees the whole file or none, whatever is killed when. Hard links are used because
    linking onto an existing name fails, also on network file systems, where renaming would replace it.

    Args:
        path: final name; its folder must exist.
        write: fills the temporary file whose path it is given.

    Returns:
        True if this call published the file, False if it was there already (the first writer wins).

    Raises:
        PromofError: disk full, quota, folder read-only, or no hard links on this file system.
    """
    temporary = path.parent / f".{path.name[:80]}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(temporary)
        flush(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        flush(path.parent)
    except OSError as error:
        raise explain(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def publish_text(path: Path, text: str) -> bool:
    """`publish` for a small text file."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return publish(path, write)


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that may be written again (tables, pages), whole or not at all; see `publish` for `write`.

    Raises:
        PromofError: see `publish`.
    """
    temporary = path.parent / f".{path.name[:80]}.{os.getpid()}.tmp"
    try:
        write(temporary)
        flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise explain(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """`replace` for text that is at hand."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    replace(path, write)


def write_shard(path: Path, shard: Shard) -> bool:
    """Publish `shard` as HDF5 at `path`; see `publish` for what is returned and raised."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, value in shard.arrays.items():
                if isinstance(value, list):
                    file.create_dataset(name, data=[_storable(text) for text in value], dtype=h5py.string_dtype())
                else:
                    compression = {"compression": "gzip", "compression_opts": 1} if value.nbytes > 4096 else {}
                    file.create_dataset(name, data=value, **compression)
            file.attrs.update({"schema_version": SCHEMA_VERSION, "content_sha256": shard.digest(), **shard.attrs})

    return publish(path, write)


def read_shard(path: Path) -> Shard:
    """Read a shard and check its digest.

    Raises:
        CorruptShard: truncated, damaged, or not one of our shards.
    """
    with _opened(path) as file:
        arrays = {name: _read_dataset(file, name) for name in file}
        attrs = {name: _plain(value) for name, value in file.attrs.items()}
        stated, version = attrs.pop("content_sha256"), attrs.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise CorruptShard(f"{path} has schema version {version}, this promof reads {SCHEMA_VERSION}.")
    shard = Shard(arrays, attrs)
    if shard.digest() != stated:
        raise CorruptShard(f"{path} is damaged (content digest differs); delete it and run `promof resume`.")
    return shard


def read_column(path: Path, name: str) -> Column:
    """One column of a shard, without a look at the rest or its digest.

    Raises:
        CorruptShard: it cannot be read.
    """
    with _opened(path) as file:
        return _read_dataset(file, name)


def ragged(arrays: list[np.ndarray], tail: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Arrays [n_i, *tail] as one flat array and `ptr` int64 [len + 1]; item i is flat[ptr[i]:ptr[i + 1]]."""
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
    flat = np.concatenate(arrays) if arrays else np.zeros((0, *tail))
    return flat, ptr


def list_names(folder: Path, suffix: str = "") -> list[str]:
    """Published names in `folder`, sorted; empty if there is no such folder.

    The folder is listed, never a name looked up: network file systems remember that a name was absent.
    """
    try:
        return sorted(n for n in os.listdir(folder) if n.endswith(suffix) and not n.startswith("."))
    except FileNotFoundError:
        return []


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A shard open for reading.

    Raises:
        CorruptShard: what the block reads cannot be read.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise CorruptShard(f"{path} cannot be read ({error}); delete it and run `promof resume` to redo it.") from error


def _read_dataset(file: h5py.File, name: str) -> Column:
    """By h5py's thin layer: a shard has dozens of small columns, for which h5py's objects cost more than reading."""
    dataset = h5py.h5d.open(file.id, name.encode())
    values = np.empty(dataset.shape, dataset.dtype)
    if values.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return [text.decode() for text in values]
    return values


def _storable(text: str) -> str:
    """Text that HDF5 can hold: bytes that are not UTF-8 and zeros are kept visibly."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _plain(value: object) -> str | int | float | bool:
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, str | int | float | bool):
        return plain
    raise ValueError(f"unexpected attribute {plain!r}")


def flush(path: Path) -> None:
    """See to it that a file or folder is on disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(path: Path, error: OSError) -> PromofError:
    """What the operating system refused, with its remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space and run `promof resume`, nothing committed is lost",
        errno.EDQUOT: "your quota is used up; free some space and run `promof resume`, nothing committed is lost",
        errno.EFBIG: "a file-size limit was hit; raise it (ulimit -f) and run `promof resume`",
        errno.EROFS: "the file system is read-only; choose another run directory with --run",
        errno.EACCES: "you may not write there; choose another run directory with --run or change its permissions",
        errno.EPERM: "this file system has no hard links; choose another run directory with --run",
        errno.ENOTSUP: "this file system has no hard links; choose another run directory with --run",
        errno.ENAMETOOLONG: "the path is too long; choose a shorter run directory with --run",
    }
    return PromofError(f"Cannot write {path}: {remedies.get(error.errno or 0, error.strerror or str(error))}.")
