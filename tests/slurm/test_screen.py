"""A screening on a cluster: read by one job, evaluated by MPI ranks of another, preempted five times."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hpc.kinds import is_done
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.verify import verify
from tests.commands import ROOT, promof
from tests.processes import table_of, wait_for
from tests.slurm.client import State
from tests.slurm.users import User, committed

MOFS, BATCH, PREEMPTIONS = 100, 2, 5
SETTINGS = ("evaluation.stages=read,validity,pores,relax,energy", "evaluation.relax.max_steps=5",
            "evaluation.relax.wall_s=none", "reference=none", f"farm.batch_structures={BATCH}", "farm.ranks=4",
            "farm.hang_s=600")  # fmt: skip


def settings(folder: Path, potential: str) -> list[str]:
    """Overrides that screen a hundred real MOFs."""
    names = (ROOT / "tests" / "data" / "screen200.txt").read_text().split()[:MOFS]
    listed = folder / "names.txt"
    listed.write_text("\n".join(names) + "\n")
    return [*SETTINGS, f"read.names={listed}", f"evaluation.potential.name={potential}"]


@pytest.mark.parametrize("potential", ["lennard-jones", pytest.param("sevennet-0", marks=pytest.mark.full)])
def test_a_screening_that_is_preempted_five_times_ends_with_the_local_table(cluster, tmp_path, potential):
    overrides = settings(tmp_path, potential)
    words = [word for setting in overrides for word in ("--set", setting)]
    local, run, user = RunDir(tmp_path / "local"), RunDir(tmp_path / "run"), User(cluster, tmp_path)
    promof("screen", "coremof:2019-ASR", "--run", local.path, *words, "--ranks", 2, cwd=ROOT)
    evaluate = user.submit("coremof:2019-ASR", run, *overrides, command="screen")[-1]
    chance = random.Random(potential)
    wait_for(lambda: is_ingested(run) and committed(run), 300, "the library to be read, and a first result")
    for k in range(PREEMPTIONS):
        moment = (k + chance.random()) / (PREEMPTIONS + 1) * MOFS / BATCH
        wait_for(lambda least=moment: committed(run) >= least, 600, "the moment")
        cluster.wait_for(int(evaluate), State.RUNNING, seconds=90)
        cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=90)
    wait_for(lambda: is_done(run), 900, "the end of the screening")
    assert table_of(run) == table_of(local)
    assert verify(run).sound
    assert cluster.job(int(evaluate)).restarts >= PREEMPTIONS
    assert f"started again {cluster.job(int(evaluate)).restarts} times" in user.promof("status", run.path)
