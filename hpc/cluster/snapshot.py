"""A copy of this package in the run: what waits in the queue runs the code that it was submitted with."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir

ROOT = Path(__file__).parents[2]
PACKAGES = ("hpc", "promof_hpc", "data_prep", "slurm_templates")
LEFT_OUT = ("__pycache__", ".pytest_cache")


def snapshot_files() -> Iterator[Path]:
    """What is copied, relative to the folder that holds the packages."""
    for package in PACKAGES:
        for folder, folders, names in os.walk(ROOT / package):
            folders[:] = sorted(f for f in folders if f not in LEFT_OUT)
            yield from ((Path(folder) / name).relative_to(ROOT) for name in sorted(names) if not name.endswith(".pyc"))


def snapshot_place(run: RunDir) -> Path:
    """Where the copy of the present code lies in a run; jobs have it in PYTHONPATH."""
    digest = hashlib.sha256()
    for file in snapshot_files():
        digest.update(str(file).encode() + b"\0" + hashlib.sha256((ROOT / file).read_bytes()).digest())
    return run.code / digest.hexdigest()[:16]


def take_snapshot(run: RunDir) -> Path:
    """Make that copy unless it is there; returns its place.

    Raises:
        PromofError: the place cannot be written.
    """
    final = snapshot_place(run)
    if final.is_dir():
        return final
    temporary = run.code / f".{final.name}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        for file in snapshot_files():
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, temporary / file)
        os.rename(temporary, final)
    except FileExistsError:
        pass
    except OSError as error:
        raise PromofError(f"Cannot copy the code into {run.code}: {error.strerror}; free some space there.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
