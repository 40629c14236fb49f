"""A campaign on a cluster: DeepSpeed ranks propose and learn, MPI ranks of another job evaluate."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import yaml

from promof_hpc.store.budget import fold
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.verify import verify
from tests.commands import COMMAND, ENVIRONMENT, ROOT
from tests.policies import libraries, policies
from tests.processes import wait_for

BUDGET = 64


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A campaign of both policies, small ones, under Lennard-Jones."""
    folder = tmp_path_factory.mktemp("small")
    content = {
        "budget": BUDGET,
        "task": {"name": "pore", "pld_ang": 3.0},
        "reference": "none",
        "reward": {"stability_weight": 0},
        "rounds": {"targets": 1, "sets": 4, "assemblies": 4, "lookahead": 1, "proposals_per_evaluation": 40},
        "assembly": {"atom_cap": 50, "tries": 1},
        "sde": {"steps": 4},
        "learning": {"k": 2},
        "policy": {"weights": str(policies(folder / "weights")), "data": str(libraries(folder / "data"))},
        "evaluation": {"stages": "read,pores,relax,energy", "potential": {"name": "lennard-jones"}, "relax": {"max_steps": 5}},
        "farm": {"ranks": 4, "batch_structures": 2},
        "training": {"tasks": 2},
    }
    path = folder / "design.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Cluster:
    """`promof` commands of a user who is logged in to the private cluster."""

    def __init__(self, cluster):
        self.environment = {**ENVIRONMENT, **cluster.environment, "OMP_NUM_THREADS": "1"}

    def promof(self, *words: object, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *map(str, words)], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout


def test_a_campaign_on_slurm_decides_what_the_local_one_decides(cluster, config, tmp_path):
    user = Cluster(cluster)
    run = RunDir(tmp_path / "run")
    print(user.promof("submit", "design", config, "--site", "test-cluster", "--run", run.path))
    wait_for(run.ended.exists, 300, "the end of the campaign")
    assert json.loads(run.ended.read_text())["ending"] == "SPENT"
    ledger = fold(run, BUDGET)
    assert (ledger.issued, ledger.committed, ledger.wasted) == (BUDGET, BUDGET, 0)
    assert verify(run).sound
    assert os.environ
