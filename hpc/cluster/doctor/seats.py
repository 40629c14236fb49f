"""Where the tasks of a job sit, and what is to be said of them: pure functions of what each task has told."""

from __future__ import annotations

import math
import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.cluster.doctor.disk import CLOCK_S, ELSEWHERE
from hpc.cluster.doctor.probes import why_no_gpu
from hpc.cluster.site_check import Check

SEEN_S = 60.0
LATE_S = 30.0  # every round waits so long for its results
# set by launchers, and beyond what a child process of a rank is spared
LAUNCHERS = ("PMI", "OMPI_COMM", "HYDRA", "MPI_LOCAL", "MV2_COMM", "PALS_", "ALPS_APP", "FLUX_TASK", "SLURM_")


@dataclass(frozen=True)
class Seat:
    """Where a task of a job is.

    Attributes:
        local: its number on its node.
        gpus: what it sees, by identity where torch sees them, else by name.
        why: why it sees none.
        leaks: variables of its launcher that a child process of it would inherit.
    """

    rank: int
    local: int
    node: str
    gpus: tuple[str, ...]
    why: str
    leaks: tuple[str, ...]

    @classmethod
    def here(cls, rank: int, local: int, named: bool) -> Seat:
        """This task.

        Args:
            named: GPUs exist only by name, as on a private cluster of tests.
        """
        gpus, why = _gpus_by_name() if named else _gpus_by_torch()
        return cls(rank, local, this_node(), gpus, why, _leaks())

    @property
    def gpu(self) -> str:
        """The one that an evaluator computes on; empty where there is none."""
        return self.gpus[self.local % len(self.gpus)] if self.gpus else ""


def this_node() -> str:
    """Slurm's name of it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _gpus_by_name() -> tuple[tuple[str, ...], str]:
    names = tuple(name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
    return names, "" if names else "CUDA_VISIBLE_DEVICES is empty"


def _gpus_by_torch() -> tuple[tuple[str, ...], str]:
    """By what torch calls them: under cgroups all tasks call theirs 0."""
    if not Path("/dev/nvidiactl").exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return (), "this node has no driver"
    import torch

    found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
    return tuple(str(getattr(one, "uuid", one.name)) for one in found), "" if found else why_no_gpu(torch)


def _leaks() -> tuple[str, ...]:
    from hpc.worker import without_mpi_environment

    with without_mpi_environment():
        return tuple(sorted(name for name in os.environ if name.startswith(LAUNCHERS)))


def world(tasks: int, size: int) -> Check:
    """Whether all tasks are ranks of one world."""
    remedy = (
        "start them as the MPI library wants it: set the site profile's mpi.srun_flag to one of `srun --mpi=list` "
        "(--mpi=pmi2 for mpich, --mpi=pmix for Open MPI), or its mpi.launcher"
    )
    if size == tasks:
        return Check("MPI world", True, f"{size} ranks, as many as tasks")
    what = "each is a world of its own" if size == 1 else f"the first sees a world of {size}"
    return Check("MPI world", False, f"{tasks} tasks, but {what}", remedy)


def evaluators_gpus(seats: Sequence[Seat], per_node: int) -> Check:
    """Whether every rank has a GPU that no other has.

    Args:
        per_node: GPUs that the job has on a node.
    """
    users: dict[tuple[str, str], list[int]] = defaultdict(list)
    for seat in seats:
        users[seat.node, seat.gpu].append(seat.rank)
    doubled = [
        f"{gpu} of {node} by ranks {_listed(ranks)}" for (node, gpu), ranks in users.items() if gpu and ranks[1:]
    ]
    if doubled:
        remedy = "lower the site profile's evaluate.tasks_per_node to its gpus_per_node"
        return Check("GPUs of ranks", False, f"used twice: {'; '.join(doubled)}", remedy)
    return _seen(seats, [seat for seat in seats if not seat.gpus], "GPUs of ranks", per_node)


def trainers_gpus(seats: Sequence[Seat], per_node: int) -> Check:
    """Whether every process sees all GPUs of its node; see `evaluators_gpus`."""
    return _seen(seats, [seat for seat in seats if len(seat.gpus) < per_node], "GPUs of trainers", per_node)


def _seen(seats: Sequence[Seat], lacking: Sequence[Seat], name: str, per_node: int) -> Check:
    shown = "; ".join(f"{node}: {text}" for node, text in _map(seats).items())
    if not per_node:
        return Check(name, True, f"the job has asked for none; {shown}")
    if not lacking:
        return Check(name, True, shown)
    why = lacking[0].why or f"{len(lacking[0].gpus)} of {per_node}"
    remedy = "correct gpu_request, or let the container have them (--nv); trainers get no --gpus-per-task"
    return Check(name, False, f"too few for ranks {_listed([s.rank for s in lacking])} ({why}); {shown}", remedy)


def _map(seats: Sequence[Seat]) -> dict[str, str]:
    found: dict[str, str] = defaultdict(str)
    for seat in seats:
        seen = ",".join(seat.gpus) or "none"
        found[seat.node] += f"{' ' if found[seat.node] else ''}{seat.rank}->{seen}"
    return found


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown


def leaks(seats: Sequence[Seat]) -> Check:
    """Whether child processes of ranks are free of what the launcher has set."""
    names = sorted({name for seat in seats for name in seat.leaks})
    detail = f"stay in child processes: {', '.join(names)}" if names else "none stays in child processes"
    remedy = "unset them in the site profile's `setup`, and tell the authors: children would take themselves for ranks"
    return Check("PMI variables", not names, detail, remedy)


def visibility(lags: Mapping[str, float]) -> Check:
    """How late nodes see a new file; in seconds, infinite where one never did."""
    if not lags:
        return Check("file visibility", None, "one node only", "give the job two nodes")
    node, largest = max(lags.items(), key=lambda item: item[1])
    detail = f"a new file is seen by other nodes after {largest:.3f} s at most ({node})"
    if math.isinf(largest):
        detail = f"{node} did not see a new file within {SEEN_S:.0f} s"
    remedy = f"{ELSEWHERE} that nodes share and whose folders are cached for a shorter time (NFS: acdirmax)"
    return Check("file visibility", largest <= LATE_S, detail, remedy)


def clocks(offsets: Mapping[str, float]) -> Check:
    """How far the nodes' clocks are from the first one's; in seconds, positive ahead."""
    if not offsets:
        return Check("nodes' clocks", None, "one node only", "give the job two nodes")
    node, offset = max(offsets.items(), key=lambda item: abs(item[1]))
    remedy = "have the clocks synchronised (NTP): claims expire by them"
    return Check("nodes' clocks", abs(offset) <= CLOCK_S, f"{offset * 1e3:+.2f} ms at most ({node})", remedy)
