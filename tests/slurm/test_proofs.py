"""What submission, training and preemption build on, each shown once on a real Slurm."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import submitit

from tests.processes import wait_for
from tests.slurm import proof_jobs
from tests.slurm.client import ENDED, State

ROOT = Path(__file__).parents[2]
STEPS, STEP_S = 16, 0.3
BLOCKED = "env --block-signal=USR2 --block-signal=TERM"  # of GNU coreutils 8.31 and later
LISTEN = f"{sys.executable} -m tests.slurm.proof_jobs"


@pytest.fixture
def executor(cluster, monkeypatch, tmp_path):
    """submitit's executor in the cluster's environment; jobs inherit it, and start with our signals blocked."""
    for name, value in {**cluster.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("submitit").setLevel(logging.ERROR)
    executor = submitit.AutoExecutor(tmp_path / "submitit", "slurm", slurm_python=f"{BLOCKED} {sys.executable}")
    executor.update_parameters(nodes=2, timeout_min=60, slurm_partition="low", slurm_mem="1GB")
    return executor


class Training:
    """A DeepSpeed job of 2 nodes and what its ranks have noted."""

    def __init__(self, executor: submitit.AutoExecutor, folder: Path, steps: int = STEPS) -> None:
        folder.mkdir()
        executor.update_parameters(
            tasks_per_node=1, slurm_srun_args=["--kill-on-bad-exit=1"], slurm_signal_delay_s=20,
            slurm_additional_parameters={"requeue": True, "gres": "gpu:1"},
        )  # fmt: skip
        self.folder = folder
        self.job = executor.submit(proof_jobs.train, folder, steps, STEP_S)
        self.number = int(self.job.job_id)

    def events(self, event: str, **wanted: int) -> list[dict]:
        file = self.folder / "events.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line["event"] == event and all(line[k] == v for k, v in wanted.items())]

    def steps(self, event: str, **wanted: int) -> list[int]:
        """The steps at which both ranks have noted an event; waits for it."""
        found = wait_for(
            lambda: [line for line in [self.events(event, **wanted)] if len(line) == 2], 60, f"{event} {wanted}"
        )
        return [line["step"] for line in found[0]]

    def losses(self) -> list[float]:
        """Rank 0's, of all starts."""
        return [x for event in ("saved", "done") for line in self.events(event, rank=0) for x in line["losses"]]

    def resumed_where_it_saved(self) -> bool:
        saved, begun = self.steps("saved", restart=0), self.steps("begin", restart=1)
        return saved == begun and saved[0] == saved[1] > 0


@pytest.fixture
def training(executor, tmp_path):
    """A training that has begun."""
    job = Training(executor, tmp_path / "run")
    assert job.steps("begin", restart=0) == [0, 0]
    return job


def _results(job: submitit.Job, seconds: float = 60) -> list:
    """What the ranks returned; polls the files, since submitit asks sacct for jobs that die without any."""
    files = [task.paths.result_pickle for task in job._sub_jobs or [job]]
    wait_for(lambda: all(file.exists() for file in files), seconds, f"results of {job.job_id}: {job.stderr()}")
    return job.results()


def test_submitit_starts_mpi_ranks_that_form_one_world(executor):
    executor.update_parameters(tasks_per_node=2, slurm_srun_args=["--mpi=pmi2", "--kill-on-bad-exit=1"])
    answers = _results(executor.submit(proof_jobs.mpi_world))
    assert [rank for rank, *_ in answers] == [0, 1, 2, 3]
    assert {(size, threads, total) for _, size, threads, _, total in answers} == {(4, True, 6)}
    assert [node for *_, node, _ in answers] == ["n1", "n1", "n2", "n2"]


def test_usr2_saves_requeues_once_and_the_end_is_that_of_an_undisturbed_run(executor, cluster, training, tmp_path):
    undisturbed = Training(executor, tmp_path / "undisturbed")
    cluster.signal(training.number, "USR2")
    assert training.resumed_where_it_saved()
    job = cluster.wait_for(training.number, *ENDED)
    assert (job.state, job.restarts, job.exit_code) == (State.COMPLETED, 1, 0)
    assert len(training.events("requeued")) == 1
    assert len(training.losses()) == STEPS
    _results(undisturbed.job)
    assert training.losses() == undisturbed.losses()


def test_term_saves_and_requeues_nothing(cluster, training):
    cluster.signal(training.number, "TERM")
    cluster.signal(training.number, "USR2")
    assert len(set(training.steps("saved"))) == 1
    assert cluster.job(training.number).restarts == 0
    cluster.cancel(training.number)
    job = cluster.wait_for(training.number, *ENDED)
    assert (job.state, job.restarts) == (State.CANCELLED, 0)
    assert not training.events("requeued")
    assert not any(task.paths.result_pickle.exists() for task in training.job._sub_jobs)


