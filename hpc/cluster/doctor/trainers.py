"""What the processes of a training job can tell of themselves: do they meet, and does each see all GPUs of its node."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from hpc.cluster.doctor.seats import Seat, this_node, trainers_gpus
from hpc.cluster.site_check import Check
from hpc.training.world import World
from promof_hpc.errors import PromofError

MEET_S = 60.0  # torch tries a second time
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR")
MEETING = f"check {', '.join(INTERFACES)} in the site profile's environment (`ip -brief link` on a node), and firewalls"


def be_trainer(gpus: int, named: bool, say: Callable[[Check], None]) -> None:
    """Be one of the processes; the first one speaks, and of those who do not meet the first of each node.

    Args:
        gpus: that the job has on a node.
        named: see `Seat.here`.
    """
    import torch

    try:
        world = World.here()
    except PromofError as error:
        say(Check("torch.distributed", False, str(error).rstrip(".")))
        return
    began = time.monotonic()
    try:
        socket.getaddrinfo(world.address, world.port)  # torch would try for minutes
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://{world.address}:{world.port}", rank=world.rank, world_size=world.size,
            timeout=timedelta(seconds=MEET_S),
        )  # fmt: skip
        seats = _gathered(Seat.here(world.rank, world.local_rank, named), world.size)
    except (RuntimeError, ValueError, OSError) as error:
        if world.local_rank == 0:
            why = str(error).strip().splitlines()[0]
            where = f"{world.address} port {world.port}"
            say(Check("torch.distributed", False, f"rank {world.rank} on {this_node()} at {where}: {why}", MEETING))
        return
    took = time.monotonic() - began
    if world.rank == 0:
        by = ", ".join(f"{name}={os.environ[name]}" for name in INTERFACES if name in os.environ)
        say(Check("torch.distributed", True, f"{world.size} processes met by gloo in {took:.1f} s{by and f' ({by})'}"))
        say(trainers_gpus(seats, gpus))
    if not named and all(seat.gpus for seat in seats):
        _meet_by_nccl(world, say)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _gathered(seat: Seat, size: int) -> list[Seat]:
    import torch

    seats: list[Seat] = [seat] * size
    torch.distributed.all_gather_object(seats, seat)
    return seats


def _meet_by_nccl(world: World, say: Callable[[Check], None]) -> None:
    """Add up a number of each process on the GPUs that training uses."""
    import torch

    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    why = ""
    began = time.monotonic()
    try:
        group = torch.distributed.new_group(backend="nccl", timeout=timedelta(seconds=MEET_S))
        total = torch.ones(1, device=device)
        torch.distributed.all_reduce(total, group=group)
        if int(total) != world.size:
            why = f"{int(total)} of {world.size} processes added up"
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
    if world.rank == 0:
        detail = why or f"{world.size} processes added up on their GPUs in {time.monotonic() - began:.1f} s"
        say(Check("NCCL", not why, detail, MEETING))
