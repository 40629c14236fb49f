"""Claims, leases and suspicion: one owner at a time, the dead and the silent lose theirs."""

import os
import signal
import subprocess
import sys

import pytest

from promof_hpc.errors import PromofError
from promof_hpc.store.claims import (
    Owner,
    claim,
    live_claims,
    release,
    release_lease,
    renew,
    suspects,
    take_lease,
)
from tests.runs import new_run

ELSEWHERE = Owner("job-7", "another-host", 123, 456)


def _dead_owner() -> Owner:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(f"/proc/{child.pid}/stat", encoding="utf-8") as file:
        started = int(file.read().rpartition(")")[2].split()[19])
    owner = Owner("local-dead", Owner.here().host, child.pid, started)
    assert not owner.gone()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return owner


def test_a_batch_has_one_owner(tmp_path):
    run = new_run(tmp_path / "r")
    assert claim(run, "00000-00000", ELSEWHERE, 60)
    assert not claim(run, "00000-00000", Owner.here(), 60)
    assert live_claims(run, 60) == ["00000-00000"]
    release(run, "00000-00000")
    assert claim(run, "00000-00000", Owner.here(), 60)


def test_the_claim_of_a_dead_process_is_void_at_once_and_its_batch_a_suspect(tmp_path):
    run = new_run(tmp_path / "r")
    assert claim(run, "00000-00000", _dead_owner(), 1e9)
    assert live_claims(run, 1e9) == []
    assert claim(run, "00000-00000", Owner.here(), 1e9)
    assert suspects(run) == {"00000-00000"}


def test_a_silent_claim_expires_and_a_renewed_one_does_not(tmp_path):
    run = new_run(tmp_path / "r")
    claim(run, "00000-00000", ELSEWHERE, 60)
    later = (run.claims / "00000-00000").stat().st_mtime + 61
    assert not claim(run, "00000-00000", Owner.here(), 60, clock=lambda: later - 2)
    os.utime(run.claims / "00000-00000", (later, later))
    assert not claim(run, "00000-00000", Owner.here(), 60, clock=lambda: later + 59)
    assert claim(run, "00000-00000", Owner.here(), 60, clock=lambda: later + 61)


def test_renewing_a_claim_that_is_gone_does_nothing(tmp_path):
    run = new_run(tmp_path / "r")
    renew(run, ["00000-00000"])
    assert live_claims(run, 60) == []


def test_a_second_leader_is_refused_with_the_name_of_the_first(tmp_path):
    run = new_run(tmp_path / "r")
    take_lease(run, ELSEWHERE, 60)
    with pytest.raises(PromofError, match="job-7"):
        take_lease(run, Owner.here(), 60)
    release_lease(run, ELSEWHERE)
    take_lease(run, Owner.here(), 60)


def test_the_lease_of_a_dead_leader_is_taken_over(tmp_path):
    run = new_run(tmp_path / "r")
    take_lease(run, _dead_owner(), 1e9)
    take_lease(run, Owner.here(), 1e9)


def test_a_damaged_claim_does_not_block_a_batch_for_ever(tmp_path):
    run = new_run(tmp_path / "r")
    (run.claims / "00000-00000").write_text("{")
    assert claim(run, "00000-00000", Owner.here(), 60)
