"""The text of a batch script as a function of a request and a site: what submitit submits, and templates without it."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpc.cluster.site import TEMPLATES, Site
from promof_hpc.errors import UsageError
from promof_hpc.store.run_dir import RunDir

LAUNCHER_VARIABLE = "PROMOF_MPI_LAUNCHER"
CHAIN_VARIABLE = "PROMOF_CHAINED_AFTER"
BESIDE_VARIABLE = "PROMOF_BESIDE"  # of a step that shares the allocation of one that trains
SIGNAL_VARIABLE = "SUBMITIT_PREEMPT_SIGNAL"


class Role(StrEnum):
    """What a job does."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    SERIAL = "serial"


class Template(StrEnum):
    """The templates of slurm_templates; `one_job` trains and evaluates side by side in one allocation."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    SERIAL = "serial"
    ONE_JOB = "one_job"


@dataclass(frozen=True)
class Request:
    """A job to be submitted.

    Attributes:
        name: what squeue shows.
        run: absolute path of the run directory.
        time_min: time limit.
        array: tasks of a job array; 0: no array.
        array_concurrency: of these at most so many at once; 0: all.
        after: ids of jobs that must have ended before it starts, well or not.
        chained: it goes on with what the jobs in `after` did, and decides at its start whether it may.
    """

    name: str
    role: Role
    run: Path
    nodes: int
    tasks_per_node: int
    time_min: int
    array: int = 0
    array_concurrency: int = 0
    after: tuple[str, ...] = ()
    chained: bool = False

    def __post_init__(self) -> None:
        check_run_path(self.run)
        if self.nodes < 1 or self.tasks_per_node < 1 or self.time_min < 1 or self.array < 0:
            raise UsageError(f"Job {self.name}: nodes, tasks_per_node and time_min must be 1 or more.")
        if self.role is Role.SERIAL and self.nodes * self.tasks_per_node > 1:
            raise UsageError(f"Job {self.name}: a serial job has one process; use an array for more.")
        if self.chained and not self.after:
            raise UsageError(f"Job {self.name} is to be chained but to none; name the jobs that it comes after.")


def usual_request(role: Role, run: Path, site: Site, nodes: int = 1) -> Request:
    """A request with the site's own tasks and time limit, named after role and run."""
    one_a_gpu = max(1, site.gpus_per_node)
    tasks, time_min = {
        Role.TRAIN: (site.train.tasks_per_node or one_a_gpu, site.train.time_min),
        Role.EVALUATE: (site.evaluate.tasks_per_node or one_a_gpu, site.evaluate.time_min),
        Role.SERIAL: (1, site.serial.time_min),
    }[role]
    return Request(f"promof-{role}-{run.name}", role, run, nodes, tasks, time_min)


def check_run_path(run: Path) -> None:
    """Refuse a run directory whose path Slurm would change (measured on 22.05; spaces and quotes come through), or
    Python.

    Raises:
        UsageError: with the characters that are in the way.
    """
    path = str(run)
    why = ""
    if match := re.search(r"%[A-Za-z0-9%]", path):
        why = f"has '{match[0]}', which Slurm replaces in the names of log files"
    elif match := re.search(r"[\\\n]", path):
        why = f"has {match[0]!r}, which cannot stand in a batch script"
    elif ":" in path:
        why = "has a colon, which PYTHONPATH cannot hold"
    elif re.search("[\ud800-\udfff]", path):
        why = "has bytes that are not UTF-8"
    elif not run.is_absolute():
        why = "is relative, and a job starts elsewhere"
    if why:
        shown = path.encode("utf-8", "replace").decode()
        raise UsageError(f"The path of the run {shown!r} {why}; choose another run directory with --run.")


@dataclass(frozen=True)
class Allocation:
    """What a job asks for on every node, and for how long.

    Attributes:
        memory_gb: of a node; None: the site's default.
        gpu_count: of a node.
        gpus: sbatch option for them, such as --gres=gpu:4; empty: none.
    """

    partition: str | None
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory_gb: float | None
    gpu_count: int
    gpus: str
    time_min: int

    @property
    def memory(self) -> str:
        """Memory of a node as Slurm writes it; empty: the site's default."""
        return "" if self.memory_gb is None else f"{math.ceil(self.memory_gb * 1024)}M"


