"""The fault matrix: whatever befalls a campaign, it spends exactly its budget, and nothing committed is lost."""

from __future__ import annotations

import random

import pytest

from promof_hpc.store.run_dir import RunDir
from tests.processes import wait_for
from tests.slurm.faults import FAULTS, Scene
from tests.slurm.users import BUDGET, User, committed, ended, is_exact, small_campaign

HANG_S = 25  # more than loading and compiling take on a busy machine


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_campaign(tmp_path_factory.mktemp("small"))


def _moments() -> list:
    cases = []
    for fault in FAULTS:
        for moment in range(3):
            marks = [pytest.mark.full] if moment else []
            cases.append(pytest.param(fault, moment, id=f"{fault}, moment {moment + 1}", marks=marks))
    return cases


@pytest.mark.parametrize(("fault", "moment"), _moments())
def test_a_campaign_survives(cluster, config, tmp_path, fault, moment):
    user, run, chance = User(cluster, tmp_path), RunDir(tmp_path / "run"), random.Random(f"{fault} {moment}")
    hang_s = HANG_S if fault == "SIGSTOP of a rank" else 600
    train, evaluate = user.submit(config, run, f"farm.hang_s={hang_s}", "farm.drain_s=1")
    share = (moment + chance.random()) / 3
    wait_for(lambda: committed(run) >= 1 + share * 0.7 * BUDGET / 2, 180, "the moment")
    before = {b: run.result(b).read_bytes() for n in run.round_numbers() for b in run.committed(n)}
    FAULTS[fault](Scene(cluster, user, run, config, train, evaluate, chance))
    _to_the_end(user, run)
    is_exact(run)
    kept = {b: run.result(b).read_bytes() for b in before}
    changed = [b for b in before if before[b] != kept[b]]
    assert len(changed) <= (1 if fault == "truncated shard" else 0)


def _to_the_end(user: User, run: RunDir) -> None:
    """As a user who looks now and then, and resumes where no job is left."""
    while True:
        wait_for(
            lambda: ended(run) or "promof resume" in user.promof("status", run.path), 240, "the end, or no job left"
        )
        if ended(run):
            return
        user.promof("resume", run.path)
