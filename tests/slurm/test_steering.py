"""What a user does to a campaign's jobs: resume what preemption cancelled, release, chain, stop at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpc.cluster.site import SITES
from promof_hpc.store.run_dir import RunDir
from tests.commands import COMMAND
from tests.processes import wait_for
from tests.slurm.client import ENDED, State
from tests.slurm.faults import tasks_of
from tests.slurm.users import User, committed, ended, ends_exactly, small_campaign

MPIEXEC = Path(COMMAND[0]).parent / "mpiexec"  # of the wheel


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_campaign(tmp_path_factory.mktemp("small"))


@pytest.fixture
def user(cluster, tmp_path):
    return User(cluster, tmp_path)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def _site(folder, **keys: str) -> str:
    """A profile that differs from the test cluster's in some keys."""
    text = (SITES / "test-cluster.yaml").read_text()
    for key, value in keys.items():
        text = re.sub(rf"(?m)^{key}: .*\n", "", text) + f"{key}: {value}\n"
    profile = folder / "site.yaml"
    profile.write_text(text)
    return str(profile)


def _submitted(said: str) -> list[int]:
    return [int(job) for job in re.findall(r"^Submitted .* job (\d+)\.$", said, re.MULTILINE)]


def test_jobs_that_preemption_cancels_are_submitted_again_by_resume(cluster, user, run, config, tmp_path):
    cluster.send_user_signal_at_preemption(False)  # with it they would requeue themselves
    site = _site(tmp_path, partition="fragile", preempts="cancel")
    jobs = _submitted(user.promof("submit", "design", config, "--site", site, "--run", run.path))
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=90)
    for job in jobs:
        cluster.wait_for(job, State.PREEMPTED, *ENDED)
    assert not ended(run)
    wait_for(lambda: "promof resume" in user.promof("status", run.path), 60, "status that says what to do")
    again = _submitted(user.promof("resume", run.path))
    assert len(again) == 2
    assert not set(again) & set(jobs)
    ends_exactly(run)


def test_a_run_that_was_stopped_at_once_goes_on_by_resume_without_waiting(cluster, user, run, config, tmp_path):
    site = _site(tmp_path, poll_s="60")  # what the scheduler said last is as old as on a real site
    jobs = _submitted(user.promof("submit", "design", config, "--site", site, "--run", run.path))
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    user.promof("status", run.path)
    user.promof("stop", "--now", run.path)
    for job in jobs:
        cluster.wait_for(job, State.CANCELLED, State.COMPLETED)
    wait_for(lambda: len(_submitted(user.promof("resume", run.path))) == 2, 30, "two new jobs")
    assert _submitted(user.promof("resume", run.path)) == []
    ends_exactly(run)


def test_a_job_that_slurm_holds_is_named_by_status_and_released_by_resume(cluster, user, run, config):
    train, evaluate = (int(job) for job in user.submit(config, run))
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    cluster.run("scontrol", "requeuehold", str(evaluate))
    cluster.wait_for(evaluate, State.PENDING, State.REQUEUE_HOLD)
    wait_for(lambda: "held by Slurm" in user.promof("status", run.path), 30, "status that names it")
    assert f"Job {evaluate} was held by Slurm; released." in user.promof("resume", run.path)
    ends_exactly(run)
    assert cluster.job(train).restarts == 0


def test_a_chained_job_goes_on_where_the_one_before_it_died(cluster, user, run, config):
    words = ("submit", "design", config, "--site", "test-cluster", "--run", run.path, "--chain", "1")
    jobs = _submitted(user.promof(*words))
    assert len(jobs) == 4
    first, second = jobs[:2]  # those that train
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    for process in wait_for(lambda: tasks_of(str(first), 0), 60, "the trainer"):
        process.kill()
    cluster.wait_for(first, *ENDED)
    cluster.wait_for(second, State.RUNNING, *ENDED, seconds=120)
    ends_exactly(run)
    wait_for(lambda: all(cluster.job(job).state in ENDED for job in jobs), 120, "the chain's end")


def test_a_chain_ends_where_a_job_was_cancelled(cluster, user, run, config):
    words = ("submit", "design", config, "--site", "test-cluster", "--run", run.path, "--chain", "1")
    jobs = _submitted(user.promof(*words))
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    cluster.cancel(jobs[0], jobs[2])
    for job in jobs:
        cluster.wait_for(job, *ENDED, seconds=120)
    assert not ended(run)
    assert "was cancelled" in user.promof("status", run.path)
    assert len(_submitted(user.promof("resume", run.path))) == 2
    ends_exactly(run)


def test_ranks_that_the_sites_launcher_starts_spend_the_budget_through_a_preemption(
    cluster, user, run, config, tmp_path
):
    profile = tmp_path / "site.yaml"
    text = (SITES / "test-cluster.yaml").read_text()
    profile.write_text(text.replace("  srun_flag: --mpi=pmi2\n", f"  launcher: {MPIEXEC} -launcher fork\n"))
    words = ("--site", profile, "--set", "farm.ranks=2", "--run", run.path)
    user.promof("submit", "design", config, *words)
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=90)
    ends_exactly(run)
    assert "started again" in user.promof("status", run.path)


def test_evaluators_that_left_for_want_of_work_are_called_back_by_the_trainer(cluster, user, run, config, tmp_path):
    site = _site(tmp_path, idle_min="0.1")
    said = user.promof("submit", "design", config, "--site", site, "--run", run.path)
    train, evaluate = _submitted(said)
    wait_for(lambda: committed(run) > 2, 180, "some batches")
    cluster.run("scontrol", "requeuehold", str(train))
    cluster.wait_for(evaluate, *ENDED, seconds=120)
    assert "nothing to do" in user.promof("status", run.path)
    cluster.release(train)
    ends_exactly(run)
    wait_for(lambda: len(list(run.submissions.glob("*.json"))) == 3, 10, "the record of the third job")
