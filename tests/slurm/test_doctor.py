"""`promof doctor` inside a real allocation: two nodes of two ranks fit together, and lone ranks are told apart."""

from __future__ import annotations

import re
import shlex

import pytest

from hpc.cluster.site import Site, load_site
from hpc.cluster.site_check import Check
from promof_hpc.config import dump_config
from tests.commands import COMMAND, ROOT
from tests.slurm.client import ENDED

PASSED = {"pass": True, "FAIL": False, "unknown": None}


@pytest.fixture
def examine(cluster, tmp_path):
    """The lines of `promof doctor` in an allocation of two nodes of two tasks, by name, and its exit code."""

    def of(site: Site) -> tuple[dict[str, Check], int]:
        profile = tmp_path / "site.yaml"
        profile.write_text(dump_config(site))
        words = shlex.join([*COMMAND, "doctor", "--site", str(profile), "--run", str(tmp_path)])
        command = f"cd {ROOT}; PYTHONPATH={ROOT} OMP_NUM_THREADS=1 {words}"
        options = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--mem=2G", "--time=10")
        job = cluster.submit(command, *options)
        done = cluster.wait_for(job, *ENDED, seconds=300)
        lines = re.findall(r"^(pass|FAIL|unknown) +(.*?)  +(.*)$", cluster.output(job), re.MULTILINE)
        return {name: Check(name, PASSED[word], detail) for word, name, detail in lines}, done.exit_code

    return of


def test_two_nodes_of_two_ranks_pass_every_line(examine, tmp_path):
    checks, code = examine(load_site("test-cluster"))
    print(*checks.values(), sep="\n")
    failed = [check for check in checks.values() if check.passed is False]
    # the cluster's GPUs are a fake, and a torch for CPUs is rightly called unfit for them
    assert [check.detail for check in failed if "built without CUDA" not in check.detail] == []
    assert code == (1 if failed else 0)
    within = {
        "MPI world", "MPI threads", "GPUs of ranks", "PMI variables", "file visibility", "nodes' clocks", "hard links",
        "file locks", "first writer wins", "locks between nodes", "torch.distributed", "GPUs of trainers",
    }  # fmt: skip
    assert {name for name in within if name in checks and checks[name].passed} == within
    assert checks["MPI world"].detail == "4 ranks, as many as tasks"
    assert checks["GPUs of ranks"].detail == "n1: 0->0 1->1; n2: 2->0 3->1"
    assert checks["GPUs of trainers"].detail == "n1: 0->0,1; n2: 1->0,1"
    assert checks["torch.distributed"].detail.startswith("2 processes met by gloo")
    assert not list(tmp_path.glob(".promof-doctor-*"))


def test_ranks_that_srun_starts_without_their_flag_are_told_from_a_world(examine):
    site = load_site("test-cluster")
    without = site.model_copy(update={"mpi": site.mpi.model_copy(update={"srun_flag": None})})
    checks, code = examine(without)
    assert code == 1
    world = checks["MPI world"]
    assert world.passed is False
    assert world.detail.startswith("4 tasks, but each is a world of its own; ")
    assert "mpi.srun_flag" in world.detail
    assert "--mpi=pmi2 for mpich" in world.detail
    assert checks["torch.distributed"].passed
