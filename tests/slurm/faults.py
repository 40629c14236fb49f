"""What may befall a campaign on a cluster, each as a function that does it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from promof_hpc.store.checkpoint import newest_checkpoint
from promof_hpc.store.run_dir import RunDir
from tests.processes import wait_for
from tests.slurm.client import SlurmClient, State
from tests.slurm.users import User


@dataclass(frozen=True)
class Scene:
    """A campaign at work.

    Attributes:
        train, evaluate: ids of its jobs.
    """

    cluster: SlurmClient
    user: User
    run: RunDir
    config: object
    train: str
    evaluate: str
    chance: random.Random


Fault = Callable[[Scene], None]


def tasks_of(job: str, rank: int | None = None) -> list[psutil.Process]:
    """The living tasks of a job, or the one of a rank; not srun, not the batch shell, not children."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "submitit.core._submit" not in command or "srun" in command or command.startswith("/bin/bash"):
            continue
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_JOB_ID") != job or "SLURM_STEP_ID" not in environment:
                continue
            if rank is None or environment["SLURM_PROCID"] == str(rank):
                found.append(process)
    return found


def kill_rank(job: Callable[[Scene], str], rank: int) -> Fault:
    """SIGKILL one task."""

    def do(scene: Scene) -> None:
        for process in wait_for(lambda: tasks_of(job(scene), rank), 60, f"rank {rank}"):
            process.kill()

    return do


def stop_rank(rank: int) -> Fault:
    """SIGSTOP one MPI rank; the watchdog, or where that stands still the other ranks, must notice."""

    def do(scene: Scene) -> None:
        for process in wait_for(lambda: tasks_of(scene.evaluate, rank), 60, f"rank {rank}"):
            process.send_signal(signal.SIGSTOP)

    return do


def preempt(with_signal: bool) -> Fault:
    """Somebody more important takes all nodes for a moment."""

    def do(scene: Scene) -> None:
        scene.cluster.send_user_signal_at_preemption(with_signal)
        scene.cluster.wait_for(scene.cluster.preempt(seconds=2), State.COMPLETED, seconds=90)

    return do


def requeue(scene: Scene) -> None:
    """An administrator requeues both jobs; no signal is sent that could be heeded."""
    for job in (scene.train, scene.evaluate):
        scene.cluster.requeue(int(job))


def time_limit(scene: Scene) -> None:
    """Both jobs come to their time limits."""
    for job in (scene.train, scene.evaluate):
        scene.cluster.end_in(int(job), 25)


def cancel(scene: Scene) -> None:
    """The user cancels both jobs."""
    jobs = int(scene.train), int(scene.evaluate)
    scene.cluster.cancel(*jobs)
    for job in jobs:
        scene.cluster.wait_for(job, State.CANCELLED, State.COMPLETED, State.GONE)


def node_down(scene: Scene) -> None:
    """A node of the evaluators is set down, and comes back a while later."""
    node = _a_node(scene)
    scene.cluster.set_node(node, "down")
    wait_for(lambda: not _tasks_on(node), 60, f"the tasks on {node} to be gone")
    scene.cluster.set_node(node, "resume")


def slurmd_killed(scene: Scene) -> None:
    """The daemon of a node is killed and started again."""
    node = _a_node(scene)
    scene.cluster.kill_slurmd(node)
    scene.cluster.start_slurmd(node)


def truncate_a_shard(scene: Scene) -> None:
    """A committed result loses its end, as on a disk that lied; the user verifies, removes it and resumes."""
    shards = [scene.run.result(b) for n in scene.run.round_numbers() for b in scene.run.committed(n)]
    victim = scene.chance.choice(shards)
    cancel(scene)
    os.chmod(victim, 0o644)
    with victim.open("r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    said = scene.user.promof("verify", scene.run.path, code=1)
    assert victim.name in said
    victim.unlink()


def submit_again(*kinds: str) -> Fault:
    """Jobs are there twice, as after a script that submitted and did not know it."""

    def do(scene: Scene) -> None:
        code = (
            "import sys; from pathlib import Path; from hpc.kinds import config_of\n"
            "from hpc.cluster.site import load_site; from hpc.cluster.submission import submit\n"
            "from hpc.cluster.wanted import wanted_jobs\n"
            "from promof_hpc.store.run_dir import RunDir\n"
            "run, site = RunDir.open(Path(sys.argv[1])), load_site('test-cluster')\n"
            "wanted = [w for w in wanted_jobs(run, config_of(run), site, 'design') if w.request.role in sys.argv[2:]]\n"
            "assert len(wanted) == len(sys.argv) - 2\n"
            "submit(run, site, wanted)\n"
        )
        scene.user.python(code, scene.run.path, *kinds)

    return do


def corrupt_the_checkpoint(scene: Scene) -> None:
    """The newest checkpoint is damaged while nobody runs."""
    wait_for(lambda: newest_checkpoint(scene.run).number > 1, 60, "two checkpoints")
    cancel(scene)
    newest = newest_checkpoint(scene.run).folder
    weights = newest / "engineer.safetensors"
    os.chmod(weights, 0o644)
    weights.write_bytes(weights.read_bytes()[:-100])


def _a_node(scene: Scene) -> str:
    nodes = scene.cluster.run("scontrol", "show", "hostnames", scene.cluster.job(int(scene.evaluate)).nodes).split()
    return scene.chance.choice(nodes)


def _tasks_on(node: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == node and "submitit" in " ".join(process.cmdline()):
                found.append(process)
    return found


FAULTS: dict[str, Fault] = {
    "preempted with a user signal": preempt(True),
    "preempted without a user signal": preempt(False),
    "scontrol requeue": requeue,
    "time limit": time_limit,
    "scancel": cancel,
    "SIGKILL of trainer rank 0": kill_rank(lambda s: s.train, 0),
    "SIGKILL of another trainer": kill_rank(lambda s: s.train, 1),
    "SIGKILL of an MPI worker": kill_rank(lambda s: s.evaluate, 3),
    "SIGKILL of MPI rank 0": kill_rank(lambda s: s.evaluate, 0),
    "SIGSTOP of a rank": stop_rank(2),
    "SIGSTOP of MPI rank 0": stop_rank(0),
    "node set down": node_down,
    "slurmd killed": slurmd_killed,
    "truncated shard": truncate_a_shard,
    "submitted twice": submit_again("train", "evaluate"),
    "two trainers on one run": submit_again("train"),
    "corrupted checkpoint": corrupt_the_checkpoint,
}
