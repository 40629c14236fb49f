"""A campaign under SIGKILL: exactly its budget, and the decisions of an undisturbed one; signals stop it gently."""

import json
import random
import signal
import subprocess
import time

import psutil
import pytest

from promof_hpc.store.budget import fold
from promof_hpc.store.checkpoint import newest_checkpoint
from promof_hpc.store.claims import suspects
from promof_hpc.store.run_dir import RunDir, how_ended
from promof_hpc.store.verify import verify
from tests.campaigns import SMALL, what_was_decided
from tests.commands import COMMAND, ENVIRONMENT, ROOT, promof
from tests.processes import kill_everything, ranks_of, table_of, wait_for

BUDGET = 64
SETTINGS = (*SMALL, f"budget={BUDGET}", "rounds.assemblies=8", "farm.drain_s=0")


def _design(run: RunDir, *settings: str) -> subprocess.Popen:
    overrides = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    command = [*COMMAND, "design", "--run", str(run.path), "--ranks", "2", *overrides]
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _resume(run: RunDir) -> subprocess.Popen:
    command = [*COMMAND, "resume", str(run.path)]
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _committed(run: RunDir) -> int:
    """Evaluations that shards were published for."""
    return sum(2 * len(run.committed(n)) for n in run.round_numbers())


def _ends(process: subprocess.Popen, code: int = 0) -> str:
    said = process.communicate(timeout=240)[1].decode()
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("calm") / "run")
    _ends(_design(run))
    return what_was_decided(run), table_of(run)


@pytest.mark.parametrize("victim", ["trainer", "rank", "everything"])
def test_three_kills_change_nothing_of_what_a_campaign_decides(tmp_path, undisturbed, victim):
    run, rng = RunDir(tmp_path / "run"), random.Random(victim)
    process = _design(run)
    for third in range(3):
        moment = rng.randint(third * BUDGET // 3, (third + 1) * BUDGET // 3 - 8)
        wait_for(lambda n=moment: _committed(run) > n, 120, f"{moment} evaluations")
        time.sleep(rng.random())
        if victim == "rank":
            rank = rng.choice(wait_for(lambda: ranks_of(run), 60, "ranks"))
            rank.kill()
            continue
        if victim == "trainer":
            process.kill()
            process.wait()
        else:
            kill_everything(run, process)
        process = _resume(run)
    _ends(process)
    ledger = fold(run, BUDGET)
    assert (ledger.issued, ledger.committed, ledger.wasted, ledger.in_flight) == (BUDGET, BUDGET, 0, 0)
    assert "crashed" not in ledger.outcomes
    found = verify(run)
    assert found.sound
    assert not found.redo
    assert (what_was_decided(run), table_of(run)) == undisturbed
    # and once more, as a user who is not sure: done, 64/64, nothing charged
    assert f"done: {BUDGET}/{BUDGET}" in promof("resume", run.path, cwd=tmp_path)
    assert fold(run, BUDGET) == ledger


def test_a_stop_signal_ends_a_campaign_gently_and_it_can_be_resumed(tmp_path, undisturbed):
    run = RunDir(tmp_path / "run")
    process = _design(run)
    wait_for(lambda: _committed(run) > 20, 120, "the second round")
    process.send_signal(signal.SIGTERM)
    _ends(process, 75)
    assert not ranks_of(run)
    assert suspects(run) == set()
    assert not list(run.claims.iterdir())
    assert how_ended(run) is None
    status = json.loads(promof("status", run.path, "--json", cwd=tmp_path))
    assert status["state"] == "idle"
    assert 20 < status["budget"]["committed"] < BUDGET
    _ends(_resume(run))
    assert what_was_decided(run) == undisturbed[0]


def test_while_the_trainer_learns_ranks_use_no_processor_and_a_signal_waits_for_the_checkpoint(tmp_path):
    run = RunDir(tmp_path / "run")
    process = _design(run, "strategy=tests.strategies:Thinking")
    wait_for(lambda: run.sealed(0).exists(), 120, "the first round's seal")
    time.sleep(1)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    before, begin = [sum(r.cpu_times()[:2]) for r in ranks], time.monotonic()
    time.sleep(6)
    used = [sum(r.cpu_times()[:2]) - b for r, b in zip(ranks, before, strict=True)]
    assert max(used) < 0.05 * (time.monotonic() - begin)
    assert newest_checkpoint(run).number == 0
    process.send_signal(signal.SIGINT)
    _ends(process, 75)
    assert newest_checkpoint(run).number == 1
    assert run.round_numbers() == [0]
    assert not ranks_of(run)


def test_a_second_trainer_is_turned_away(tmp_path):
    run = RunDir(tmp_path / "run")
    first = _design(run)
    wait_for(lambda: _committed(run) > 0, 120, "the first result")
    first.send_signal(signal.SIGSTOP)  # or it has ended before the others have started
    for second in (_resume(run), _design(run)):
        assert "is being led by" in _ends(second, 1)
    kill_everything(run, first)


def test_a_strategy_that_breaks_takes_its_ranks_with_it(tmp_path):
    run = RunDir(tmp_path / "run")
    process = _design(run, "strategy=tests.strategies:Broken")
    said = process.communicate(timeout=200)[1].decode()
    assert process.returncode == 1
    assert "cannot learn this" in said
    wait_for(lambda: not ranks_of(run), 20, "the ranks to be gone")
    assert not run.lease.exists()
    assert fold(run, BUDGET).committed > 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run.path) in (p.info["cmdline"] or [])]
