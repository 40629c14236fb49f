"""What runs inside the jobs of test_proofs.py: MPI ranks, and DeepSpeed ranks that stop, save and requeue themselves.

Each rank writes what happens to it as lines of `events.jsonl` in the job's folder.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

STOP = {signal.SIGUSR2: 1, signal.SIGTERM: 2}  # the larger one wins where ranks saw different signals
REQUEUE_S = 20
HOLD_S = 40  # more than the partition's GraceTime and KillWait


def note(folder: Path, event: str, **more: Any) -> None:
    """Append a line; rank, node and restart are in every one."""
    line = {
        "event": event,
        "rank": int(os.environ["SLURM_PROCID"]),
        "node": os.environ["SLURMD_NODENAME"],
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "time": time.time(),
        **more,
    }
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def mpi_world() -> tuple[int, int, bool, str, int]:
    """Rank, size, whether threads may communicate, node, and the sum of all ranks."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
    return comm.rank, comm.size, threads, os.environ["SLURMD_NODENAME"], comm.allreduce(comm.rank)


class StopRequest:
    """Which signal asks this rank to stop; handlers set this and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked = 0
        for number in STOP:
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it before SIGTERM; submitit only logs it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)  # now what came during the imports is delivered

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = max(self.asked, STOP[signal.Signals(number)])
        note(self._folder, "signal", signal=signal.Signals(number).name)


def train(folder: Path, steps: int, step_s: float) -> list[float]:
    """Train a small network by DeepSpeed from the newest checkpoint in `folder`; the loss of each step done here.

    At a step boundary all ranks agree on whether one of them was asked to stop; then all save. After SIGUSR2 rank 0
    requeues the job. After SIGTERM nobody does, and the ranks wait to be killed.
    """
    request = StopRequest(folder)
    note(folder, "handlers")
    import torch

    engine, agree = _engine(folder)
    path, state = engine.load_checkpoint(str(folder)) if (folder / "latest").exists() else (None, {"step": 0})
    begin = state["step"]
    note(folder, "begin", step=begin, loaded=path is not None)
    losses = []
    for step in range(begin, steps):
        losses.append(_step(engine, step))
        time.sleep(step_s)
        if asked := agree(request.asked):
            engine.save_checkpoint(str(folder), tag=f"step{step + 1}", client_state={"step": step + 1})
            note(folder, "saved", step=step + 1, asked=asked, losses=losses)
            _leave(folder, requeue=asked == STOP[signal.SIGUSR2])
    note(folder, "done", step=steps, losses=losses)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # without it a rank now and then aborts at its exit, after all was done
    return losses


def _engine(folder: Path) -> tuple[Any, Callable[[int], int]]:
    """A DeepSpeed engine on gloo, and a function by which the ranks agree on the largest of their numbers."""
    rank, world = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
    os.environ.update(
        RANK=rank, WORLD_SIZE=world, LOCAL_RANK=os.environ["SLURM_LOCALID"], DS_ACCELERATOR="cpu",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(12_000 + int(os.environ["SLURM_JOB_ID"]) % 8_000),
        TORCH_EXTENSIONS_DIR=str(folder / "extensions"),
    )  # fmt: skip
    import deepspeed
    import torch

    # Without this op, whose compilation leaves a lock when a rank is killed. (`import deepspeed.comm.torch as x` would
    # give the real torch: the package's attribute of that name is another module.)
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    network = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1))
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "torch_adam": True}},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=network, model_parameters=network.parameters(), config=config, dist_init_required=False
    )

    def agree(number: int) -> int:
        largest = torch.tensor([number])
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    return engine, agree


def _step(engine: Any, step: int) -> float:
    import torch

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batch = torch.randn(8 * world, 16, generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
    loss = ((engine(batch) - batch[:, :3].sum(1, keepdim=True).sin()) ** 2).mean()
    engine.backward(loss)
    engine.step()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return round(float(total) / world, 6)


def _leave(folder: Path, requeue: bool) -> None:
    """Requeue by rank 0, or wait for SIGKILL; then leave.

    A job that ends by itself after SIGTERM, within the grace time, counts as completed: Slurm does not requeue it then.
    Nobody leaves before rank 0 has asked for the requeue, since a rank that fails on its way out makes srun end the
    others. The exit code is 0, and SystemExit is an exception for which submitit writes no result.
    """
    import torch

    if not requeue:
        time.sleep(HOLD_S)
    elif torch.distributed.get_rank() == 0:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], timeout=REQUEUE_S, check=True)
        note(folder, "requeued")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    raise SystemExit(0)


def listen(name: str, late_s: float) -> None:
    """Print what this rank is and each SIGUSR2 that it gets, until SIGTERM; handlers come `late_s` after its start."""
    who = f"{name} {os.environ['SLURM_STEP_ID']} {os.environ['SLURM_PROCID']}"
    if name == "evaluator":
        who += f"/{mpi_world()[1]}"
    print(who, "sees", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    time.sleep(late_s)
    signal.signal(signal.SIGUSR2, lambda *_: print(who, "USR2", flush=True))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    print(who, "ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    listen(sys.argv[1], float(sys.argv[2]))
