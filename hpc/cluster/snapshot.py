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


def take_snapshot(run: RunDir) -> Path:
    """The copy of the present code in a run, made unless it is there already; jobs have it in PYTHONPATH.

    Raises:
        PromofError: the place cannot be written.
    """
    files = list(snapshot_files())
    final = run.code / _digest(files)
    if final.is_dir():
        return final
    temporary = run.code / f".{final.name}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        for file in files:
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


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file).encode() + b"\0" + hashlib.sha256((ROOT / file).read_bytes()).digest())
    return digest.hexdigest()[:16]
