"""A Python environment as one archive, for nodes that read thousands of small files from a shared disk too slowly.

What moves: everything below `sys.prefix`, and of the Python that it was made from the program, the standard library and
libpython. Unpacked, `environment/python` starts it. What does not move: shared libraries of the system and of modules
(CUDA's driver, a module's MPI), packages installed as links to a checkout (`pip install -e`), libraries with absolute
paths compiled in (wheels have none), `activate` scripts, and a conda environment's files that name its prefix.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from promof_hpc.errors import UsageError

PREFIX, BASE, ORIGIN, START = "prefix", "base", "origin.json", "python"
OF_THE_SYSTEM = (Path("/"), Path("/usr"), Path("/usr/local"))
LEFT_OUT = ("site-packages", "dist-packages", "test")
COMPRESSION = 1  # a third of the time of the default for a few per cent more bytes
FIRST_LINE = 256


@dataclass(frozen=True)
class Interpreter:
    """An environment and the Python that it was made from.

    Attributes:
        prefix: of the environment.
        base: prefix of that Python; the same where there is no virtual environment.
        parts: files and folders of that Python without which it does not start.
    """

    prefix: Path
    base: Path
    parts: tuple[Path, ...]

    @classmethod
    def here(cls) -> Interpreter:
        """The one that runs this.

        Raises:
            UsageError: it is the system's own.
        """
        prefix, base = Path(sys.prefix), Path(sys.base_prefix)
        if prefix == base and prefix in OF_THE_SYSTEM:
            raise UsageError(
                f"This Python is the system's own ({prefix}), which cannot be packed; install promof-hpc into a "
                "virtual environment (python -m venv) and stage from there."
            )
        folder, shared = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
        program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        wanted = [program, Path(sysconfig.get_path("stdlib")), *([Path(folder) / shared] if shared else [])]
        return cls(prefix, base, tuple(p for p in wanted if p.exists() and p.is_relative_to(base)))

    def files(self) -> Iterator[tuple[Path, str]]:
        """Every file and link, with its name in the archive."""
        for folder in _walk(self.prefix):
            yield folder, f"{PREFIX}/{folder.relative_to(self.prefix)}"
        for part in self.parts if self.base != self.prefix else ():
            for file in _walk(part, LEFT_OUT) if part.is_dir() else [part]:
                yield file, f"{BASE}/{file.relative_to(self.base)}"

    def fingerprint(self) -> str:
        """Digest (hex) of names, sizes and times: another one after anything was installed."""
        digest = hashlib.sha256()
        for file, name in self.files():
            status = file.lstat()
            digest.update(f"{name}|{status.st_size}|{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def _walk(folder: Path, left_out: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files and links below a folder, in order; links to folders are not followed."""
    for here, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        folders[:] = sorted(name for name in folders if name not in links and name not in left_out)
        yield from (Path(here, name) for name in sorted([*names, *links]))


def pack(interpreter: Interpreter, path: Path) -> int:
    """Write the archive; returns the bytes that it needs unpacked."""
    total = 0
    with tarfile.open(path, "w:gz", compresslevel=COMPRESSION) as archive:
        for file, name in interpreter.files():
            entry = archive.gettarinfo(file, name)
            if entry is None:  # a socket
                continue
            if entry.issym():
                entry.linkname = _moved(entry.linkname, name, interpreter)
            if entry.isreg():
                with file.open("rb") as content:
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry)
            total += entry.size
        origin = json.dumps({"prefix": str(interpreter.prefix), "base": str(interpreter.base)}).encode()
        entry = tarfile.TarInfo(ORIGIN)
        entry.size = len(origin)
        archive.addfile(entry, io.BytesIO(origin))
    return total


def _moved(target: str, name: str, interpreter: Interpreter) -> str:
    """Where a link points to in the archive; links within one of the two trees become relative."""
    path = Path(target)
    if not path.is_absolute():
        return target
    homes = {PREFIX: interpreter.prefix, **({BASE: interpreter.base} if interpreter.base != interpreter.prefix else {})}
    for home, old in homes.items():
        # a program's name may itself be a link: only the file that it leads to is in the archive
        found = path.resolve() if home == BASE else path
        if found.is_relative_to(old):
            return os.path.relpath(f"{home}/{found.relative_to(old)}", PurePosixPath(name).parent)
    return target


def unpack(archive: Path, folder: Path, final: Path) -> None:
    """Unpack an archive into a folder that will be renamed to `final`, and let it know where it is then."""
    with tarfile.open(archive) as packed:
        packed.extraction_filter = lambda member, _: member  # our own file, whose digest was compared
        packed.extractall(folder)
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    settings = folder / PREFIX / "pyvenv.cfg"
    if settings.exists():
        lines = settings.read_text(encoding="utf-8").splitlines()
        moved = [f"home = {final / BASE / 'bin'}" if line.startswith("home") else line for line in lines]
        settings.write_text("\n".join(moved) + "\n", encoding="utf-8")
    for script in (folder / PREFIX / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            _point_to(script, origin["prefix"].encode(), str(final / PREFIX).encode())
    start = folder / START
    start.write_text(_start(final, BASE if (folder / BASE).exists() else PREFIX), encoding="utf-8")
    start.chmod(0o755)


def _point_to(script: Path, old: bytes, new: bytes) -> None:
    """Let the first line of a script name the moved Python."""
    with script.open("rb") as file:
        first = file.readline(FIRST_LINE)
        rest = file.read() if first.startswith(b"#!" + old) else b""
    if rest:
        script.write_bytes(first.replace(old, new) + rest)


def _start(final: Path, base: str) -> str:
    """A shell script that starts the moved Python: its libpython is found by name only."""
    libraries, program = final / base / "lib", final / PREFIX / "bin" / "python"
    return (
        "#!/bin/sh\n"
        f'LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'
        "export LD_LIBRARY_PATH\n"
        f'exec "{program}" "$@"\n'
    )