def test_a_requeue_by_the_administrator_saves_within_kill_wait_and_resumes(cluster, training):
    cluster.requeue(training.number)
    assert training.resumed_where_it_saved()
    assert not training.events("requeued")
    assert cluster.job(training.number).restarts == 1


def test_preemption_with_user_signal_frees_the_nodes_within_the_grace_time_and_requeues_once(cluster, training):
    high = cluster.preempt()
    cluster.wait_for(high, State.RUNNING, State.COMPLETED, seconds=cluster.settings.grace_s)
    assert training.resumed_where_it_saved()
    assert len(training.events("requeued")) == 1
    assert cluster.job(training.number).restarts == 1


@pytest.mark.full
def test_preemption_without_user_signal_saves_and_waits_to_be_killed_so_that_slurm_requeues_it(cluster, training):
    cluster.send_user_signal_at_preemption(False)
    cluster.preempt()
    assert training.resumed_where_it_saved()
    assert not training.events("requeued")
    assert cluster.job(training.number).restarts == 1


@pytest.mark.full
def test_before_its_time_limit_a_job_saves_and_requeues_itself(executor, cluster, tmp_path):
    training = Training(executor, tmp_path / "run", steps=1000)
    assert training.steps("begin", restart=0) == [0, 0]
    cluster.end_in(training.number, 55)  # Slurm looks every 30 s, and so warns up to 30 s before the 20 s asked for
    assert training.resumed_where_it_saved()
    assert len(training.events("requeued")) == 1
    assert cluster.job(training.number).state is State.RUNNING


def test_two_steps_side_by_side_in_one_allocation_get_their_own_signals(cluster):
    script = (
        f"export PYTHONPATH={ROOT}\n"
        f"srun --overlap --ntasks=2 --ntasks-per-node=1 {BLOCKED} {LISTEN} trainer 0 &\n"
        f"srun --overlap --mpi=pmi2 --kill-on-bad-exit=1 --ntasks=4 {BLOCKED} {LISTEN} evaluator 0 &\n"
        "wait"
    )
    job = cluster.submit(script, "--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--mem=1G")

    def lines(name: str, what: str) -> list[list[str]]:
        return [words for words in map(str.split, cluster.output(job).splitlines()) if {name, what} <= set(words)]

    def heard(trainers: int, evaluators: int) -> None:
        wanted = (trainers, evaluators)
        wait_for(lambda: (len(lines("trainer", "USR2")), len(lines("evaluator", "USR2"))) == wanted, 10, str(wanted))

    wait_for(lambda: len(lines("trainer", "ready")) == 2 and len(lines("evaluator", "ready")) == 4, 30, "both steps")
    step = {name: int(lines(name, "ready")[0][1]) for name in ("trainer", "evaluator")}
    assert sorted(step.values()) == [0, 1]
    assert {words[-1] for name in step for words in lines(name, "sees")} == {"0,1"}  # every task sees both GPUs
    assert {words[2] for words in lines("evaluator", "ready")} == {"0/4", "1/4", "2/4", "3/4"}

    cluster.signal(f"{job}.{step['trainer']}", "USR2")
    heard(2, 0)
    cluster.signal(f"{job}.{step['evaluator']}", "USR2")
    heard(2, 4)
    cluster.signal(job, "USR2")  # as at preemption
    heard(4, 8)

    cluster.signal(f"{job}.{step['evaluator']}", "TERM")
    running = ("squeue", "--noheader", "--steps", "--format=%i", f"--jobs={job}")
    wait_for(lambda: f"{job}.{step['evaluator']}" not in cluster.run(*running), 10, "the end of the evaluators")
    assert f"{job}.{step['trainer']}" in cluster.run(*running)
    assert cluster.job(job).state is State.RUNNING


def test_a_signal_during_the_imports_waits_for_the_handlers_if_it_was_blocked_from_the_start(cluster):
    job = cluster.submit(f"export PYTHONPATH={ROOT}; srun {BLOCKED} {LISTEN} trainer 2")
    wait_for(lambda: "sees" in cluster.output(job), 30, "the start")
    cluster.signal(f"{job}.0", "USR2")
    wait_for(lambda: "USR2" in cluster.output(job), 30, "the signal")
    assert cluster.job(job).state is State.RUNNING


def test_a_signal_during_the_imports_kills_a_rank_that_did_not_block_it(cluster):
    job = cluster.submit(f"export PYTHONPATH={ROOT}; srun {LISTEN} trainer 2")
    wait_for(lambda: "sees" in cluster.output(job), 30, "the start")
    cluster.signal(f"{job}.0", "USR2")
    assert cluster.wait_for(job, *ENDED).state is State.FAILED
    assert "User defined signal 2" in cluster.output(job)
