"""One copy a node of what is staged, on the node's own disk: every task of a step asks, one copies, the others wait.

Weights that were staged are read from there by the jobs of a site with a `scratch` (`weights_near`).
`python -m hpc.cluster.staging.node DIR SCRATCH`, called by every task of a step, copies all and prints where it is;
`environment/python` there starts a staged environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from hpc.cluster.site import Site
from hpc.cluster.staging.record import DIGITS, ENVIRONMENT, RECORD, File, Staged, put, read_staged, refused
from hpc.exit_codes import DONE
from promof_hpc.config import load_config
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir

log = logging.getLogger("promof.staging")
WAIT_S = 900.0
POLL_S = 0.1
CHECKED = "checked"
ELSEWHERE = "choose another scratch, on the node's own disk, in the site profile"
MARGIN = 1.02


def weights_near(run: RunDir, weights: Path | None) -> Path | None:
    """Where a process reads the weights of a run: on its node's own disk, if it can.

    That is inside a job of Slurm whose site names a scratch, and for weights that were staged; else where the
    configuration says, which is also said where no copy can be made.
    """
    if weights is None or "SLURM_JOB_ID" not in os.environ or not run.site.exists():
        return weights
    scratch, target = load_config(Site, run.site).scratch, weights.parent.parent
    if not scratch or not (target / RECORD).exists():
        return weights
    try:
        staged = read_staged(target)
        own = tuple(item for item in staged.items if target / item.path == weights)
        if own:
            return node_local(replace(staged, items=own), Path(os.path.expandvars(scratch))) / own[0].path
    except PromofError as error:
        log.warning("%s reads %s itself: %s", socket.gethostname(), weights, error)
    return weights


def node_local(
    staged: Staged, scratch: Path, wait_s: float = WAIT_S, environment: Mapping[str, str] = os.environ
) -> Path:
    """The copy on this node of what was staged, made by the first that asks; paths in it are the same.

    The copy appears whole under its name. It is compared with the record once in every step, and made anew where it
    differs. An environment lies unpacked in `environment/`; `environment/python` starts it.

    Args:
        scratch: folder on the node's own disk, which several users may share.
        wait_s: seconds to wait for another task at most; if that one dies, the next takes over.
        environment: tells the step.

    Raises:
        PromofError: no room, no permission, a copy that differs from the record, or nobody has finished in time.
    """
    home = _own_folder(scratch)
    final = home / staged.digest[:DIGITS]
    with _turn(home / f"{final.name}.lock", staged.target, wait_s):
        step = _step(environment)
        if final.is_dir() and _was_checked(final, step):
            return final
        if not final.is_dir() or not _is_sound(final, staged):
            _make(final, staged)
        (final / CHECKED).write_text(step, encoding="utf-8")
    return final


def _own_folder(scratch: Path) -> Path:
    """A folder of this user alone on a disk that others use, too."""
    home = scratch / f"promof-{os.getuid()}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        status = home.lstat()
    except OSError as error:
        raise PromofError(f"Cannot use {scratch} on {socket.gethostname()}: {error.strerror}; {ELSEWHERE}.") from error
    if home.is_symlink() or status.st_uid != os.getuid():
        raise PromofError(f"{home} belongs to somebody else; {ELSEWHERE}.")
    return home


@contextlib.contextmanager
def _turn(path: Path, target: Path, wait_s: float) -> Iterator[None]:
    """Be the one task of this node that looks after the copy; a dead one's turn ends with it."""
    deadline = time.monotonic() + wait_s
    with path.open("a+b") as file:
        while not _locked(file, path):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another task"
                raise PromofError(
                    f"Waited {wait_s:g} s for {holder} on {socket.gethostname()} to copy {target} to {path.parent}; if "
                    "the disk is only slow, give --wait-s more."
                )
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()}".encode())
        file.flush()
        yield


def _locked(file: BinaryIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PromofError(f"Files cannot be locked in {path.parent} ({error.strerror}); {ELSEWHERE}.") from error
    return True


def _step(environment: Mapping[str, str]) -> str:
    """Which step asks; empty outside of Slurm, where everyone compares."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return "-".join(environment.get(name, "0") for name in names) if names[0] in environment else ""


def _was_checked(final: Path, step: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(step) and step == (final / CHECKED).read_text(encoding="utf-8")
    return False


def _is_sound(final: Path, staged: Staged) -> bool:
    with contextlib.suppress(OSError):
        return all(
            File.of(final / name) == file
            for item in staged.items
            if item.key != ENVIRONMENT
            for name, file in item.files.items()
        )
    return False


def _make(final: Path, staged: Staged) -> None:
    """Copy and unpack under another name, compare, and rename; what a dead task has left is removed first."""
    temporary = final.with_name(f".{final.name}.tmp")
    for left in (temporary, final):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir()
        _check_room(temporary, staged)
        for item in staged.items:
            if item.key == ENVIRONMENT:
                _unpack(staged.target / item.path, item.files[item.path], temporary, final)
                continue
            for name, file in item.files.items():
                put(staged.target / name, temporary / name, file)
        os.rename(temporary, final)
    except (OSError, PromofError) as error:
        why = refused(error)
        if not why:
            raise
        raise PromofError(
            f"Cannot copy {staged.target} to {final} on {socket.gethostname()}: {why}; free some space there, or "
            f"{ELSEWHERE}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_room(folder: Path, staged: Staged) -> None:
    files = sum(f.bytes for item in staged.items if item.key != ENVIRONMENT for f in item.files.values())
    needed = int((files + sum(item.unpacked_bytes for item in staged.items)) * MARGIN)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PromofError(
            f"{folder.parent} on {socket.gethostname()} has {free / 1e9:.2f} GB free, and the copy of {staged.target} "
            f"needs {needed / 1e9:.2f} GB; free some space there, or {ELSEWHERE}."
        )


def _unpack(archive: Path, file: File, temporary: Path, final: Path) -> None:
    from hpc.cluster.staging.environment import unpack

    found = File.of(archive)
    if found != file:
        raise PromofError(f"{archive} is not the file that was staged (its SHA-256 differs); run `promof stage` again.")
    unpack(archive, temporary / ENVIRONMENT, final / ENVIRONMENT)


def main(words: Sequence[str]) -> int:
    """`DIR SCRATCH`, for every task of a step."""
    import argparse

    parser = argparse.ArgumentParser("python -m hpc.cluster.staging.node", description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="folder made by `promof stage`")
    parser.add_argument("scratch", type=Path, help="folder on the node's own disk")
    parser.add_argument("--wait-s", type=float, default=WAIT_S, help="seconds to wait for the task that copies")
    asked = parser.parse_args(words)
    try:
        print(node_local(read_staged(asked.dir.absolute()), asked.scratch.absolute(), asked.wait_s))
    except PromofError as error:
        print(f"promof stage: {error}", file=sys.stderr)
        return error.exit_code
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
