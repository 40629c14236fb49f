"""The farm under SIGKILL: nothing committed is lost, nothing is spent twice, the innocent are not convicted."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from promof_hpc.store.budget import fold
from promof_hpc.store.claims import live_claims, suspects
from promof_hpc.store.events import read_events
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, stop_requested
from promof_hpc.store.schema import Outcome
from promof_hpc.store.verify import verify
from tests.potentials import POISON_ATOMS
from tests.processes import kill_everything, ranks_of, table_of, wait_for
from tests.runs import lennard_jones_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _launch(run: RunDir, ranks: int = 2) -> subprocess.Popen:
    """The local launcher as a process of its own, as `promof resume` runs it."""
    code = (
        "import sys; from pathlib import Path; from hpc.local import leading, run_to_the_end;"
        "from promof_hpc.store.run_dir import RunDir; run = RunDir.open(Path(sys.argv[1]));\n"
        "with leading(run): code = run_to_the_end(run, int(sys.argv[2]), lambda: None)\n"
        "sys.exit(code)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(run.path), str(ranks)], env=ENVIRONMENT, cwd=ROOT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = lennard_jones_run(tmp_path_factory.mktemp("calm") / "run", "Slow")
    assert _launch(run).wait(120) == 0
    return table_of(run)


def test_a_second_start_of_a_finished_run_does_nothing(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Slow", 4)
    assert _launch(run).wait(120) == 0
    stamps = {p: p.stat().st_mtime_ns for p in run.results(0).iterdir()}
    assert _launch(run).wait(120) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in run.results(0).iterdir()}


@pytest.mark.parametrize("victim", ["rank 0", "another rank", "all ranks", "launcher", "everything"])
def test_a_killed_farm_ends_with_the_table_of_an_undisturbed_one(tmp_path, victim, undisturbed):
    run = lennard_jones_run(tmp_path / "run", "Slow")
    rng = random.Random(victim)
    launcher = _launch(run)
    after = rng.randint(1, 4)
    wait_for(lambda: len(run.committed(0)) >= after, 90, "the first commits")
    before = set(run.committed(0))
    ranks = wait_for(lambda: ranks_of(run), 20, "the ranks")
    if victim == "everything":
        kill_everything(run, launcher)
    elif victim == "launcher":
        launcher.kill()
        launcher.wait()
    else:
        chosen = {"rank 0": ranks[:1], "another rank": ranks[-1:], "all ranks": ranks}[victim]
        for process in chosen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    if victim in ("launcher", "everything"):
        launcher = _launch(run)
    assert launcher.wait(150) == 0
    assert before <= set(run.committed(0))
    assert table_of(run) == undisturbed
    ledger = fold(run, None)
    assert (ledger.issued, ledger.committed) == (16, 16)
    assert verify(run).sound
    assert Outcome.CRASHED not in ledger.outcomes


def test_ten_kills_of_everything_on_one_long_batch_convict_nobody(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Slow", 6, "farm.batch_structures=6", "evaluation.relax.max_steps=40")
    rng = random.Random(1)
    for kill in range(10):
        launcher = _launch(run, ranks=1)
        wait_for(lambda: live_claims(run, 1e9), 60, f"the batch in hand at kill {kill}")
        time.sleep(rng.random() * 0.5)
        kill_everything(run, launcher)
        assert run.committed(0) == []
    assert suspects(run) == {"00000-00000"}
    assert _launch(run, ranks=1).wait(180) == 0
    ledger = fold(run, None)
    assert ledger.committed == 6
    assert "crashed" not in ledger.outcomes


def test_a_poison_structure_is_convicted_and_nothing_else_is_lost(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Crashing", 8, poison=(3,))
    assert _launch(run).wait(180) == 0
    rows = [e.row for e in read_results(run)]
    crashed = [r for r in rows if r.outcome is Outcome.CRASHED]
    assert [r.atoms for r in crashed] == [POISON_ATOMS]
    assert crashed[0].charged
    assert "-9" in crashed[0].reason
    assert len(rows) == 8
    assert all(r.outcome in (Outcome.CONVERGED, Outcome.MAX_STEPS) for r in rows if r.atoms != POISON_ATOMS)


def test_a_hanging_structure_is_timed_out_and_nothing_else_is_lost(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Hanging", 6, "farm.hang_s=6", poison=(2,))
    assert _launch(run).wait(240) == 0
    outcomes = {r.row.atoms: r.row.outcome for r in read_results(run)}
    assert outcomes[POISON_ATOMS] is Outcome.TIMED_OUT
    assert outcomes[5] in (Outcome.CONVERGED, Outcome.MAX_STEPS)
    assert fold(run, None).committed == 6


def test_a_frozen_rank_0_is_noticed_by_the_others_and_its_farm_is_started_again(tmp_path, undisturbed):
    run = lennard_jones_run(tmp_path / "run", "Slow", 16, "farm.hang_s=6")
    launcher = _launch(run)
    wait_for(lambda: len(run.committed(0)) >= 2, 90, "the first commits")
    first, *_ = wait_for(lambda: ranks_of(run), 20, "the ranks")
    assert first.environ()["PMI_RANK"] == "0"
    first.suspend()
    assert launcher.wait(150) == 0
    assert [e["rank"] for e in read_events(run) if e["event"] == "hung"] == [0]
    assert not first.is_running()
    assert fold(run, None).committed == 16
    assert table_of(run) == undisturbed


def test_a_stop_signal_drains_without_suspects_and_resume_finishes(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Slow", 48)
    launcher = _launch(run)
    wait_for(lambda: run.committed(0), 90, "the first commit")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 75
    assert stop_requested(run)
    assert not fold(run, None).finished
    assert suspects(run) == set()
    assert not list(run.claims.glob("0*"))
    assert _launch(run).wait(120) == 0
    assert fold(run, None).committed == 48


def test_a_second_leader_is_turned_away_while_the_first_is_at_work(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Slow")
    first = _launch(run)
    wait_for(lambda: run.lease.exists(), 60, "the lease")
    second = subprocess.run([sys.executable, "-m", "hpc.cli", "resume", str(run.path)], env=ENVIRONMENT, cwd=ROOT,
                            capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert second.returncode == 1
    assert "is being led by" in second.stderr
    assert "Traceback" not in second.stderr
    kill_everything(run, first)


def test_failures_are_charged_once_and_never_tried_again(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "SometimesNaN", 12)
    for _ in range(4):  # the first does it all; three more starts of the finished run spend nothing
        assert _launch(run).wait(120) == 0
        ledger = fold(run, 12)
        assert (ledger.budget, ledger.issued, ledger.committed, ledger.in_flight, ledger.wasted) == (12, 12, 12, 0, 0)
    assert ledger.outcomes["nan"] >= 2
    assert ledger.outcomes["nan"] + ledger.outcomes.get("converged", 0) + ledger.outcomes.get("max_steps", 0) == 12


def test_potentials_that_mostly_fail_stop_the_job(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "AlwaysNaN", 80)
    assert _launch(run).wait(120) == 3
    ledger = fold(run, None)
    assert 50 <= ledger.committed < 80


def test_a_farm_of_singletons_is_refused_before_anything_is_charged(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "Slow", 2)
    alone = subprocess.run([sys.executable, "-m", "hpc.farm", str(run.path)], env={**ENVIRONMENT, "PROMOF_RANKS": "4"},
                           cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert alone.returncode == 65
    assert "mpiexec is of another MPI" in alone.stderr
    assert fold(run, None).committed == 0


def test_ranks_that_fail_end_together_and_the_launcher_gives_up(tmp_path):
    run = lennard_jones_run(tmp_path / "run", "FailingLater", 2)
    launcher = _launch(run)
    assert launcher.wait(150) == 1  # neither for ever nor without end: ten starts
    assert "no such device" in max(run.logs.iterdir()).read_text()
    assert len(list(run.logs.iterdir())) <= 10
    assert fold(run, None).committed == 0


def test_the_result_set_does_not_depend_on_the_number_of_ranks(tmp_path, undisturbed):
    run = lennard_jones_run(tmp_path / "run", "Slow")
    assert _launch(run, ranks=1).wait(120) == 0
    assert table_of(run) == undisturbed
