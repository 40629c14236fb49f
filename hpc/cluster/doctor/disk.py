"""Whether a disk does what runs build on: hard links, renaming over, shards, locks, room, quota, and the right time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hpc.cluster.plan import BYTES_A_CANDIDATE, BYTES_A_RESULT, cost_of
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site_check import Check
from hpc.kinds import config_of
from promof_hpc.errors import PromofError
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import Shard, explain, list_names, publish_text, read_shard, replace_text, write_shard

LEAST_BYTES, LEAST_FILES = 1_000_000_000, 10_000
MARGIN = 1.5
CLOCK_S = 5.0  # claims and leases are judged by file times: they expire after minutes
QUOTA_S = 20.0
NEARLY_FULL = 0.95
ELSEWHERE = "choose another disk with --run"
NO_LOCKS = "HDF5_USE_FILE_LOCKING"


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """A folder for what is tried out on the disk of `path`, which is removed at the end.

    Raises:
        PromofError: the disk does not take it.
    """
    place = existing(path) / f".promof-doctor-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir()
    except OSError as error:
        raise explain(place, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def links(path: Path) -> Check:
    """That a file is published once, and another replaced, as the store does it."""
    with own_folder(path) as place:
        published = [publish_text(place / "once", text) for text in ("first", "second")]
        for text in ("old", "new"):
            replace_text(place / "again", text)
        found = [(place / name).read_text() for name in ("once", "again")]
    passed = published == [True, False] and found == ["first", "new"]
    detail = "the first writer wins, and a file is replaced whole" if passed else f"{published}, then {found}"
    return Check("hard links", passed, detail, f"this disk loses files; {ELSEWHERE}")


def locks(path: Path) -> Check:
    """That shards can be written and read, for which HDF5 locks them unless it is told not to."""
    remedy = f"set {NO_LOCKS}: 'FALSE' in the site profile's environment; files are written once, so none is needed"
    with own_folder(path) as place:
        why = lock_problem(place)
        try:
            write_shard(place / "shard.h5", Shard({"a": np.arange(3)}))
            read_shard(place / "shard.h5")
        except (PromofError, OSError) as error:
            return Check("file locks", False, f"shards cannot be written: {error}", remedy)
    off = f", {NO_LOCKS}={os.environ[NO_LOCKS]}" if NO_LOCKS in os.environ else ""
    return Check("file locks", True, f"{why or 'they hold'}; shards are written and read{off}", remedy)


def lock_problem(place: Path) -> str:
    """Why a lock on a file in `place` does not keep a second one out; empty if it does."""
    try:
        with (place / "lock").open("ab") as first, (place / "lock").open("ab") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ""
    except OSError as error:
        return f"this disk has no locks ({error.strerror})"
    return "locks have no effect on this disk"


def space(path: Path) -> Check:
    """That there is room for what is left of a run, or for a small one."""
    needed_bytes, needed_files = _needed(path)
    room = os.statvfs(existing(path))
    free = room.f_bavail * room.f_frsize
    files = room.f_favail if room.f_files else None  # some file systems make inodes as they need them
    passed = free >= needed_bytes and (files is None or files >= needed_files)
    inodes = "any number of" if files is None else f"{files}"
    detail = f"{free / 1e9:.3g} GB and {inodes} files free; {needed_bytes / 1e9:.3g} GB and {needed_files} files needed"
    return Check("space", passed, detail, f"free some space (`promof prune`), or {ELSEWHERE}")


def _needed(path: Path) -> tuple[int, int]:
    """Bytes and files."""
    if "config.yaml" not in list_names(path):
        return LEAST_BYTES, LEAST_FILES
    run = RunDir.open(path)
    config = config_of(run)
    left = (cost_of(run, config).left or 0) * MARGIN
    needed = left * (BYTES_A_CANDIDATE + BYTES_A_RESULT)
    return max(LEAST_BYTES, int(needed)), max(LEAST_FILES, int(2 * left / config.farm.batch_structures))


def clock(path: Path) -> Check:
    """That new files have the time of this machine."""
    with own_folder(path) as place:
        before = time.time()
        replace_text(place / "now", "now")
        after = time.time()
        written = (place / "now").stat().st_mtime
    skew = max(before - written, written - after, 0.0)
    where = "behind" if written < before else "ahead of"
    detail = f"a new file is {skew:.2f} s {where} this machine" if skew > 0.05 else "that of this machine"
    return Check("disk's clock", skew <= CLOCK_S, detail, "have the clocks synchronised (NTP): claims expire by them")


def quota(path: Path) -> Check:
    """What `lfs quota` (Lustre) or `quota` say of the user's share of the disk."""
    source, kind = _mount(existing(path))
    who = {"-u": str(os.getuid()), "-g": str(existing(path).stat().st_gid)}
    commands: list[tuple[str, ...]] = [("quota", "-w", option) for option in who]
    if kind == "lustre":
        commands = [("lfs", "quota", "-q", option, number, str(existing(path))) for option, number in who.items()]
    answers = [Scheduler(QUOTA_S).ask(*command) for command in commands]
    found = [limit for answer in answers for limit in limits(answer.text, "" if kind == "lustre" else source)]
    if not found:
        why = answers[0].why or "no limit is told for this disk"
        return Check("quota", None, why, "ask the site's own command how much you may store")
    worst, detail = max(found)
    return Check("quota", worst < NEARLY_FULL, detail, f"free some space (`promof prune`), or {ELSEWHERE}")


def limits(text: str, source: str = "") -> list[tuple[float, str]]:
    """The limits in what `quota -w` or `lfs quota` printed: the share of each that is used, and the same in words.

    Args:
        source: device or server of the file system; empty: all lines are about it.
    """
    found = []
    for line in text.splitlines():
        numbers = [int(n) for n in re.findall(r"(?:^|\s)\[?(\d+)\]?\*?(?=\s|$)", line)]
        if len(numbers) != 6 or (source and line.split()[0] != source):
            continue
        for (used, soft, hard), unit in ((numbers[:3], "GB"), (numbers[3:], "files")):
            allowed = min((limit for limit in (soft, hard) if limit), default=0)
            if allowed:
                scale = 1e6 / 1.024 if unit == "GB" else 1
                found.append((used / allowed, f"{used / scale:.4g} of {allowed / scale:.4g} {unit}"))
    return found


def _mount(path: Path) -> tuple[str, str]:
    """Device or server, and kind, of the file system that a folder is on."""
    longest, found = 0, ("", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if path.resolve().is_relative_to(point) and len(point) >= longest:
            kind, source, *_ = after.split()
            longest, found = len(point), (source, kind)
    return found


def first_writers(published: Sequence[bool]) -> Check:
    """That of several nodes exactly one has published the same name."""
    winners = sum(published)
    detail = f"{winners} of {len(published)} nodes that published one name at a time"
    remedy = f"on this disk batches would be lost or counted twice; {ELSEWHERE}"
    return Check("first writer wins", winners == 1, detail, remedy)
