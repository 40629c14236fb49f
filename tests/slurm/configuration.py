"""What a private Slurm cluster is: its settings, its place on disk, and the text of its configuration files."""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

SOCKET_PATH_LIMIT = 107  # bytes, of a Unix socket's path on Linux
DEVICES = ("null", "zero", "full", "random")  # gres wants a character device behind every GPU: these are everywhere


class Accounting(Enum):
    """Who answers `sacct`."""

    DATABASE = "slurmdbd with a private mariadbd"
    STAND_IN = "a script before sacct in PATH that asks the controller"
    NONE = "nobody: sacct fails, as on sites without accounting"


@dataclass(frozen=True)
class ClusterSettings:
    """Size and timing of a private cluster.

    Attributes:
        user_signal: a preempted job gets the signal of its `--signal` at once, then has `grace_s`.
        kill_wait_s: from SIGTERM to SIGKILL when Slurm ends a job.
        cred_expire_s: a requeued job waits this long before it can start again; below 5 Slurm takes 120 instead.
        node_timeout_s: a node whose slurmd is silent for this long is down.
        job_age_s: how long the controller remembers a finished job.
        accounting: who answers `sacct`; by default the best that is installed.
    """

    nodes: int = 4
    cpus: int = 4
    gpus: int = 2
    memory_mb: int = 4000
    user_signal: bool = True
    grace_s: int = 10
    kill_wait_s: int = 3
    cred_expire_s: int = 5
    node_timeout_s: int = 10
    job_age_s: int = 3600
    accounting: Accounting | None = None


@dataclass(frozen=True)
class Place:
    """Where a private cluster lives: one folder and its ports on loopback (controller, accounting, then the nodes)."""

    path: Path
    ports: tuple[int, ...]

    @property
    def slurm_conf(self) -> Path:
        """The file that SLURM_CONF names; it also tells our processes from those of another cluster."""
        return self.path / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Socket of the private munged."""
        return self.path / "run" / "munge.sock"

    @property
    def database_socket(self) -> Path:
        """Socket of the private mariadbd."""
        return self.path / "run" / "mariadb.sock"

    @property
    def logs(self) -> Path:
        """Folder of every daemon's log."""
        return self.path / "log"

    def problem(self) -> str:
        """Why no cluster can live here; empty if one can."""
        if odd := sorted(set(str(self.path)) & set(" #%=,[]'\"\\\t")):
            return f"slurm.conf cannot hold a path with {' '.join(map(repr, odd))}: {self.path}; choose a plain folder."
        if len(str(self.database_socket)) > SOCKET_PATH_LIMIT:
            return f"Sockets below {self.path} would be longer than {SOCKET_PATH_LIMIT} bytes; choose a shorter folder."
        return ""


def user_name() -> str:
    """Whom this process runs as; the environment may say something else."""
    return pwd.getpwuid(os.geteuid()).pw_name


def node_names(settings: ClusterSettings) -> list[str]:
    """n1, n2, ..."""
    return [f"n{i}" for i in range(1, settings.nodes + 1)]


def slurm_conf(place: Place, settings: ClusterSettings) -> str:
    """The text of slurm.conf: every daemon on loopback, no cgroups. Jobs of the partition `high`
    requeue those of `low` and cancel those of `fragile`.
    """
    user, path = user_name(), place.path
    controller, accounting, *node_ports = place.ports
    lines = [
        "ClusterName=promof",
        f"SlurmctldHost={socket.gethostname().split('.')[0]}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={place.munge_socket},cred_expire={settings.cred_expire_s}",
        "CredType=cred/munge",
        f"StateSaveLocation={path}/state",
        f"SlurmdSpoolDir={path}/spool/%n",
        f"TmpFS={path}/tmp/%n",  # one for each node, or PMIx collides
        f"SlurmctldPidFile={path}/run/slurmctld.pid",
        f"SlurmdPidFile={path}/run/slurmd.%n.pid",
        f"SlurmctldLogFile={place.logs}/slurmctld.log",
        f"SlurmdLogFile={place.logs}/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=100000,batch_sched_delay=0",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "SlurmdParameters=config_overrides",  # nodes may declare more CPUs than this machine has
        f"KillWait={settings.kill_wait_s}",
        f"MinJobAge={settings.job_age_s}",
        "JobRequeue=1",
        "ReturnToService=1",  # with 2 a node that an administrator sets down comes back by itself
        "SlurmctldTimeout=30",
        f"SlurmdTimeout={settings.node_timeout_s}",
        "MessageTimeout=10",
        "PropagateResourceLimits=NONE",
        "MailProg=/bin/true",
        "GresTypes=gpu",
        *_preemption(settings),
        *_accounting(place, settings, accounting),
        *_nodes(settings, node_ports),
        *_partitions(settings),
    ]
    return "\n".join(lines) + "\n"


def _preemption(settings: ClusterSettings) -> list[str]:
    return ["SlurmctldParameters=preempt_send_user_signal"] if settings.user_signal else []


def _accounting(place: Place, settings: ClusterSettings, port: int) -> list[str]:
    if settings.accounting is not Accounting.DATABASE:
        return ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={port}",
        f"AccountingStoragePass={place.munge_socket}",  # also here, else slurmctld ends with "no TRES"
    ]


def _nodes(settings: ClusterSettings, ports: list[int]) -> list[str]:
    host = socket.gethostname().split(".")[0]
    size = f"CPUs={settings.cpus} RealMemory={settings.memory_mb} Gres=gpu:fake:{settings.gpus}"
    return [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {size} State=UNKNOWN"
        for name, port in zip(node_names(settings), ports, strict=True)
    ]


def _partitions(settings: ClusterSettings) -> list[str]:
    common = "Nodes=ALL DefaultTime=10 MaxTime=INFINITE DefMemPerCPU=100 State=UP"
    return [
        f"PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace_s} {common}",
        f"PartitionName=fragile Default=NO PriorityTier=1 PreemptMode=CANCEL GraceTime={settings.grace_s} {common}",
        f"PartitionName=high Default=NO PriorityTier=10 PreemptMode=OFF {common}",
    ]


def gres_conf(place: Place, settings: ClusterSettings) -> str:
    """The text of gres.conf: the fake GPUs of every node are the same few device files."""
    names = ",".join(node_names(settings))
    return f"AutoDetect=off\nNodeName={names} Name=gpu Type=fake File={place.path}/dev/gpu[0-{settings.gpus - 1}]\n"


def slurmdbd_conf(place: Place) -> str:
    """The text of slurmdbd.conf; the database's socket goes in by MYSQL_UNIX_PORT, 22.05 has no option for it."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={place.munge_socket}",
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={place.ports[1]}",
        f"SlurmUser={user_name()}",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=slurm",
        "StoragePass=private",
        "StorageLoc=slurm_accounting",
        f"LogFile={place.logs}/slurmdbd.log",
        f"PidFile={place.path}/run/slurmdbd.pid",
    ]
    return "\n".join(lines) + "\n"
