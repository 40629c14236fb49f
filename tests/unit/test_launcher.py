"""Ranks that the site's MPI launcher starts: their job learns how they left, and that they never began or met."""

import os
import signal
import sys
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from hpc.cluster.jobs import Evaluate
from hpc.cluster.launcher import launch_ranks
from hpc.cluster.site import load_site
from hpc.farm import Stay
from hpc.preemption import Asked, Parting
from promof_hpc.config import dump_config
from promof_hpc.errors import PromofError
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import suspects
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, request_stop
from promof_hpc.store.shard import publish_text
from tests.commands import ROOT
from tests.processes import ranks_of, wait_for
from tests.runs import lennard_jones_run
from tests.slurm_commands import SlurmCommands

MPIEXEC = Path(sys.executable).parent / "mpiexec"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Of a job whose ranks are started by the mpiexec of the MPI wheel."""
    job = {"PROMOF_MPI_LAUNCHER": f"{MPIEXEC} -n 2", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2",
           "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(autouse=True)
def handlers():
    """A job's are gone after the test."""
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGCONT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def requests():
    return SimpleNamespace(asked=Asked.NOTHING)


def _run(path: Path, potential: str, *settings, count: int = 6) -> RunDir:
    run = lennard_jones_run(path, potential, count, *settings)
    run.submissions.mkdir()
    publish_text(run.site, dump_config(load_site("test-cluster")))
    return run


def _launch(run, requests, idle_s=0.0, meeting_s=120.0, missed=lambda: None):
    return launch_ranks(run, requests, Stay(idle_s), meeting_s, missed)


def test_ranks_that_have_done_everything_say_so(tmp_path, requests):
    run = _run(tmp_path / "run", "Slow")
    assert _launch(run, requests) == (0, Parting())
    assert fold(run, None).committed == 6
    assert not list(run.submissions.iterdir())


def test_ranks_without_work_leave_idle_and_say_why(tmp_path, requests):
    run = _run(tmp_path / "run", "Slow", count=2)
    run.ingested.unlink()  # more may come
    assert _launch(run, requests, idle_s=3.0) == (0, Parting(Asked.IDLE, "nothing to do for 0.05 min"))


def test_the_tripwire_does_not_look_like_done(tmp_path, requests):
    run = _run(tmp_path / "run", "AlwaysNaN", count=80)
    code, parting = _launch(run, requests)
    assert (code, parting.asked) == (0, Asked.LEAVE)
    assert "more than half of the last 50 evaluations" in parting.why


def test_a_stop_file_is_no_end(tmp_path, requests):
    run = _run(tmp_path / "run", "Slow")
    request_stop(run, "test")
    assert _launch(run, requests) == (0, Parting(Asked.LEAVE, "STOP file in the run directory"))


def test_what_the_job_is_asked_drains_the_ranks(tmp_path, requests):
    run = _run(tmp_path / "run", "Slow", count=200)

    def warn():
        wait_for(lambda: run.committed(0), 60, "the first commit")
        requests.asked = Asked.REQUEUE

    warning = Thread(target=warn)
    warning.start()
    assert _launch(run, requests) == (0, Parting(Asked.REQUEUE, "asked to stop"))
    warning.join()
    assert 0 < fold(run, None).committed < 200
    assert suspects(run) == set()


def test_a_launcher_that_hangs_before_any_rank_begins_is_ended(tmp_path, requests, variables):
    hanging = tmp_path / "mpiexec"
    hanging.write_text(f'#!/bin/sh\necho $$ >"{tmp_path}/pid"\nexec /bin/sleep 600\n')
    hanging.chmod(0o755)
    variables.setenv("PROMOF_MPI_LAUNCHER", f"{hanging} -n 2")
    run, missed = _run(tmp_path / "run", "Slow"), []
    with pytest.raises(PromofError, match=r"did not find each other within 1 s \(farm.meeting_s\)"):
        _launch(run, requests, meeting_s=1.0, missed=lambda: missed.append(True))
    assert missed == [True]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


@pytest.fixture
def no_meeting(tmp_path, variables):
    """One in which MPI waits for ever, as others see it that never come."""
    package = tmp_path / "fake" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("class rc:\n    pass\n")
    (package / "MPI.py").write_text("import time\ntime.sleep(600)\n")
    variables.setenv("PYTHONPATH", f"{package.parent}:{ROOT}")


@pytest.fixture
def slurm(tmp_path, variables):
    commands = SlurmCommands(tmp_path / "bin")
    commands.folder.mkdir()
    commands.says("scontrol", "")
    variables.setenv("PATH", f"{commands.folder}:{os.environ['PATH']}")
    return commands


@pytest.mark.usefixtures("no_meeting")
def test_ranks_that_do_not_meet_queue_their_job_again(tmp_path, slurm):
    run = _run(tmp_path / "run", "Slow", "farm.meeting_s=8")  # more than the imports take
    with pytest.raises(PromofError, match="did not find each other"):
        Evaluate(str(run.path))()
    assert slurm.calls("scontrol") == ["requeue 7"]
    assert [e["event"] for e in read_events(run) if e.get("job") == "7"] == ["job_began", "missed", "requeued"]
    assert not ranks_of(run)


def test_a_rank_that_is_killed_is_not_said_to_be_unable_to_evaluate(tmp_path):
    run = _run(tmp_path / "run", "Crashing", count=2)

    def kill():
        wait_for(lambda: ranks_of(run), 60, "the ranks")[-1].kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(PromofError, match=r"ended with exit code .* before they were done, as where one is killed"):
        Evaluate(str(run.path))()
    killer.join()


def test_a_requeue_that_was_asked_for_is_not_lost_with_the_ranks(tmp_path, slurm, monkeypatch):
    run = _run(tmp_path / "run", "Slow")
    ended = (9, Parting(Asked.REQUEUE))
    monkeypatch.setattr("hpc.cluster.jobs.launch_ranks", lambda *arguments: ended)
    with pytest.raises(SystemExit) as left:
        Evaluate(str(run.path))()
    assert left.value.code == 0
    assert slurm.calls("scontrol") == ["requeue 7"]
    ended = (65, Parting())
    with pytest.raises(PromofError, match="No rank can evaluate"):
        Evaluate(str(run.path))()
