"""What only the tasks of a job can tell: `srun ... python -m hpc.cluster.doctor.ranks FOLDER [--trainers]`.

As MPI ranks, started like evaluators: do they form one world, who has which GPU, how late does a node see another's
file, do clocks, hard links and locks agree between nodes. With --trainers see `doctor.trainers`. The first task prints
the lines. FOLDER is a run, or any folder on its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.cluster.doctor.disk import ELSEWHERE, existing, first_writers, links, locks
from hpc.cluster.doctor.mpi import thread_level
from hpc.cluster.doctor.seats import (
    SEEN_S,
    Seat,
    clocks,
    evaluators_gpus,
    leaks,
    this_node,
    visibility,
    world,
)
from hpc.cluster.site_check import Check, as_text
from hpc.exit_codes import DONE, FAILED
from promof_hpc.errors import PromofError
from promof_hpc.store.shard import list_names, publish_text

if TYPE_CHECKING:
    from mpi4py import MPI

Say = Callable[[Check], None]
ALL_S = 240.0
FILES, PINGS = 3, 10
POLL_S = 0.002


def be_rank(folder: Path, gpus: int, named: bool, say: Say) -> None:
    """Be one of the MPI ranks; rank 0 speaks.

    Args:
        gpus: that the job has on a node.
        named: see `Seat.here`.
    """
    import mpi4py

    mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    tasks = int(os.environ.get("PROMOF_RANKS") or os.environ.get("SLURM_NTASKS") or comm.size)
    if comm.size != tasks:
        if comm.rank == 0 and os.environ.get("SLURM_PROCID", "0") == "0":
            say(world(tasks, comm.size))
        return
    try:
        local = comm.Split_type(MPI.COMM_TYPE_SHARED).rank  # as the farm counts them
        seats = comm.gather(Seat.here(comm.rank, local, named))
        levels = comm.gather(MPI.Query_thread())
        if seats is not None and levels is not None:
            say(world(tasks, comm.size))
            say(thread_level(min(levels), MPI.THREAD_MULTIPLE))
            say(evaluators_gpus(seats, gpus))
            say(leaks(seats))
        for check in _between_nodes(comm, folder):
            say(check)
    except Exception as error:
        print(f"rank {comm.rank} on {this_node()} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        comm.Abort(FAILED)  # left alone, the others would wait for it
        raise


def _between_nodes(comm: MPI.Comm, folder: Path) -> list[Check]:
    """Lines that one rank of each node makes together with those of the others; empty but on rank 0."""
    nodes = comm.allgather(this_node())
    leads = nodes.index(this_node()) == comm.rank
    leaders = comm.Split(color=0 if leads else 1, key=comm.rank)
    found: list[Check] = []
    if leads:
        name = f".promof-doctor-{os.environ.get('SLURM_JOB_ID', 'local')}-{time.time_ns()}"
        place = Path(leaders.bcast(str(existing(folder) / name)))
        found = _of_leaders(leaders, list(dict.fromkeys(nodes)), place)
        leaders.Barrier()
        if leaders.rank == 0:
            shutil.rmtree(place, ignore_errors=True)
    comm.Barrier()
    return found if comm.rank == 0 else []


def _of_leaders(leaders: MPI.Comm, nodes: list[str], place: Path) -> list[Check]:
    why = leaders.bcast(_make(place) if leaders.rank == 0 else "")
    if why:
        return [Check("shared folder", False, why, ELSEWHERE)]
    seen = leaders.allgather(_wait_for(place.parent, place.name))
    if not all(seen):
        absent = ", ".join(node for node, saw in zip(nodes, seen, strict=True) if not saw)
        why = f"a new folder in {place.parent} was not seen within {SEEN_S:.0f} s by {absent}"
        return [Check("shared folder", False, why, f"{ELSEWHERE} that all nodes share")]
    found = [visibility(_lags(leaders, nodes, place)), clocks(_offsets(leaders, nodes))]
    each = leaders.allgather((_tried(links, place), _tried(locks, place)))
    found += [_of_all(nodes, checks) for checks in zip(*each, strict=True)]
    published = leaders.allgather(_published(place / "same"))
    kept_out = _lock_keeps_out(leaders, place / "lock")
    if len(nodes) > 1:
        held = "they keep other nodes out" if kept_out else "they hold within a node only, and that is enough"
        found += [first_writers(published), Check("locks between nodes", True, held)]
    return found


def _make(place: Path) -> str:
    """Make a folder; empty, or why that failed."""
    try:
        place.mkdir()
    except OSError as error:
        return f"{place.parent} cannot be written: {error.strerror}"
    return ""


def _wait_for(folder: Path, name: str) -> bool:
    """List a folder until a name is in it; False after a minute."""
    deadline = time.monotonic() + SEEN_S
    while True:
        with contextlib.suppress(OSError):
            if name in os.listdir(folder):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)


def _lags(leaders: MPI.Comm, nodes: list[str], place: Path) -> dict[str, float]:
    """Seconds from the publication of a file on the first node to the moment at which another node lists it.

    Nodes have listed the folder before, as evaluators have. The clock is the first node's, so half a ping is in it.
    """
    worst = dict.fromkeys(nodes[1:], 0.0)
    for number in range(FILES):
        name = f"{number:05d}"
        list_names(place)
        leaders.Barrier()
        if leaders.rank:
            leaders.send(_wait_for(place, name), dest=0, tag=number)
            continue
        _published(place / name)
        began = time.monotonic()
        for other, lag in _arrivals(leaders, number, began).items():
            worst[nodes[other]] = max(worst[nodes[other]], lag)
    return worst


def _arrivals(leaders: MPI.Comm, tag: int, began: float) -> dict[int, float]:
    """When each of the others has said that it has seen the file; infinite where it has not."""
    from mpi4py import MPI

    status, found = MPI.Status(), dict[int, float]()
    while len(found) < leaders.size - 1:
        if not leaders.iprobe(MPI.ANY_SOURCE, tag, status):
            time.sleep(POLL_S / 4)
            continue
        seen = leaders.recv(source=status.Get_source(), tag=tag)
        found[status.Get_source()] = time.monotonic() - began if seen else float("inf")
    return found


def _offsets(leaders: MPI.Comm, nodes: list[str]) -> dict[str, float]:
    """Seconds by which each node's clock is ahead of the first one's; the fastest of a few pings counts."""
    if leaders.rank:
        for _ in range(PINGS):
            leaders.recv(source=0)
            leaders.send(time.time(), dest=0)
        return {}
    found = {}
    for other, node in enumerate(nodes[1:], 1):
        pings = []
        for _ in range(PINGS):
            sent = time.time()
            leaders.send(None, dest=other)
            theirs = leaders.recv(source=other)
            back = time.time()
            pings.append((back - sent, theirs - (sent + back) / 2))
        found[node] = min(pings)[1]
    return found


def _tried(check: Callable[[Path], Check], place: Path) -> Check:
    try:
        return check(place)
    except (PromofError, OSError) as error:
        return Check(check.__name__, False, str(error).rstrip("."), ELSEWHERE)


def _published(path: Path) -> bool:
    with contextlib.suppress(PromofError):
        return publish_text(path, this_node())
    return False


def _lock_keeps_out(leaders: MPI.Comm, path: Path) -> bool:
    """Whether a lock on the first node keeps the others out."""
    held = _locked(path) if leaders.rank == 0 else None
    leaders.Barrier()
    got_in = _locked(path) if leaders.rank else None
    outside = leaders.allgather(got_in is not None)
    for file in (held, got_in):
        if file is not None:
            file.close()
    return bool(leaders.bcast(held is not None)) and not any(outside)


def _locked(path: Path) -> BufferedRandom | None:
    """A file that is locked by this process; None if it cannot be."""
    file = None
    try:
        file = path.open("a+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if file is not None:
            file.close()
        return None
    return file


def _of_all(nodes: list[str], checks: Sequence[Check]) -> Check:
    """One line for the same check on every node."""
    bad = [(node, check) for node, check in zip(nodes, checks, strict=True) if not check.passed]
    if not bad:
        return Check(checks[0].name, True, f"on {len(nodes)} nodes: {checks[0].detail}")
    node, first = bad[0]
    more = f" and {len(bad) - 1} more" if bad[1:] else ""
    return Check(first.name, False, f"{node}{more}: {first.detail}", first.remedy)


def main(words: Sequence[str]) -> int:
    """Be a task; returns the exit code."""
    parser = argparse.ArgumentParser("python -m hpc.cluster.doctor.ranks", description="Checks between tasks of a job.")
    parser.add_argument("folder", type=Path, help="a run directory, or a folder on its disk")
    parser.add_argument("--trainers", action="store_true", help="be a training process, not an MPI rank")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of the job on a node")
    parser.add_argument("--named-gpus", action="store_true", help="GPUs exist only by name (a cluster of tests)")
    parser.add_argument("--json", action="store_true", help="lines for a program; the exit code is 0 whatever they say")
    asked = parser.parse_args(words)
    faulthandler.dump_traceback_later(ALL_S, exit=True)  # a rank that hangs shows where, and ends all
    said: list[Check] = []

    def say(check: Check) -> None:
        said.append(check)
        print(json.dumps(asdict(check)) if asked.json else as_text([check]), flush=True)

    if asked.trainers:
        from hpc.cluster.doctor.trainers import be_trainer

        be_trainer(asked.gpus, asked.named_gpus, say)
    else:
        be_rank(asked.folder.absolute(), asked.gpus, asked.named_gpus, say)
    return FAILED if not asked.json and any(check.passed is False for check in said) else DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
