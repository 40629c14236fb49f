"""How a job leaves: who queues it again, and what its events say of it."""

import os
import signal

import pytest
import torch
from torch import nn

from hpc.cluster.jobs import Job
from hpc.cluster.site import Site, load_site
from hpc.preemption import Asked, Interrupted, Requests
from hpc.training.team import SoloTeam, Stops
from hpc.training.world import World
from promof_hpc.config import TrainingSettings
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import request_stop
from tests.runs import lennard_jones_run
from tests.slurm_commands import SlurmCommands

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)


@pytest.fixture
def clock():
    """Seconds, as a list of one."""
    return [1000.0]


@pytest.fixture
def requests(clock):
    """Handlers of a job, which are gone after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Requests(lambda: clock[0])
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    commands = SlurmCommands(tmp_path / "bin")
    commands.folder.mkdir()
    commands.says("scontrol", "")
    monkeypatch.setenv("PATH", str(commands.folder))
    return commands


@pytest.fixture
def job(tmp_path, requests):
    run = lennard_jones_run(tmp_path / "run", "Slow", 2)
    run.submissions.mkdir()
    return Job(run, load_site("test-cluster"), requests, "train", 0, "7")


def _leaves(job, asked, why=""):
    """What the events say of it."""
    with pytest.raises(SystemExit):
        job.leave(asked, why)
    (left,) = [e for e in read_events(job.run) if e["event"] == "job_leaves"]
    return left["asked"], left["why"]


def test_a_warned_job_queues_itself_again(job, slurm):
    assert _leaves(job, Asked.REQUEUE) == ("REQUEUE", "asked to stop")
    assert slurm.calls("scontrol") == ["requeue 7"]


def test_a_run_that_is_to_stop_is_not_queued_again(job, slurm):
    request_stop(job.run, "promof stop")
    assert _leaves(job, Asked.REQUEUE) == ("LEAVE", "STOP file in the run directory")
    assert not slurm.calls("scontrol")


def test_a_step_beside_one_that_trains_leaves_the_requeue_to_it(job, slurm, monkeypatch):
    monkeypatch.setenv("PROMOF_BESIDE", "train")
    assert _leaves(job, Asked.REQUEUE) == ("REQUEUE", "asked to stop")
    assert not slurm.calls("scontrol")


def test_once_training_has_ended_the_step_beside_it_queues_the_job_again(job, slurm, monkeypatch):
    monkeypatch.setenv("PROMOF_BESIDE", "train")
    monkeypatch.setattr("hpc.cluster.jobs.is_evaluated", lambda run: True)
    assert _leaves(job, Asked.REQUEUE) == ("REQUEUE", "asked to stop")
    assert slurm.calls("scontrol") == ["requeue 7"]


def test_ranks_without_work_end_well_and_say_why(job, slurm):
    assert _leaves(job, Asked.IDLE, "nothing to do for 30 min") == ("IDLE", "nothing to do for 30 min")
    assert not slurm.calls("scontrol")


def test_who_is_done_says_nothing_more(job):
    job.leave(Asked.NOTHING)
    (left,) = read_events(job.run)
    assert (left["asked"], left["why"]) == ("NOTHING", "")


def test_a_warning_presses_only_after_a_while_and_everything_else_at_once(requests, clock):
    assert requests.pressing(150.0) is Asked.NOTHING
    os.kill(os.getpid(), signal.SIGUSR2)
    assert requests.asked is Asked.REQUEUE
    clock[0] += 100.0
    os.kill(os.getpid(), signal.SIGUSR2)  # another one is no younger
    assert requests.pressing(150.0) is Asked.NOTHING
    clock[0] += 50.0
    assert requests.pressing(150.0) is Asked.REQUEUE
    assert requests.pressing(300.0) is Asked.NOTHING
    os.kill(os.getpid(), signal.SIGTERM)
    assert requests.pressing(300.0) is Asked.HOLD


def test_learning_goes_on_after_a_warning_until_it_presses(requests, clock):
    network = nn.Linear(1, 1)
    stops = Stops(lambda: requests.asked, lambda: requests.pressing(150.0))
    team = SoloTeam(TrainingSettings(), World(0, 0, 1, "", 0), stops)
    engine = team.engine("toy", network, 1e-2, 1.0)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert engine.step([network(torch.ones(1, 1)).sum()]) > 0
    assert team.agree() is Asked.REQUEUE  # what a safe point heeds
    clock[0] += 150.0
    with pytest.raises(Interrupted) as interrupted:
        engine.step([network(torch.ones(1, 1)).sum()])
    assert interrupted.value.asked is Asked.REQUEUE


def test_the_notice_of_a_site_is_the_shortest_that_it_gives():
    assert Site(signal={"lead_s": 300}).notice_s == 300
    assert Site(signal={"lead_s": 300}, grace_s=60).notice_s == 300  # nothing is preempted
    assert Site(signal={"lead_s": 300}, grace_s=60, preempts="requeue").notice_s == 60
    assert Site(signal={"lead_s": 30}, grace_s=60, preempts="requeue").notice_s == 30
    assert Site(signal={"lead_s": 300}, preempts="requeue").notice_s == 300  # TERM comes at once