def allocation(request: Request, site: Site) -> Allocation:
    """What `request` needs on this site: every process uses one GPU, so more are asked for only with the whole node.

    Raises:
        UsageError: the site does not give so much, or has no scheduler.
    """
    _check(request, site)
    if request.role is Role.SERIAL:
        serial = site.serial
        partition = serial.partition or site.partition
        return Allocation(partition, 1, 1, serial.cpus, serial.memory_gb, 0, "", request.time_min)
    tasks, memory = request.tasks_per_node, site.memory_gb_per_task
    count = site.gpus_per_node if site.exclusive else min(site.gpus_per_node, tasks)
    gpus = site.gpu_request.replace("{count}", str(count)) if count else ""
    cpus = site.cpus_per_task or max(1, site.cpus_per_gpu * count // tasks)
    return Allocation(
        site.partition, request.nodes, tasks, cpus, memory and memory * tasks, count, gpus, request.time_min
    )  # fmt: skip


def _check(request: Request, site: Site) -> None:
    problem = ""
    if site.scheduler == "none":
        problem = "this site has no scheduler; leave `submit` away and run it here"
    elif request.role is Role.TRAIN and request.nodes > site.train.nodes_max:
        problem = f"{request.nodes} nodes are asked for, and the site gives {site.train.nodes_max} (train.nodes_max)"
    elif request.role is Role.EVALUATE and 0 < site.gpus_per_node < request.tasks_per_node:
        problem = f"{request.tasks_per_node} ranks on a node of {site.gpus_per_node} GPUs; every rank needs its own"
    elif site.signal.lead_s >= 60 * request.time_min:
        problem = f"the limit of {request.time_min} min leaves no work before the signal {site.signal.lead_s} s earlier"
    if problem:
        raise UsageError(f"Job {request.name} cannot be submitted: {problem}.")


def by_launcher(request: Request, site: Site) -> bool:
    """Its ranks are started by the site's MPI launcher, from one process that replaces the batch shell."""
    return request.role is Role.EVALUATE and site.mpi.launcher is not None


def python_command(request: Request, site: Site) -> str:
    """Shell words that start Python with our signals blocked, since one during the imports would kill it.

    The program unblocks them when its handlers are there (`env --block-signal` is of GNU coreutils 8.31 and later).
    """
    python = site.python or shlex.quote(sys.executable)
    # Slurm signals either the steps or the batch shell; without steps, Python must take the shell's place to hear it
    begin = "exec " if by_launcher(request, site) else ""
    return f"{begin}env --block-signal={site.signal.name} --block-signal=TERM {python}"


def setup_lines(request: Request, site: Site) -> list[str]:
    """Shell lines before the command: the site's own, then variables.

    Beside the site's variables these are SUBMITIT_PREEMPT_SIGNAL (the signal that warns, for submitit's handlers and
    ours), PROMOF_MPI_LAUNCHER (the command before the ranks' own, where srun does not start them) and
    PROMOF_CHAINED_AFTER (the ids of the jobs with which a chained job goes on).
    """
    variables = {**site.environment, SIGNAL_VARIABLE: site.signal.name}
    if request.role is Role.EVALUATE and site.mpi.library == "mpich":
        # A rank that is killed while MPI starts leaves shared memory named after job and step, which a requeued job
        # would meet on the same node and fail at. The farm's messages are small: it does without.
        variables["MPIR_CVAR_NOLOCAL"] = "1"
        if "pmi2" in (site.mpi.srun_flag or ""):
            # By UCX, the wheel's default, MPICH 5.0 sends some kB of memory as it happens to be through PMI. Where that
            # hardly compresses, a line is longer than Slurm's plugin reads ("invalid client request"), and ranks do not
            # start or never meet. By OFI it sends 65 bytes.
            variables = {"MPIR_CVAR_CH4_NETMOD": "ofi"} | variables
    if by_launcher(request, site):
        variables[LAUNCHER_VARIABLE] = f"{site.mpi.launcher} -n {request.nodes * request.tasks_per_node}"
    if request.chained:
        variables[CHAIN_VARIABLE] = ",".join(request.after)
    return [*site.setup, *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]


def parameters(request: Request, site: Site) -> dict[str, Any]:
    """What submitit's SlurmExecutor is given by update_parameters; `python_command` is an argument of its own.

    Raises:
        UsageError: see `allocation`.
    """
    asked = allocation(request, site)
    gpu_option, _, gpus = asked.gpus.removeprefix("--").partition("=")
    chosen = {
        "job_name": request.name,
        "partition": asked.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclusive": site.exclusive or None,
        "nodes": asked.nodes,
        "ntasks_per_node": asked.tasks_per_node,
        "cpus_per_task": asked.cpus_per_task,
        "mem": asked.memory or None,
        "time": asked.time_min,
        "dependency": _dependency(request) or None,
        "array_parallelism": request.array_concurrency or request.array or None,
        "setup": setup_lines(request, site),
        "use_srun": not by_launcher(request, site),
        "srun_args": _srun_args(request, site, asked),
        "additional_parameters": _beyond_submitit(request, site),
        **({gpu_option.replace("-", "_"): gpus} if gpus else {}),
    }
    # submitit's own default is `submitit`, which sites that count by work key refuse
    return {name: value for name, value in chosen.items() if value is not None} | {"wckey": None}


def _srun_args(request: Request, site: Site, asked: Allocation) -> list[str]:
    flags = [f"--cpus-per-task={asked.cpus_per_task}"]  # since Slurm 22.05 srun does not take it from sbatch
    if request.role is not Role.SERIAL:
        flags.append("--kill-on-bad-exit=1")  # else the others wait for a dead rank for ever
    if request.role is Role.EVALUATE:
        flags += [site.mpi.srun_flag] if site.mpi.srun_flag else []
        flags += ["--gpus-per-task=1"] if asked.gpus else []
    return flags


def _beyond_submitit(request: Request, site: Site) -> dict[str, Any]:
    """Options for which submitit has no parameter, and --signal, which it would take from the caller's environment."""
    options = {"requeue": True, "signal": _warning(request, site)}
    return {**options, "reservation": site.reservation} if site.reservation else options


def _warning(request: Request, site: Site) -> str:
    shell = "B:" if by_launcher(request, site) else ""
    return f"{shell}{site.signal.name}@{site.signal.lead_s}"


def _dependency(request: Request) -> str:
    return ":".join(("afterany", *request.after)) if request.after else ""


def sbatch_text(request: Request, site: Site) -> str:
    """What submitit submits for `request`, by submitit's own function; its folder is the run's `logs`.

    Raises:
        UsageError: see `allocation`.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    folder = RunDir(request.run).logs
    command = f"{python_command(request, site)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array = request.array if request.array > 1 else None  # submitit submits an array of one as a plain job
    text: str = _make_sbatch_string(command=command, folder=folder, map_count=array, **parameters(request, site))
    return text


def render(template: Template, requests: Sequence[Request], site: Site) -> str:
    """A batch script for `sbatch` alone, from slurm_templates (Jinja2 comes with torch).

    Args:
        requests: one of the template's role; of ONE_JOB one that trains and one that evaluates.

    Raises:
        UsageError: other requests than the template's, or see `allocation`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jobs = {request.role: request for request in requests}
    wanted = [Role.TRAIN, Role.EVALUATE] if template is Template.ONE_JOB else [Role(template.value)]
    if sorted(jobs) != sorted(wanted) or len(requests) != len(wanted):
        raise UsageError(f"The template {template} takes requests to {' and '.join(wanted)}, one each.")
    if template is Template.ONE_JOB and by_launcher(jobs[Role.EVALUATE], site):
        raise UsageError("one_job starts evaluators by srun, and this site's mpi.launcher is set; submit two jobs.")
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    jinja.filters["quote"] = lambda value: shlex.quote(str(value))
    return jinja.get_template(f"{template}.sbatch.j2").render(_context(requests, site))


def _context(requests: Sequence[Request], site: Site) -> dict[str, Any]:
    """What the templates know; slurm_templates/README.md lists it."""
    first = requests[0]
    asked = [allocation(request, site) for request in requests]
    return {
        "site": site,
        "name": first.name,
        "run": first.run,
        "logs": RunDir(first.run).logs,
        "job": enough_for_all(asked),
        "steps": {request.role.value: step for request, step in zip(requests, asked, strict=True)},
        "array": f"0-{first.array - 1}%{first.array_concurrency or first.array}" if first.array > 1 else "",
        "dependency": _dependency(first),
        "warning": _warning(first, site),
        "setup": list(dict.fromkeys(line for request in requests for line in setup_lines(request, site))),
        "python": python_command(first, site),
        "beside": BESIDE_VARIABLE,
        "stop": RunDir(first.run).stop,
        "by_launcher": by_launcher(first, site),
    }


def enough_for_all(asked: Sequence[Allocation]) -> Allocation:
    """One allocation in which each of these fits by itself, with memory for all: steps share it (srun --overlap)."""
    first = asked[0]
    tasks = max(one.tasks_per_node for one in asked)
    cpus = max(one.tasks_per_node * one.cpus_per_task for one in asked)
    memory = [one.memory_gb for one in asked if one.memory_gb is not None]
    most = max(asked, key=lambda one: one.gpu_count)
    return Allocation(
        first.partition,
        max(one.nodes for one in asked),
        tasks,
        -(-cpus // tasks),
        sum(memory) if memory else None,
        most.gpu_count,
        most.gpus,
        max(one.time_min for one in asked),
    )
