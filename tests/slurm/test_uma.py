"""UMA on a cluster: weights in its own format are staged, and jobs work with the copies."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hpc.cluster.site import SITES
from hpc.kinds import is_done
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.verify import verify
from tests.commands import ROOT
from tests.processes import wait_for
from tests.slurm.users import User, ends_exactly, small_campaign
from tests.tiny_uma import write_tiny_uma

pytest.importorskip("fairchem.core", reason="fairchem-core is not installed: pip install 'promof-hpc[uma]'")
MOFS, BUDGET = 12, 16
UMA = {"name": "uma", "task": "omat"}


@pytest.fixture
def user(cluster, tmp_path):
    return User(cluster, tmp_path)


def _staged(user: User, config: Path, folder: Path) -> list[str]:
    """Stage what a configuration names; the options that use the copies, as they are printed for a user."""
    weights = write_tiny_uma(folder / "uma.pt")
    said = user.promof("stage", config, "--to", folder / "shared", "--set", f"evaluation.potential.weights={weights}")
    weights.unlink()  # only the copies are left
    return shlex.split(re.sub(r"\\\n", " ", said.split("Use the copies with:")[1]))


def _judges(run: RunDir) -> str:
    return json.loads(run.provenance.read_text())["potential"]["id"]


def test_a_campaign_under_uma_spends_its_budget(user, tmp_path):
    evaluation = {"stages": "read,pores,relax,energy", "potential": UMA, "relax": {"max_steps": 3}}
    config = small_campaign(tmp_path, budget=BUDGET, evaluation=evaluation)
    options, run = _staged(user, config, tmp_path), RunDir(tmp_path / "run")
    site = tmp_path / "scratch.yaml"
    site.write_text((SITES / "test-cluster.yaml").read_text() + f"\nscratch: {tmp_path}/$SLURMD_NODENAME\n")
    user.promof("submit", "design", config, "--potential", "uma", *options, "--site", site, "--run", run.path)
    ends_exactly(run, BUDGET)
    assert _judges(run) == "uma-omat"
    assert len(list(tmp_path.glob("*/promof-*/*/potential-*/uma.pt"))) >= 2  # a copy for each node of the evaluators


def test_a_screening_under_uma_ends(user, tmp_path):
    names = (ROOT / "tests" / "data" / "screen200.txt").read_text().split()[:MOFS]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    config = tmp_path / "screen.yaml"
    config.write_text(yaml.safe_dump({
        "library": "coremof:2019-ASR", "reference": "none", "read": {"names": str(tmp_path / "names.txt")},
        "evaluation": {"stages": "read,relax,energy", "potential": UMA, "relax": {"max_steps": 3}},
        "farm": {"ranks": 4, "batch_structures": 2},
    }))  # fmt: skip
    options, run = _staged(user, config, tmp_path), RunDir(tmp_path / "run")
    words = ["--config", config, "--potential", "uma", *options, "--site", "test-cluster", "--run", run.path]
    user.promof("submit", "screen", "coremof:2019-ASR", *words)
    wait_for(lambda: is_done(run), 400, "the end of the screening")
    assert _judges(run) == "uma-omat"
    assert verify(run).sound
    outcomes = [result.row.outcome for result in read_results(run)]
    assert len(outcomes) == MOFS
    assert "max_steps" in outcomes
