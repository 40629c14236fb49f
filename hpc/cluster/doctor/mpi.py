"""Which MPI this Python has: one library that mpi4py can load, with a launcher and an srun plugin of the same kind.

`python -m hpc.cluster.doctor.mpi` prints all libraries that it could load, as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc.cluster.site_check import Check

LIBRARIES = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")  # the names that mpi4py tries, mpich's and Open MPI's
FORCING = ("MPI4PY_MPIABI", "MPI4PY_LIBMPI")
SPEAKS = {"mpich": ("pmi2", "cray"), "openmpi": ("pmix",)}
LAUNCHER_WORDS = {"HYDRA": "mpich", "Intel": "mpich", "OpenRTE": "openmpi", "Open MPI": "openmpi", "prte": "openmpi"}
LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
ASK_S = 30.0


def mpi(library: str, flag: str) -> Iterator[Check]:
    """That there is one MPI, that of the profile, with a launcher and an srun plugin of the same kind.

    Args:
        library: of the site profile: mpich, openmpi or other; empty: any.
        flag: with which srun starts ranks, such as --mpi=pmi2; empty: not told.
    """
    found = _libraries()
    forced = "".join(f"; {name}={os.environ[name]}" for name in FORCING if os.environ.get(name))
    try:
        said = _version()
    except (ImportError, RuntimeError) as error:
        why = f"mpi4py loads none ({str(error).strip().splitlines()[-1]}{forced})"
        remedy = f"unset {' and '.join(FORCING)}, or " if forced else ""
        remedy += "load the site's MPI module, or pip install 'promof-hpc[mpi-wheel]'"
        yield Check("one MPI", False, why, remedy)
        return
    kind = "openmpi" if said.startswith("Open MPI") else "mpich"
    places = ", ".join(f"{path} ({of})" for path, of in found.items())
    right = library in ("", "other") or ("Open MPI" if library == "openmpi" else "MPICH") in said
    remedy = "unload the module, or pip uninstall the wheel, of the one that is not meant"
    if not right:
        remedy = f"the profile says {library}: load it in `setup`, or correct mpi.library"
    detail = f"{said}{forced}; mpi4py finds {places or 'none by its name'}"
    yield Check("one MPI", right and len(found) <= 1, detail, remedy)
    yield _launcher(kind)
    if flag:
        yield plugin(kind, flag)


def plugin(kind: str, flag: str) -> Check:
    """Whether ranks of a kind of MPI meet under this option of srun."""
    name = flag.removeprefix("--mpi=")
    speaks = name.split("_")[0] in SPEAKS[kind]
    # Open MPI 5 becomes singletons under pmi2; an MPICH may have been built for PMIx, though the wheel was not
    passed = True if speaks else False if kind == "openmpi" and name == "pmi2" else None
    remedy = f"{kind} usually wants --mpi={SPEAKS[kind][0]} (mpi.srun_flag); inside a job the doctor sees who meets"
    return Check("MPI of srun", passed, f"{flag} for {kind}", remedy)


def thread_level(level: int, wanted: int) -> Check:
    """Whether MPI's level of threads is the one that rank 0 needs, which deals from a thread while it computes.

    Args:
        wanted: MPI_THREAD_MULTIPLE, the highest of four that follow each other.
    """
    name = LEVELS[max(0, level - wanted + 3)]
    return Check("MPI threads", level >= wanted, f"MPI_THREAD_{name}", "load an MPI that was built with threads")


def threads() -> Iterator[Check]:
    """That this MPI lets several threads communicate; starts it."""
    import mpi4py

    mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    yield thread_level(MPI.Query_thread(), MPI.THREAD_MULTIPLE)


def _version() -> str:
    """What the library that mpi4py loads says of itself; it is not started."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().strip("\0\n ").splitlines()[0].partition(",")[0].split())


def _libraries() -> dict[str, str]:
    """Kind of every MPI library that mpi4py could load, by its file; looked for in a child, since they would mix."""
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _load_all() -> dict[str, str]:
    prefixes = [sys.exec_prefix, sys.base_exec_prefix, *([site.getuserbase()] if site.ENABLE_USER_SITE else [])]
    folders = [f"{prefix}/lib" for prefix in dict.fromkeys(prefixes) if prefix != "/usr"]
    folders += [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    named = [os.path.join(folder, name) for folder in folders for name in LIBRARIES]
    named += os.environ.get("MPI4PY_LIBMPI", "").split(":")
    found: dict[str, str] = {}
    # by name alone first: once a library is loaded, its name finds no other
    for candidate in [*LIBRARIES, *(path for path in named if os.path.exists(path))]:
        with contextlib.suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(candidate, os.RTLD_LAZY | os.RTLD_LOCAL)
            version = loaded.MPI_Get_version
            found[_file_of(version)] = "openmpi" if hasattr(loaded, "ompi_mpi_comm_self") else "mpich"
    return found


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p)
    )  # fmt: skip


def _file_of(function: Any) -> str:
    """The file that a loaded function came from."""
    info = _Symbol()
    ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return os.path.realpath(os.fsdecode(info.file or b"?"))


def _launcher(kind: str) -> Check:
    """The mpiexec that local runs take: beside this Python, else in PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        return Check("mpiexec", None, "not found", "local runs of several ranks need one; jobs start theirs by srun")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ASK_S, check=False)
    said = done.stdout + done.stderr
    theirs = next((of for word, of in LAUNCHER_WORDS.items() if word in said), None)
    passed = None if theirs is None else theirs == kind
    detail = f"{path} is {theirs or 'of a kind that is not known'}, mpi4py's library {kind}"
    return Check("mpiexec", passed, detail, f"put the {kind} one first in PATH: ranks of another would not meet")


if __name__ == "__main__":
    print(json.dumps(_load_all()))
