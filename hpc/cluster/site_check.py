"""Does a profile agree with its site: a list of checks, each passed, failed or not known, with a remedy."""

from __future__ import annotations

import math
import os
import pwd
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hpc.cluster.batch_script import Role, python_command, setup_lines, usual_request
from hpc.cluster.job_state import number
from hpc.cluster.scheduler import Answer, Limits, Scheduler
from hpc.cluster.site import Site, minutes

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
START_S = 120.0  # the first import from a network disk is slow
VERSION = "import sys, hpc, submitit; print(sys.version.split()[0])"
MPI_VERSION = """import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().splitlines()[0])"""
LIBRARIES = {"mpich": "MPICH", "openmpi": "Open MPI"}
UNLIMITED = ("UNLIMITED", "INFINITE", "NONE")
PREEMPTS = {"REQUEUE": "requeue", "CANCEL": "cancel", "OFF": "none"}
ADMIN = "ask the site's administrators"


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        passed: None: not known.
        remedy: what to do if it did not pass.
    """

    name: str
    passed: bool | None
    detail: str
    remedy: str = ""


def site_check(site: Site, scheduler: Scheduler | None = None) -> list[Check]:
    """Hold a profile against the site that this machine belongs to; takes seconds, on a slow site a few minutes."""
    scheduler = scheduler or Scheduler()
    checks = [] if site.scheduler == "none" else list(_of_slurm(site, scheduler))
    return [*checks, *_of_programs(site, scheduler)]


def as_text(checks: list[Check]) -> str:
    """One line for each check; the remedy with those that did not pass."""
    words = {True: "pass", False: "FAIL", None: "unknown"}
    width = max((len(check.name) for check in checks), default=0)
    return "\n".join(
        f"{words[check.passed]:8}{check.name:{width}}  {check.detail}"
        + (f"; {check.remedy}" if check.remedy and not check.passed else "")
        for check in checks
    )


class _Asked:
    """What Slurm says of the site, every question asked once at most."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    @cached_property
    def limits(self) -> Limits:
        return self.scheduler.limits()

    @cached_property
    def partitions(self) -> dict[str, dict[str, str]]:
        """The fields of every partition; empty if Slurm does not say."""
        lines = self.scheduler.ask("scontrol", "show", "partition", "--oneliner").text.splitlines()
        fields = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]
        return {known["PartitionName"]: known for known in fields if "PartitionName" in known}

    def partition(self, name: str | None) -> dict[str, str]:
        """The fields of a partition, of the default one for None; empty if not known."""
        if name is not None:
            return self.partitions.get(name, {})
        return next((fields for fields in self.partitions.values() if fields.get("Default") == "YES"), {})

    def of_nodes(self, partition: str | None, what: str) -> list[str]:
        """A column of sinfo, such as %G, one line for each kind of node in a partition; empty if not known."""
        chosen = (f"--partition={partition}",) if partition else ()
        answer = self.scheduler.ask("sinfo", "--noheader", f"--format={what}", *chosen)
        return [] if answer.why else [line.strip() for line in answer.text.splitlines() if line.strip()]

    def listed(self, *what: str) -> tuple[set[str], str]:
        """Names that sacctmgr lists, and why it does not."""
        answer = self.scheduler.ask("sacctmgr", "--noheader", "--parsable2", "show", *what)
        return {line.strip() for line in answer.text.splitlines() if line.strip()}, answer.why


def _of_slurm(site: Site, scheduler: Scheduler) -> Iterator[Check]:
    path = (scheduler.environment or os.environ).get("PATH")
    absent = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    detail = f"{', '.join(absent)} not in PATH" if absent else "all in PATH"
    yield Check("commands", not absent, detail, "load the site's Slurm module, or use a login node")
    why = scheduler.reachable()
    yield Check("controller", not why, why or "answers", f"try again later, or {ADMIN}")
    if why:
        return
    asked = _Asked(scheduler)
    yield _accounting(scheduler)
    yield from _partitions(site, asked)
    yield from _names(site, asked)
    yield from _nodes(site, asked)
    yield _arrays(site, asked.limits)
    yield _preemption(site, asked)
    yield from _waits(site, asked)
    yield from _mpi_start(site, scheduler)


def _accounting(scheduler: Scheduler) -> Check:
    why = scheduler.ask("sacct", "--noheader", "--allocations", "--jobs=1").why
    # not a failure: what was done stands in the run directory
    return Check(
        "accounting", None if why else True, why or "sacct answers", "how jobs ended will not be known for long"
    )


