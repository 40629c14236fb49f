"""`promof doctor` inside a real allocation: two nodes of two ranks fit together, and lone ranks are told apart."""

from __future__ import annotations

import json
import re
import sys

import pytest

from hpc.cluster.site import Site, load_site
from hpc.cluster.site_check import Check
from promof_hpc.config import dump_config
from tests.commands import ROOT
from tests.slurm.client import ENDED

PROGRAM = """
import dataclasses, json, pathlib, sys
from hpc.cluster.doctor.examination import doctor_in_allocation
from hpc.cluster.site import load_site
checks = doctor_in_allocation(load_site(sys.argv[1]), pathlib.Path(sys.argv[2]))
print("CHECKS", json.dumps([dataclasses.asdict(check) for check in checks]))
"""


@pytest.fixture
def examine(cluster, tmp_path):
    """The lines that the doctor has inside an allocation of two nodes of two tasks, by their names."""

    def of(site: Site) -> dict[str, Check]:
        profile, program = tmp_path / "site.yaml", tmp_path / "program.py"
        profile.write_text(dump_config(site))
        program.write_text(PROGRAM)
        command = f"PYTHONPATH={ROOT} OMP_NUM_THREADS=1 {sys.executable} {program} {profile} {tmp_path}"
        options = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--mem=2G", "--time=10")
        job = cluster.submit(command, *options)
        cluster.wait_for(job, *ENDED, seconds=300)
        said = re.search(r"^CHECKS (.*)$", cluster.output(job), re.MULTILINE)
        assert said, cluster.output(job)
        return {check["name"]: Check(**check) for check in json.loads(said[1])}

    return of


def test_two_nodes_of_two_ranks_pass_every_line(examine, tmp_path):
    checks = examine(load_site("test-cluster"))
    print(*checks.values(), sep="\n")
    assert [check for check in checks.values() if check.passed is not True] == []
    assert checks.keys() == {
        "MPI world", "MPI threads", "GPUs of ranks", "PMI variables", "file visibility", "nodes' clocks", "hard links",
        "file locks", "first writer wins", "locks between nodes", "torch.distributed", "GPUs of trainers",
    }  # fmt: skip
    assert checks["MPI world"].detail == "4 ranks, as many as tasks"
    assert checks["GPUs of ranks"].detail == "n1: 0->0 1->1; n2: 2->0 3->1"
    assert checks["GPUs of trainers"].detail == "n1: 0->0,1; n2: 1->0,1"
    assert checks["torch.distributed"].detail.startswith("2 processes met by gloo")
    assert not list(tmp_path.glob(".promof-doctor-*"))


def test_ranks_that_srun_starts_without_their_flag_are_told_from_a_world(examine):
    site = load_site("test-cluster")
    without = site.model_copy(update={"mpi": site.mpi.model_copy(update={"srun_flag": None})})
    checks = examine(without)
    world = checks["MPI world"]
    assert world.passed is False
    assert world.detail == "4 tasks, but each is a world of its own"
    assert "mpi.srun_flag" in world.remedy
    assert "--mpi=pmi2 for mpich" in world.remedy
    assert checks["torch.distributed"].passed
