"""Who is at work on what: claims on batches, the lease of a run, and batches under suspicion.

A claim only saves work: two holders would compute the same rows and the first shard published wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names, publish_text

Clock = Callable[[], float]


@dataclass(frozen=True)
class Owner:
    """A job that holds claims.

    Attributes:
        job: scheduler job id, or `local-PID`.
        host: machine of the process that renews them.
        pid: that process.
        started: its start time in clock ticks, because process ids are used again.
    """

    job: str
    host: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> Owner:
        """The calling process."""
        pid = os.getpid()
        return cls(os.environ.get("SLURM_JOB_ID", f"local-{pid}"), socket.gethostname(), pid, _start_ticks(pid))

    def gone(self) -> bool:
        """True only if the process is known to be dead: it lived on this machine and is no more."""
        return self.host == socket.gethostname() and _start_ticks(self.pid) != self.started

    def restarted_as(self, other: Owner) -> bool:
        """Whether `other` is the same job after a requeue, which begins only when all of its processes are dead."""
        return self.job == other.job and self != other


def claim(run: RunDir, batch: str, owner: Owner, expiry_s: float, clock: Clock = time.time) -> bool:
    """Take `batch` for `owner`. A void claim of somebody else is taken over and its batch becomes a suspect."""
    path = run.claims / batch
    if publish_text(path, json.dumps(asdict(owner))):
        return True
    holder = read_owner(path)
    if holder == owner:
        return True
    if holder is not None and not _yields(path, holder, owner, expiry_s, clock):
        return False
    suspect(run, batch, f"left by {holder.job} on {holder.host}" if holder else "left behind")
    return _evict(path, holder) and publish_text(path, json.dumps(asdict(owner)))


def renew(run: RunDir, batches: list[str]) -> None:
    """Say that the owner of these claims is alive."""
    for batch in batches:
        with contextlib.suppress(FileNotFoundError):
            os.utime(run.claims / batch)


def release(run: RunDir, batch: str) -> None:
    """Give a claim back after the batch was committed, or dropped without a death."""
    (run.claims / batch).unlink(missing_ok=True)


def live_claims(run: RunDir, expiry_s: float, clock: Clock = time.time) -> list[str]:
    """Batches that somebody is at work on."""
    live = []
    for batch in list_names(run.claims):
        holder = read_owner(run.claims / batch)
        if holder is not None and not is_void(run.claims / batch, holder, expiry_s, clock):
            live.append(batch)
    return live


def suspect(run: RunDir, batch: str, why: str) -> None:
    """Note that a batch was left unfinished by a death; it is not guilty, only handled with care."""
    publish_text(run.suspects / batch, why + "\n")


def suspects(run: RunDir) -> set[str]:
    """Batches to be evaluated one structure at a time in a child process."""
    return set(list_names(run.suspects))


def take_lease(
    run: RunDir,
    owner: Owner,
    expiry_s: float,
    clock: Clock = time.time,
    has_ended: Callable[[str], bool] = lambda job: False,
) -> None:
    """Become the one leader of a run.

    Args:
        has_ended: whether the scheduler knows for certain that a job is over.

    Raises:
        PromofError: another live process leads it.
    """
    if publish_text(run.lease, json.dumps(asdict(owner))):
        return
    holder = read_owner(run.lease)
    if not (holder is None or _yields(run.lease, holder, owner, expiry_s, clock) or has_ended(holder.job)):
        raise PromofError(
            f"{run.path} is being led by job {holder.job} (process {holder.pid} on {holder.host}); "
            "watch it with `promof status --watch`, or stop it first."
        )
    if not (_evict(run.lease, holder) and publish_text(run.lease, json.dumps(asdict(owner)))):
        raise PromofError(
            f"{run.path} was taken by another process this moment; watch it with `promof status --watch`."
        )


def renew_lease(run: RunDir) -> None:
    """Say that the leader is alive."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(run.lease)


def release_lease(run: RunDir, owner: Owner) -> None:
    """Stop leading."""
    if read_owner(run.lease) == owner:
        run.lease.unlink(missing_ok=True)


def is_led(run: RunDir, expiry_s: float, clock: Clock = time.time) -> bool:
    """Whether a living process leads the run."""
    holder = read_owner(run.lease)
    return holder is not None and not is_void(run.lease, holder, expiry_s, clock)


def read_owner(path: Path) -> Owner | None:
    """The holder named in a claim or lease; None if it is gone or damaged."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_void(path: Path, holder: Owner, expiry_s: float, clock: Clock = time.time) -> bool:
    """Whether a claim or lease no longer binds: its holder is dead, or has not renewed it for `expiry_s`."""
    if holder.gone():
        return True
    try:
        return clock() - path.stat().st_mtime > expiry_s
    except FileNotFoundError:
        return True


def _yields(path: Path, holder: Owner, owner: Owner, expiry_s: float, clock: Clock) -> bool:
    """Whether what `holder` has may be taken by `owner`."""
    return holder == owner or holder.restarted_as(owner) or is_void(path, holder, expiry_s, clock)


def _evict(path: Path, holder: Owner | None) -> bool:
    """Remove a void claim or lease; False if in the meantime somebody else had taken its place."""
    aside = path.parent / f".{path.name}.void-{os.getpid()}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    evicted = read_owner(aside) == holder
    if not evicted:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return evicted


def _start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; -1 if there is none, or it is only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    state, *rest = text.rpartition(")")[2].split()
    return -1 if state in "ZX" else int(rest[18])
