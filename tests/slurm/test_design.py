"""A campaign on a cluster: DeepSpeed ranks propose and learn, MPI ranks of another job evaluate."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hpc.cluster.site import SITES
from promof_hpc.store.run_dir import RunDir, read_round
from tests.commands import ROOT, promof
from tests.processes import wait_for
from tests.slurm.client import State
from tests.slurm.users import User, committed, ends_exactly, small_campaign


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_campaign(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def local(config, tmp_path_factory):
    """The same campaign on this machine, with one training process and the same lookahead."""
    run = RunDir(tmp_path_factory.mktemp("local") / "run")
    promof("design", config, "--run", run.path, "--ranks", 2, cwd=ROOT)
    return run


def learned(run: RunDir, number: int) -> dict:
    return json.loads(run.learned(number).read_text())["signals"]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_campaign_on_slurm_decides_what_the_local_one_decides(cluster, config, local, tmp_path, stage):
    run = RunDir(tmp_path / "run")
    settings = ("--set", f"training.zero_stage={stage}")
    said = User(cluster, tmp_path).promof(
        "submit", "design", config, *settings, "--site", "test-cluster", "--run", run.path
    )
    assert "promof-train-run: 2 x 1 tasks" in said
    assert "promof-evaluate-run: 2 x 2 tasks" in said
    ends_exactly(run)
    ours, theirs = read_round(run, 0).arrays, read_round(local, 0).arrays
    assert ours["proposal_sequence"] == theirs["proposal_sequence"]
    np.testing.assert_array_equal(ours["trace_draft_token"], theirs["trace_draft_token"])
    actions = [name for name in ours if "rollout_action" in name]
    assert len(actions) >= 4
    for name in actions:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    for number in (0, 1):
        assert learned(run, number) == pytest.approx(learned(local, number), rel=1e-4, abs=1e-4, nan_ok=True)


def test_one_job_with_two_steps_spends_exactly_its_budget_through_a_preemption(cluster, config, tmp_path):
    site = tmp_path / "one-job.yaml"
    site.write_text((SITES / "test-cluster.yaml").read_text() + "layout: one_job\n")
    user, run = User(cluster, tmp_path), RunDir(tmp_path / "run ü [1]'s")
    said = user.promof("submit", "design", config, "--site", site, "--run", run.path)
    assert "beside it 2 x 2 tasks" in said
    assert said.count("Submitted") == 1
    wait_for(lambda: committed(run) > 5, 180, "some batches")
    cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=90)
    ends_exactly(run)
    assert "started again" in user.promof("status", run.path)
    for word in ("logs", "report", "stop", "resume"):
        assert str(run.path) in user.promof(word, run.path).replace("\n", "")
    user.promof("verify", run.path)
