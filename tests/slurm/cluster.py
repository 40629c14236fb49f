"""A private Slurm on this machine: munged, slurmctld, accounting and a few slurmd on loopback, with fake GPUs.

    with PrivateSlurm(folder) as cluster:
        job = cluster.submit("srun hostname", "--nodes=2")
        cluster.wait_for(job, State.COMPLETED)

Nothing outside `folder` is written, no service of the machine is touched, and `stop` ends exactly what was started.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.slurm.client import SlurmClient
from tests.slurm.configuration import (
    DEVICES,
    Accounting,
    ClusterSettings,
    Place,
    gres_conf,
    node_names,
    slurm_conf,
    slurmdbd_conf,
    user_name,
)
from tests.slurm.daemons import (
    DATABASE_PACKAGES,
    SYSTEM_PATH,
    ClusterError,
    Daemon,
    free_ports,
    how_to_install,
    in_jobs,
    kill_all,
    left_by,
    missing_packages,
    on_nodes,
    stop_daemons,
)

START_S = 60.0
POLL_S = 0.1
FOREIGN = ("SLURM", "SBATCH", "SRUN", "SALLOC", "PMI", "HYDRA", "MPI_LOCAL", "SUBMITIT")


class PrivateSlurm(SlurmClient):
    """A cluster in `folder` that lives until `stop`; `environment` is what a command needs to reach it."""

    def __init__(self, folder: Path, settings: ClusterSettings | None = None) -> None:
        settings = settings or ClusterSettings()
        self.settings = replace(settings, accounting=settings.accounting or _best_accounting())
        place = Place(folder.absolute(), free_ports(2 + self.settings.nodes))
        super().__init__(place, _environment(place, self.settings), node_names(self.settings))
        self._daemons: dict[str, Daemon] = {}

    def __enter__(self) -> PrivateSlurm:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # starting and stopping

    def start(self) -> None:
        """Write the configuration, start the daemons, and wait until every node is idle.

        Raises:
            ClusterError: packages are missing, the folder does not do, or a daemon does not come up.
        """
        database = DATABASE_PACKAGES if self.settings.accounting is Accounting.DATABASE else {}
        if missing := missing_packages() + missing_packages(database):
            raise ClusterError(how_to_install(missing))
        if problem := self.place.problem():
            raise ClusterError(problem)
        self._write()
        self._start_munged()
        if self.settings.accounting is Accounting.DATABASE:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self.start_slurmd(node)
        self.wait_for_nodes("idle", START_S)

    def stop(self) -> None:
        """End every daemon, step and job of this cluster; works with the controller dead, and twice."""
        after = ("slurmdbd", "mariadbd", "munged")  # the others still write to these while they end
        stop_daemons([daemon for name, daemon in self._daemons.items() if name not in after])
        kill_all(lambda: on_nodes(self.place))
        for name in after:
            stop_daemons([self._daemons[name]] if name in self._daemons else [])
        kill_all(lambda: left_by(self.place))
        self._daemons.clear()

    def _write(self) -> None:
        path = self.place.path
        for folder in ("etc", "state", "run", "log", "dev", "bin"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            (path / "spool" / node).mkdir(parents=True, exist_ok=True)
            (path / "tmp" / node).mkdir(parents=True, exist_ok=True)
        for number, device in zip(range(self.settings.gpus), DEVICES, strict=False):
            with contextlib.suppress(FileExistsError):
                (path / "dev" / f"gpu{number}").symlink_to(f"/dev/{device}")
        _write_private(path / "etc" / "munge.key", os.urandom(128))
        _write_private(path / "etc" / "slurmdbd.conf", slurmdbd_conf(self.place).encode())
        (path / "etc" / "gres.conf").write_text(gres_conf(self.place, self.settings))
        self.place.slurm_conf.write_text(slurm_conf(self.place, self.settings))
        if self.settings.accounting is Accounting.STAND_IN:
            stand_in = path / "bin" / "sacct"
            script = Path(__file__).with_name("sacct_stand_in.py")
            stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
            stand_in.chmod(0o755)

    def _start_munged(self) -> None:
        path = self.place.path
        self._start(
            "munged",
            ["munged", "--foreground", "--force", "--num-threads=2", f"--key-file={path}/etc/munge.key",
             f"--socket={self.place.munge_socket}", f"--pid-file={path}/run/munged.pid",
             f"--log-file={path}/log/munged.log", f"--seed-file={path}/run/munge.seed"],
        )  # fmt: skip
        self._wait_until(self.place.munge_socket.exists, "munged")

    def _start_accounting(self) -> None:
        """mariadbd, slurmdbd, and the cluster's name in it: slurmctld wants to find it there."""
        data = self.place.path / "database"
        common = ["--no-defaults", f"--user={user_name()}", f"--datadir={data}"]
        self.run("mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db")
        self._start(
            "mariadbd",
            ["mariadbd", *common, f"--socket={self.place.database_socket}", f"--pid-file={data}/mariadbd.pid",
             "--skip-networking", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M",
             "--innodb-flush-log-at-trx-commit=0"],
        )  # fmt: skip
        statements = (
            "create database slurm_accounting; create user slurm@localhost identified by 'private'; "
            "grant all on slurm_accounting.* to slurm@localhost;"
        )
        client = ("mariadb", "--no-defaults", "--user=root", f"--socket={self.place.database_socket}")
        self._wait_until(lambda: self.succeeds(*client, "--execute=select 1"), "mariadbd")
        self.run(*client, f"--execute={statements}")
        self._start("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(self.place.database_socket))
        self._wait_until(lambda: self.succeeds("sacctmgr", "--noheader", "list", "cluster"), "slurmdbd")
        self.run("sacctmgr", "--immediate", "add", "cluster", "promof")

    def start_controller(self) -> None:
        """Start slurmctld, with what it remembers of an earlier one."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self._wait_until(lambda: self.succeeds("scontrol", "ping"), "slurmctld")

    def kill_controller(self) -> None:
        """SIGKILL to slurmctld; `start_controller` brings it back."""
        self._daemons["slurmctld"].kill()

    def start_slurmd(self, node: str) -> None:
        """Start the slurmd of a node; it takes up steps that outlived an earlier one."""
        self._start(f"slurmd.{node}", ["slurmd", "-D", "-N", node], SLURMD_NODENAME=node)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to the slurmd of a node; its steps and jobs go on."""
        self._daemons[f"slurmd.{node}"].kill()

    def kill_node(self, node: str) -> None:
        """SIGKILL to everything on a node, as if its power had failed."""
        kill_all(lambda: on_nodes(self.place, node))

    def _start(self, name: str, command: list[str], **variables: str) -> None:
        self._daemons[name] = Daemon.start(name, command, {**self.environment, **variables}, self.place.logs)

    def _wait_until(self, ready: Callable[[], bool], name: str) -> None:
        """Wait for a daemon to answer.

        Raises:
            ClusterError: it ended, or said nothing in time.
        """
        daemon, deadline = self._daemons[name], time.monotonic() + START_S
        while not ready():
            if not daemon.alive or time.monotonic() > deadline:
                how = "does not answer" if daemon.alive else f"ended with {daemon.process.returncode}"
                raise ClusterError(f"{name} {how}; see {self.place.logs}. It said: {daemon.complaint()}")
            time.sleep(POLL_S)

    def send_user_signal_at_preemption(self, on: bool) -> None:
        """Switch whether preempted jobs get the signal of their `--signal`, in the running cluster."""
        self.settings = replace(self.settings, user_signal=on)
        self.place.slurm_conf.write_text(slurm_conf(self.place, self.settings))
        self.run("scontrol", "reconfigure")

    def clear(self) -> None:
        """Back to the start for the next test: no jobs, every daemon alive, every node idle, user signal on."""
        for name, daemon in list(self._daemons.items()):
            if not daemon.alive and name == "slurmctld":
                self.start_controller()
            elif not daemon.alive and name.startswith("slurmd."):
                self.start_slurmd(name.removeprefix("slurmd."))
        if not self.settings.user_signal:
            self.send_user_signal_at_preemption(True)
        self.run("scancel", "--full", f"--user={user_name()}")
        kill_all(lambda: in_jobs(self.place))  # Slurm would wait for those that hold on to SIGTERM
        self._resume_nodes()
        self.wait_for_nodes("idle")

    def _resume_nodes(self) -> None:
        """Let nodes that wait for an administrator return."""
        for node, state in self.node_states().items():
            if state.startswith(("down", "drain", "drng")):
                # refused for one that comes back by itself at this moment
                self.succeeds("scontrol", "update", f"NodeName={node}", "State=resume")


def _best_accounting() -> Accounting:
    return Accounting.STAND_IN if missing_packages(DATABASE_PACKAGES) else Accounting.DATABASE


def _environment(place: Place, settings: ClusterSettings) -> dict[str, str]:
    """This process's environment without any other cluster's variables, and with those that lead to this one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    first = [f"{place.path}/bin"] if settings.accounting is Accounting.STAND_IN else []
    path = ":".join([*first, os.environ.get("PATH", ""), SYSTEM_PATH])
    return {**ours, "PATH": path, "SLURM_CONF": str(place.slurm_conf)}


def _write_private(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
