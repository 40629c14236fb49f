"""An hour and more: the paper's whole budget through twenty preemptions, and what a preemption a minute costs."""

from __future__ import annotations

import math
import random
import statistics
import time

import pytest

from hpc.cluster.goodput import EVALUATE, TRAIN, Session, goodput, sessions
from hpc.kinds import is_done
from promof_hpc.store import budget
from promof_hpc.store.budget import fold
from promof_hpc.store.events import read_events
from promof_hpc.store.results import read_results
from promof_hpc.store.run_dir import RunDir, is_ingested
from tests.processes import wait_for
from tests.slurm.client import State
from tests.slurm.users import User, committed, ended, ends_exactly, small_campaign

pytestmark = [pytest.mark.full, pytest.mark.timeout(4 * 3600)]
WHOLE_BUDGET, PREEMPTIONS = 10_000, 20
MINUTES, EVERY_S = 10, 60
LIBRARY = "coremof:2019-ASR"
# more than four ranks on two cores evaluate in ten minutes, in batches of seconds
ALWAYS_WORK = ("read.limit=10000", "evaluation.stages=read,relax,energy", "evaluation.potential.name=lennard-jones",
               "evaluation.relax.max_steps=100", "evaluation.relax.wall_s=none", "reference=none",
               "farm.batch_structures=2", "farm.ranks=4")  # fmt: skip


def test_ten_thousand_evaluations_through_twenty_preemptions_are_ten_thousand(cluster, tmp_path):
    rounds = {"targets": 2, "sets": 4, "assemblies": 16, "lookahead": 1, "proposals_per_evaluation": 100}
    config = small_campaign(
        tmp_path,
        budget=WHOLE_BUDGET,
        rounds=rounds,
        learning={"k": 3},
        farm={"ranks": 4, "batch_structures": 16, "meeting_s": 60},
    )
    user, run, chance = User(cluster, tmp_path), RunDir(tmp_path / "run"), random.Random(10_000)
    jobs = user.submit(config, run)
    for k in range(PREEMPTIONS):
        moment = (k + chance.random()) / (PREEMPTIONS + 1) * WHOLE_BUDGET
        _wait_until(lambda least=moment: fold(run, WHOLE_BUDGET).committed >= least, "the moment")
        for job in jobs:
            cluster.wait_for(int(job), State.RUNNING, seconds=120)
        cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=120)
    _wait_until(lambda: ended(run), "the end")
    ends_exactly(run, WHOLE_BUDGET)
    assert len({result.row.evaluation_id for result in read_results(run)}) == WHOLE_BUDGET
    assert all(cluster.job(int(job)).restarts >= PREEMPTIONS for job in jobs)
    print(f"\n{WHOLE_BUDGET} evaluations, {PREEMPTIONS} preemptions, {len(run.round_numbers())} rounds")
    _print_store(run)
    print(user.promof("status", run.path))


def _wait_until(condition, what: str) -> None:
    """Look now and then: folding takes time from those who work."""
    deadline = time.monotonic() + 3 * 3600
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(2)


def _print_store(run: RunDir) -> None:
    for cached in (budget._rows, budget.issued):
        cached.cache_clear()
    before = time.perf_counter()
    fold(run, WHOLE_BUDGET)
    seconds = time.perf_counter() - before
    files = [path for path in run.path.rglob("*") if path.is_file()]
    print(f"fold: {seconds:.2f} s; {len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB")
    kept = [event for event in read_events(run) if event["event"] == "checkpoint"]
    copied, written = ([float(event[key]) for event in kept] for key in ("copy_s", "write_s"))
    print(
        f"checkpoints: {len(kept)}; copied in {statistics.median(copied):.3f} s (at most {max(copied):.3f}), "
        f"written in {statistics.median(written):.3f} s (at most {max(written):.3f})"
    )


def test_a_preemption_a_minute_leaves_training_ninety_percent_of_what_young_and_daly_allow(cluster, tmp_path):
    user, run = User(cluster, tmp_path), RunDir(tmp_path / "run")
    jobs = user.submit(small_campaign(tmp_path, budget=WHOLE_BUDGET), run)
    wait_for(lambda: run.round_numbers(), 180, "the first round")
    _preempt_every_minute(cluster)
    _stop(cluster, user, run, jobs)
    _leaves_nine_tenths(run, TRAIN, _young(list(read_events(run))))


def test_a_preemption_a_minute_leaves_evaluation_ninety_percent_of_what_it_can(cluster, tmp_path):
    """A screening, whose ranks always have work: all but the restarts, and half of the batch in hand."""
    user, run = User(cluster, tmp_path), RunDir(tmp_path / "run")
    jobs = user.submit(LIBRARY, run, *ALWAYS_WORK, command="screen")
    wait_for(lambda: is_ingested(run), 1800, "the library to be read")
    wait_for(lambda: committed(run), 180, "the first batch")
    _preempt_every_minute(cluster)
    assert not is_done(run), "the ranks ran out of work"
    _stop(cluster, user, run, jobs)
    _leaves_nine_tenths(run, EVALUATE, _without_half_a_batch(list(read_events(run))))


def _preempt_every_minute(cluster) -> None:
    for _ in range(MINUTES):
        begun = time.monotonic()
        cluster.wait_for(cluster.preempt(seconds=1), State.COMPLETED, seconds=90)
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - begun)))


def _stop(cluster, user: User, run: RunDir, jobs: list[str]) -> None:
    user.promof("stop", run.path)
    for job in jobs:
        cluster.wait_for(int(job), State.CANCELLED, State.COMPLETED, State.GONE, seconds=120)
    print("\n" + user.promof("status", run.path))


def _leaves_nine_tenths(run: RunDir, role: str, possible: float) -> None:
    share = goodput(read_events(run))[role].share
    print(f"{role}: {share:.1%} left results, {possible:.1%} could have")
    assert share >= 0.9 * possible


def _restart_s(events, role: str, kind: str, begins: str) -> float:
    """From the allocation of a job to the begin of its work, in the middle of all starts."""
    waits = [_first(events, s, kind, begins) - s.begin_s for s in sessions(events) if s.role == role]
    return statistics.median(wait for wait in waits if math.isfinite(wait))


def _first(events, session: Session, kind: str, begins: str) -> float:
    times = (float(e[begins]) for e in events if e["event"] == kind and e["writer"].startswith(f"{session.job}-"))
    return min((t for t in times if session.begin_s <= t <= session.end_s), default=math.inf)


def _young(events) -> float:
    """1 - save / interval - (restart + half an interval) / time between preemptions, at Young's interval."""
    saves = [float(e["copy_s"]) for e in events if e["event"] == "checkpoint"]
    save, restart = statistics.median(saves), _restart_s(events, TRAIN, "phase", "time_s")
    interval = math.sqrt(2 * save * EVERY_S)
    print(f"training: restart {restart:.1f} s, copy {save:.3f} s, Young's interval {interval:.1f} s")
    return 1 - save / interval - (restart + interval / 2) / EVERY_S


def _without_half_a_batch(events) -> float:
    """The batch in hand at some moment is rather a long one: the mean weighted by length."""
    batches = [float(e["end_s"]) - float(e["start_s"]) for e in events if e["event"] == "batch"]
    restart = _restart_s(events, EVALUATE, "batch", "start_s")
    batch = sum(seconds**2 for seconds in batches) / sum(batches)
    print(f"evaluation: restart {restart:.1f} s, the batch in hand {batch:.2f} s")
    return 1 - (restart + batch / 2) / EVERY_S
