"""Starting daemons so that they can be ended for certain, and finding whatever a cluster left running."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.slurm.configuration import Place

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SLURM_PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
DATABASE_PACKAGES = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-server",
}
PORTS = range(20_000, 32_000)  # below the range from which the kernel takes the ports of outgoing connections
STOP_S = 15.0
POLL_S = 0.05


class ClusterError(Exception):
    """The private cluster cannot do what it was asked for; the text says why and what to do."""


def missing_packages(of: Mapping[str, str] = SLURM_PACKAGES) -> list[str]:
    """Debian packages whose programs are absent here."""
    return sorted({package for program, package in of.items() if not shutil.which(program, path=SYSTEM_PATH)})


def how_to_install(packages: Sequence[str]) -> str:
    """One sentence for a user without these packages."""
    return (
        f"A private Slurm needs {', '.join(packages)}: run tests/slurm/install.sh, or "
        f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    )


@dataclass
class Daemon:
    """A daemon in the foreground, our own child; it ends with us even if nobody stops it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str], logs: Path) -> Daemon:
        """Start `command`, which must not go to the background; it gets SIGTERM if this process dies."""
        log = logs / f"{name}.out"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "prlimit", "--core=0", *command],  # jobs inherit: no core files
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for pytest, which then stops them in order
            )
        return cls(name, process, log)

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.wait(STOP_S)

    def complaint(self) -> str:
        """The last lines that it wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it wrote nothing"


def stop_daemons(daemons: Iterable[Daemon], seconds: float = STOP_S) -> None:
    """SIGTERM to all, and SIGKILL to those that have not ended by then."""
    living = [daemon for daemon in daemons if daemon.alive]
    for daemon in living:
        daemon.process.terminate()
    deadline = time.monotonic() + seconds
    for daemon in living:
        try:
            daemon.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.kill()


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of loopback that nothing listens on just now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise ClusterError(f"Fewer than {count} free ports between {PORTS.start} and {PORTS.stop}; close something first.")


def left_by(place: Place) -> list[psutil.Process]:
    """Living processes of a cluster: daemons, slurmstepds, and their jobs with all descendants."""
    central = [process for process in psutil.process_iter() if _is_central(process, place)]
    return on_nodes(place) + [process for process in central if _alive(process)]


def on_nodes(place: Place, *names: str) -> list[psutil.Process]:
    """Living slurmd, steps and jobs on these nodes of a cluster, or on any if none is named, with all descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        node = _node_of(process, place)
        if node and node in (names or (node,)):
            with contextlib.suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return [process for process in found.values() if _alive(process)]


def in_jobs(place: Place) -> list[psutil.Process]:
    """Living processes of all jobs; not the daemons and slurmstepds."""

    def has_job(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return "SLURM_JOB_ID" in process.environ()
        return False

    return [process for process in on_nodes(place) if has_job(process)]


def _node_of(process: psutil.Process, place: Place) -> str:
    """The node of this cluster that a process is on; empty if it is on none.

    slurmd is started with SLURMD_NODENAME and jobs get it; a shell of somebody who looks at the cluster has only
    SLURM_CONF. slurmstepd writes its title over its environment: it is known by the log that it shares with slurmd.
    """
    with contextlib.suppress(psutil.Error):
        if process.name() == "slurmstepd":
            logs = (Path(file.path) for file in process.open_files())
            return next((log.suffixes[0][1:] for log in logs if log.match(f"{place.logs}/slurmd.*.log")), "")
        environment = process.environ()
        if environment.get("SLURM_CONF") == str(place.slurm_conf):
            return environment.get("SLURMD_NODENAME", "")
    return ""


def _is_central(process: psutil.Process, place: Place) -> bool:
    with contextlib.suppress(psutil.Error):
        if process.name() in ("slurmctld", "slurmdbd"):
            return process.environ().get("SLURM_CONF") == str(place.slurm_conf)
        return process.name() in ("munged", "mariadbd") and any(f"={place.path}/" in w for w in process.cmdline())
    return False


def _alive(process: psutil.Process) -> bool:
    """It runs; a zombie does not (the first process of a container may never reap it)."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kill_all(find: Callable[[], list[psutil.Process]], seconds: float = STOP_S) -> None:
    """SIGKILL to all that `find` finds, until it finds nothing.

    Raises:
        ClusterError: something still lives after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while living := find():
        if time.monotonic() > deadline:
            raise ClusterError(f"Still alive after SIGKILL: {', '.join(str(process) for process in living)}")
        for end in (psutil.Process.suspend, psutil.Process.kill):  # stopped first: a step must not report a death
            for process in living:
                with contextlib.suppress(psutil.Error):
                    end(process)
        time.sleep(POLL_S)
