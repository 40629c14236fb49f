"""Which process of a training job this is, and where the first one listens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from promof_hpc.errors import PromofError

FIRST_PORT, PORTS = 12_000, 8_000
NAMES_S = 20.0


@dataclass(frozen=True)
class World:
    """A process among those of its job.

    Attributes:
        rank: of this process, from 0; `local_rank` on its node.
        size: number of processes.
        address: of the node of rank 0; `port` is free there.
    """

    rank: int
    local_rank: int
    size: int
    address: str
    port: int

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> World:
        """What the environment says: torchrun's variables where they are set, else those of srun.

        The address of a site whose node names do not resolve is set as MASTER_ADDR in its profile.

        Raises:
            PromofError: this is no task of a job.
        """
        try:
            if "RANK" in environment:
                rank, local, size = (int(environment[n]) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
                return cls(rank, local, size, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
            rank, local, size = (int(environment[n]) for n in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"))
            address = environment.get("MASTER_ADDR") or _first_node(environment["SLURM_JOB_NODELIST"])
            job = int(environment["SLURM_JOB_ID"])
        except (KeyError, ValueError) as error:
            raise PromofError(
                f"This process is no task of a training job ({error}); start it by srun, as `promof submit` does."
            ) from error
        return cls(rank, local, size, address, FIRST_PORT + job % PORTS)


def _first_node(nodes: str) -> str:
    """First name of Slurm's compact list."""
    if not any(c in nodes for c in "[,"):
        return nodes
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NAMES_S, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise PromofError(
            f"The first node of {nodes} cannot be found ({error}); set MASTER_ADDR in the site profile's environment."
        ) from error
