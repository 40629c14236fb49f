"""Processes that do not find each other, because their MPI never starts, are ended and say why."""

import subprocess
import sys

import psutil
import pytest

from hpc.cluster.site import load_site
from hpc.meeting import deadline
from promof_hpc.config import dump_config
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, request_stop
from promof_hpc.store.shard import publish_text
from tests.commands import ENVIRONMENT, ROOT
from tests.runs import lennard_jones_run
from tests.slurm_commands import SlurmCommands

EVALUATE = "import sys; from hpc.cluster.jobs import Evaluate; Evaluate(sys.argv[1])()"


@pytest.fixture
def run(tmp_path) -> RunDir:
    return lennard_jones_run(tmp_path / "run", "Slow", 2, "farm.meeting_s=1")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One in which MPI waits for ever, as others see it that never come."""
    package = tmp_path / "fake" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("class rc:\n    pass\n")
    (package / "MPI.py").write_text("import time\ntime.sleep(600)\n")
    return {**ENVIRONMENT, "PYTHONPATH": f"{package.parent}:{ROOT}"}


def ended(words: list[str], environment: dict[str, str]) -> int:
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=60, capture_output=True, check=False).returncode


def test_local_ranks_are_killed_and_the_events_say_why(run, environment):
    assert ended(["-m", "hpc.farm", str(run.path)], environment) == -9
    (failure,) = [e for e in read_events(run) if e["event"] == "failed"]
    assert "did not find each other within 1 s (farm.meeting_s)" in failure["why"]


@pytest.mark.parametrize(("variables", "stop", "requeued"), [
    ({}, False, True), ({}, True, False), ({"PROMOF_BESIDE": "train"}, False, False),
])  # fmt: skip
def test_a_job_queues_itself_again_and_a_step_beside_one_that_trains_does_not(
    run, environment, tmp_path, variables, stop, requeued
):
    commands = SlurmCommands(tmp_path / "bin")
    commands.folder.mkdir()
    commands.says("scontrol", "")
    publish_text(run.site, dump_config(load_site("test-cluster")))
    for folder in (run.submissions, run.logs):
        folder.mkdir(exist_ok=True)
    if stop:
        request_stop(run, "test")
    job = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "1", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", **variables}
    assert ended(["-c", EVALUATE, str(run.path)], {**environment, **job, "PATH": str(commands.folder)}) == -9
    assert [e["job"] for e in read_events(run) if e["event"] == "missed"] == ["7"]
    assert commands.calls("scontrol") == (["requeue 7"] if requeued else [])


def test_who_comes_in_time_is_left_alone_and_has_no_child():
    before = psutil.Process().children()
    with deadline(60.0, lambda: None):
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before
