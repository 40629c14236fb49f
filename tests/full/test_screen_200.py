"""The main job at length: 200 real MOFs with SevenNet-0, killed at random moments, end with the undisturbed table."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from promof_hpc.store.budget import fold
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.schema import TIMING_COLUMNS, Outcome
from promof_hpc.store.shard import list_names
from promof_hpc.store.verify import verify
from tests.processes import kill_everything, ranks_of, wait_for

ROOT = Path(__file__).parents[2]
NAMES = ROOT / "tests" / "data" / "screen200.txt"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
COMMAND = (
    "screen", "coremof:2019-ASR", "--names", NAMES, "--ranks", 2, "--set", "evaluation.relax.max_steps=5",
)  # fmt: skip
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


def _start(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hpc.cli", *map(str, COMMAND), "--run", f"runs/{name}"]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT)


def _table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "runs" / name / "report" / "table.parquet").drop(columns=list(TIMING_COLUMNS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("screen200")
    assert _start(place, "calm").wait(1800) == 0
    return place


def test_every_outcome_is_typed_and_a_second_start_does_nothing(folder):
    table = _table(folder, "calm")
    assert sorted(table["name"]) == sorted(NAMES.read_text().split())
    assert set(table["outcome"]) <= {str(o) for o in Outcome} | {"unreadable"}
    print(table["outcome"].value_counts().to_dict())
    shards = {p: p.stat().st_mtime_ns for p in (folder / "runs/calm/rounds").rglob("*.h5")}
    assert _start(folder, "calm").wait(300) == 0
    assert shards == {p: p.stat().st_mtime_ns for p in (folder / "runs/calm/rounds").rglob("*.h5")}


def test_killed_at_random_moments_it_ends_with_the_same_table(folder):
    rng = random.Random(7)
    run = RunDir(folder / "runs" / "hurt")
    launcher = _start(folder, "hurt")
    for victim in ("one rank", "everything", "all ranks", "launcher", "one rank", "everything"):
        target = len(run.committed(0)) + rng.randint(2, 6)
        wait_for(lambda target=target: len(list_names(run.results(0))) >= target, 600, "progress")
        ranks = wait_for(lambda: ranks_of(run), 60, "ranks")
        time.sleep(rng.random())
        if victim == "everything":
            kill_everything(run, launcher)
        elif victim == "launcher":
            launcher.kill()
            launcher.wait()
        else:
            for process in ranks if victim == "all ranks" else [rng.choice(ranks)]:
                process.kill()
        if victim in ("everything", "launcher"):
            launcher = _start(folder, "hurt")
    assert launcher.wait(1800) == 0
    pd.testing.assert_frame_equal(_table(folder, "hurt"), _table(folder, "calm"))
    ledger = fold(run, None)
    assert ledger.finished
    assert "crashed" not in ledger.outcomes or ledger.outcomes == fold(RunDir(folder / "runs/calm"), None).outcomes
    assert verify(run).sound
