"""A campaign of 64 evaluations with the embedded default potential, killed at random moments: nothing changes."""

import random
import subprocess
import time

import pytest

from promof_hpc.policy.weights import SHIPPED, weights_folder
from promof_hpc.store.budget import fold
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names
from promof_hpc.store.verify import verify
from tests.campaigns import what_was_decided
from tests.commands import COMMAND, ENVIRONMENT, ROOT
from tests.processes import kill_everything, ranks_of, table_of, wait_for

BUDGET = 64
SETTINGS = (
    f"budget={BUDGET}", "rounds.targets=1", "rounds.sets=3", "rounds.assemblies=8", "farm.batch_structures=2",
    "evaluation.relax.max_steps=2", "assembly.atom_cap=50",
)  # fmt: skip
HAS_WEIGHTS = "chemist.safetensors" in list_names(weights_folder(SHIPPED))
pytestmark = [pytest.mark.full, pytest.mark.timeout(7200)]


def _start(*words: object) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *map(str, words)], env=ENVIRONMENT, cwd=ROOT)


def _design(run: RunDir, strategy: str) -> subprocess.Popen:
    overrides = [word for setting in (*SETTINGS, f"strategy={strategy}") for word in ("--set", setting)]
    return _start("design", "--run", run.path, "--ranks", 2, *overrides)


@pytest.mark.parametrize("strategy", [
    "tests.strategies:Shaken",
    pytest.param("promof", marks=pytest.mark.skipif(not HAS_WEIGHTS, reason="no weights are shipped yet")),
])  # fmt: skip
def test_killed_at_random_moments_a_campaign_decides_the_same(tmp_path, strategy):
    calm, run, rng = RunDir(tmp_path / "calm"), RunDir(tmp_path / "hurt"), random.Random(strategy)
    assert _design(calm, strategy).wait(3600) == 0
    process = _design(run, strategy)
    for victim in ("everything", "rank", "trainer", "everything", "rank", "trainer"):
        target = sum(len(run.committed(n)) for n in run.round_numbers()) + rng.randint(1, 4)
        wait_for(lambda n=target: sum(len(run.committed(k)) for k in run.round_numbers()) >= n, 1200, "more results")
        time.sleep(2 * rng.random())
        if victim == "rank":
            rng.choice(wait_for(lambda: ranks_of(run), 120, "ranks")).kill()
            continue
        if victim == "trainer":
            process.kill()
            process.wait()
        else:
            kill_everything(run, process)
        process = _start("resume", run.path)
    assert process.wait(3600) == 0
    ledger = fold(run, BUDGET)
    assert (ledger.issued, ledger.committed) == (BUDGET, BUDGET)
    assert "crashed" not in ledger.outcomes
    assert verify(run).sound
    assert (what_was_decided(run), table_of(run)) == (what_was_decided(calm), table_of(calm))