def _partitions(site: Site, asked: _Asked) -> Iterator[Check]:
    """That they exist, are up, and allow the time limits."""
    wanted = {
        "train": (site.partition, site.train.time_min),
        "evaluate": (site.partition, site.evaluate.time_min),
        "serial": (site.serial.partition or site.partition, site.serial.time_min),
    }
    for name in dict.fromkeys(partition for partition, _ in wanted.values()):
        fields, shown = asked.partition(name), name or "the default"
        known = ", ".join(asked.partitions) or "none that Slurm names"
        state = fields.get("State", f"unknown to Slurm; it has {known}")
        passed = state == "UP" if asked.partitions else None
        yield Check("partition", passed, f"{shown}: {state}", "correct `partition`")
    for role, (name, time_min) in wanted.items():
        longest = _minutes_of(asked.partition(name).get("MaxTime", ""))
        passed = None if longest is None else time_min <= longest
        allowed = "not known" if longest is None else "any" if math.isinf(longest) else f"{longest:g} min"
        yield Check(f"time of {role}", passed, f"{time_min} min; allowed: {allowed}", f"lower {role}.time_min")


def _minutes_of(text: str) -> float | None:
    try:
        return math.inf if text in UNLIMITED else float(minutes(text))
    except ValueError:
        return None


def _names(site: Site, asked: _Asked) -> Iterator[Check]:
    """Account, QOS and reservation, where the profile names them."""
    if site.account:
        yield _listed("account", site.account, *asked.listed("associations", f"user={_user()}", "format=account"))
    if site.qos:
        yield _listed("qos", site.qos, *asked.listed("qos", "format=name"))
    if site.reservation:
        answer = asked.scheduler.ask("scontrol", "show", "reservation", "--oneliner", site.reservation)
        passed = True if not answer.why else False if "not found" in answer.why else None
        yield Check("reservation", passed, answer.why or f"{site.reservation} exists", "correct `reservation`")


def _listed(key: str, name: str, known: set[str], why: str) -> Check:
    if why or not known:
        return Check(key, None, f"{name}: {why or 'sacctmgr lists none'}", f"submit a short job, or {ADMIN}")
    passed = name in known
    detail = f"{name}{' is' if passed else ' is not'} among {', '.join(sorted(known))}"
    return Check(key, passed, detail, f"correct `{key}`")


def _user() -> str:
    """Whose account it is; by number where this machine has no name for it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _nodes(site: Site, asked: _Asked) -> Iterator[Check]:
    """Features and GPUs of the partition's nodes."""
    if site.constraint:
        features = {word for line in asked.of_nodes(site.partition, "%f") for word in line.split(",")}
        unknown = set(re.findall(r"[A-Za-z_][\w.-]*", site.constraint)) - features
        detail = f"{site.constraint}; sinfo says {', '.join(sorted(features)) or 'nothing'}"
        yield Check("constraint", not unknown if features else None, detail, "correct `constraint`")
    if site.gpus_per_node:
        lines = asked.of_nodes(site.partition, "%G")
        kind = re.search(r"[:=](?!gpu\b)(\w+):\{count\}", site.gpu_request)
        most = max((_gpus(line, kind[1] if kind else "") for line in lines), default=0)
        passed = most >= site.gpus_per_node if lines else None
        detail = f"{site.gpus_per_node} a node asked for; sinfo says {', '.join(sorted(set(lines))) or 'nothing'}"
        yield Check("GPUs", passed, detail, "correct `gpus_per_node` or `gpu_request`")


def _gpus(gres: str, kind: str) -> int:
    """GPUs in sinfo's `gpu:a100:4(S:0-1),nvme:1`, of a kind or of any."""
    found = re.findall(r"gpu:(?:([^:,()]+):)?(\d+)", gres)
    return sum(int(count) for name, count in found if kind in ("", name))


def _arrays(site: Site, limits: Limits) -> Check:
    allowed = limits.max_array
    passed = None if allowed is None else site.max_array is None or site.max_array <= allowed
    detail = f"{site.max_array or 'as many as allowed'}; allowed: {allowed or 'not known'}"
    return Check("array", passed, detail, "lower `max_array`")


