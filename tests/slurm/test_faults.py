"""The fault matrix: whatever befalls a campaign, it spends exactly its budget, and nothing committed is lost."""

from __future__ import annotations

import contextlib
import random
import re
import time
from pathlib import Path

import psutil
import pytest

from hpc.cluster.site import load_site
from promof_hpc.config import dump_config
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import live_claims
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import publish_text
from tests.disks import small_disk
from tests.processes import wait_for
from tests.runs import lennard_jones_run
from tests.slurm.client import ENDED, State
from tests.slurm.faults import FAULTS, Scene, tasks_of
from tests.slurm.users import BUDGET, User, committed, ended, is_exact, lost_work, small_campaign

STRUCTURES, RANKS = 6, 4
LOOK_S = 3.0  # between two looks, which take processor time from the jobs
HANG_S = 25  # more than loading and compiling take on a busy machine


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_campaign(tmp_path_factory.mktemp("small"))


def _three(fault: str, *values: object) -> list:
    """Three moments, of which only the first is for every day."""
    return [
        pytest.param(*values, k, id=f"{fault}, moment {k + 1}", marks=[pytest.mark.full] if k else []) for k in range(3)
    ]


@pytest.mark.parametrize(("fault", "moment"), [case for fault in FAULTS for case in _three(fault, fault)])
def test_a_campaign_survives(cluster, config, tmp_path, record_property, fault, moment):
    user, run, chance = User(cluster, tmp_path), RunDir(tmp_path / "run"), random.Random(f"{fault} {moment}")
    record_property("fault", f"{fault}, moment {moment + 1}")
    hang_s = HANG_S if fault.startswith("SIGSTOP") else 600
    train, evaluate = user.submit(config, run, f"farm.hang_s={hang_s}", "farm.drain_s=1")
    share = (moment + chance.random()) / 3
    wait_for(lambda: committed(run) >= 1 + share * 0.7 * BUDGET / 2, 180, "the moment")
    before = {b: run.result(b).read_bytes() for n in run.round_numbers() for b in run.committed(n)}
    FAULTS[fault](Scene(cluster, user, run, config, train, evaluate, chance))
    _to_the_end(user, run)
    is_exact(run)
    _little_is_lost(run, record_property)
    kept = {b: run.result(b).read_bytes() for b in before}
    changed = [b for b in before if before[b] != kept[b]]
    assert len(changed) <= (1 if fault == "truncated shard" else 0)


def _to_the_end(user: User, run: RunDir) -> None:
    """As a user who looks now and then, and resumes where no job is left."""

    def to_be_resumed() -> bool:
        time.sleep(LOOK_S)
        return ended(run) or "promof resume" in user.promof("status", run.path)

    while not ended(run):
        wait_for(to_be_resumed, 240, "the end, or no job left")
        if not ended(run):
            user.promof("resume", run.path)


def _little_is_lost(run: RunDir, record_property) -> None:
    """A batch a rank, and the training since the last checkpoint."""
    lost = lost_work(run)
    record_property("lost", f"{lost.batches} batches and {lost.rounds} rounds were done again")
    assert lost.batches <= RANKS
    assert lost.rounds <= lost.most


@pytest.fixture
def disk(tmp_path):
    """A file system of 80 MB; needs the right to mount."""
    with small_disk(tmp_path / "disk", "80m") as folder:
        yield folder


@pytest.mark.parametrize("moment", _three("full disk"))
def test_a_campaign_survives_a_full_disk(cluster, config, tmp_path, record_property, disk, moment):
    record_property("fault", f"full disk, moment {moment + 1}")
    user, run, chance = User(cluster, tmp_path), RunDir(disk / "run"), random.Random(f"full {moment}")
    train, evaluate = user.submit(config, run, "farm.drain_s=1")
    share = (moment + chance.random()) / 3
    wait_for(lambda: committed(run) >= 1 + share * 0.7 * BUDGET / 2, 180, "the moment")
    ballast = disk / "ballast"
    fill(ballast)

    def evaluators_ended_or_idle() -> bool:
        """Idle: every batch is committed, and the trainer, which found no room, will propose no more."""
        if cluster.job(int(evaluate)).state in ENDED:
            return True
        ledger = fold(run, BUDGET)
        return ledger.issued == ledger.committed and cluster.job(int(train)).state in ENDED

    wait_for(evaluators_ended_or_idle, 90, "evaluators that end, or have nothing to write")
    ballast.unlink()
    cluster.wait_for(int(train), State.RUNNING, *ENDED, seconds=90)
    _to_the_end(user, run)
    is_exact(run)
    _little_is_lost(run, record_property)


def fill(ballast: Path) -> None:
    """Leave not a byte."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65_536)


@pytest.mark.parametrize("kills", [pytest.param(10, id="ten SIGKILLs of everything on one long batch")])
def test_kills_of_the_whole_step_on_one_long_batch_convict_nobody(cluster, tmp_path, record_property, kills):
    record_property("fault", "ten SIGKILLs of everything on one long batch")
    user, chance = User(cluster, tmp_path), random.Random(1)
    overrides = (f"farm.batch_structures={STRUCTURES}", "evaluation.relax.max_steps=40", "farm.ranks=2")
    run = lennard_jones_run(tmp_path / "run", "Slow", STRUCTURES, *overrides)
    publish_text(run.site, dump_config(load_site("test-cluster")))
    for kill in range(kills):
        # what the scheduler said last may be a second old, and then the job that was killed seems to be at work
        job = wait_for(lambda: re.findall(r"as job (\d+)", user.promof("resume", run.path)), 60, "a new job")[-1]
        wait_for(lambda: live_claims(run, 1e9), 240, f"the batch in hand at kill {kill}")
        time.sleep(chance.random() * 0.5)
        for task in tasks_of(job):
            with contextlib.suppress(psutil.Error):
                task.kill()
        cluster.wait_for(int(job), *ENDED)
        assert run.committed(0) == []
    wait_for(lambda: "as job" in user.promof("resume", run.path), 60, "a new job")
    wait_for(lambda: fold(run, None).finished, 180, "the batch")
    ledger = fold(run, None)
    assert ledger.committed == STRUCTURES
    assert "crashed" not in ledger.outcomes
    record_property("lost", f"one batch was begun {kills + 1} times, no structure is called crashed")