def _preemption(site: Site, asked: _Asked) -> Check:
    limits, fields = asked.limits, asked.partition(site.partition)
    found = _what_preemption_does(limits, fields, asked)
    passed = None if found is None else found == site.preempts
    signal = {True: ", the signal comes first", False: ", SIGTERM comes first", None: ""}[limits.user_signal]
    mode = f"{limits.preempt_type or 'PreemptType not known'}, PreemptMode {fields.get('PreemptMode', 'not known')}"
    return Check("preemption", passed, f"{site.preempts}; the site says {mode}{signal}", f"set `preempts`, or {ADMIN}")


def _what_preemption_does(limits: Limits, fields: dict[str, str], asked: _Asked) -> str | None:
    """The value of `preempts` that fits; None: not known."""
    if limits.preempt_type == "preempt/none":
        return "none"
    if limits.preempt_type != "preempt/partition_prio" or not fields:
        return None  # by QOS: every QOS has its own mode
    tiers = [number(other.get("PriorityTier", "")) or 0 for other in asked.partitions.values()]
    if (number(fields.get("PriorityTier", "")) or 0) >= max(tiers):
        return "none"
    return PREEMPTS.get(fields.get("PreemptMode", "").split(",")[-1])


def _waits(site: Site, asked: _Asked) -> Iterator[Check]:
    """That Slurm waits as long as the profile says."""
    grace = asked.partition(site.partition).get("GraceTime", "")
    waits = {"kill_wait_s": ("KillWait", site.kill_wait_s, asked.limits.kill_wait_s)}
    if site.preempts != "none":
        waits["grace_s"] = ("GraceTime", site.grace_s, number(grace))
    for key, (name, ours, theirs) in waits.items():
        detail = f"{ours} s; the site's: {'not known' if theirs is None else f'{theirs} s'}"
        yield Check(name, None if theirs is None else ours <= theirs, detail, f"lower `{key}`")


def _mpi_start(site: Site, scheduler: Scheduler) -> Iterator[Check]:
    """That srun, or the launcher, is able to start ranks."""
    if site.mpi.launcher:
        words = shlex.split(site.mpi.launcher)
        answer = _in_shell(site, scheduler, f"command -v {shlex.quote(words[0])}")
        yield Check("launcher", not answer.why, answer.why or answer.text.strip(), "load it in `setup`")
    elif site.mpi.srun_flag:
        plugin = site.mpi.srun_flag.removeprefix("--mpi=")
        answer = scheduler.ask("bash", "-c", "srun --mpi=list 2>&1")
        known = re.findall(r"\b(none|cray_\w+|pmi\w+|openmpi)\b", answer.text)
        detail = f"{plugin}; srun knows {', '.join(dict.fromkeys(known)) or answer.why or 'nothing'}"
        yield Check("srun --mpi", plugin in known if known else None, detail, "correct `mpi.srun_flag`")


def _of_programs(site: Site, scheduler: Scheduler) -> Iterator[Check]:
    """Programs as they are on this machine, which compute nodes are expected to resemble."""
    option = f"--block-signal={site.signal.name}"
    why = scheduler.ask("env", option, "true").why
    yield Check("env", not why, why or f"knows {option}", "load coreutils 8.31 or later in `setup`")
    answer = _python(site, scheduler, VERSION)
    detail = answer.why or f"{answer.text.strip()}, with hpc and submitit"
    yield Check("python", not answer.why, detail, "correct `setup` or `python`, and install promof-hpc there")
    if answer.why:
        return
    answer = _python(site, scheduler, MPI_VERSION)
    wanted = LIBRARIES.get(site.mpi.library, "")
    passed = not answer.why and wanted in answer.text
    remedy = "load the library of `mpi.library` in `setup`, or pip install 'promof-hpc[mpi-wheel]'"
    yield Check("MPI library", passed, f"{site.mpi.library}; found: {answer.why or answer.text.strip()}", remedy)


def _python(site: Site, scheduler: Scheduler, code: str) -> Answer:
    command = python_command(usual_request(Role.SERIAL, Path("/"), site), site)
    return _in_shell(site, scheduler, f"{command} -c {shlex.quote(code)}")


def _in_shell(site: Site, scheduler: Scheduler, command: str) -> Answer:
    """A command after the lines with which every job begins."""
    lines = setup_lines(usual_request(Role.SERIAL, Path("/"), site), site)
    slow = replace(scheduler, deadline_s=max(START_S, scheduler.deadline_s))
    return slow.ask("bash", "-c", "\n".join([*lines, command]))
