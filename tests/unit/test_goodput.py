"""Goodput on hand-computed histories."""

import subprocess
import sys
import time

import pytest

from hpc.cluster.goodput import describe, goodput, sessions


def began(job: str, role: str, time_s: float, tasks: int = 2, **more: float) -> dict:
    return {"event": "job_began", "writer": f"{job}-{role}", "job": job, "role": role, "tasks": tasks,
            "time_s": time_s, "allocated_s": time_s - 10, **more}  # fmt: skip


def batch(job: str, rank: int, start_s: float, end_s: float, committed: bool = True) -> dict:
    return {"event": "batch", "writer": f"{job}-rank{rank:04d}", "start_s": start_s, "end_s": end_s, "time_s": end_s,
            "committed": committed}  # fmt: skip


def phase(job: str, time_s: float, phase: str = "learning") -> dict:
    return {"event": "phase", "writer": f"{job}-trainer", "time_s": time_s, "phase": phase}


def checkpoint(job: str, time_s: float) -> dict:
    return {"event": "checkpoint", "writer": f"{job}-trainer", "time_s": time_s}


def test_evaluation_counts_committed_batches_of_all_ranks():
    events = [
        began("7", "evaluate", 110),
        batch("7", 0, 120, 150),
        batch("7", 1, 120, 140),
        batch("7", 1, 140, 150, False),
    ]
    found = goodput(events)["evaluate"]
    assert found.allocated_s == 2 * (150 - 100)
    assert found.share == pytest.approx(50 / 100)
    assert describe({"evaluate": found}) == ["evaluate: 50% of 0.028 task-hours left results"]


def test_what_a_trainer_did_after_its_last_checkpoint_is_lost():
    events = [began("7", "train", 110), phase("7", 115), checkpoint("7", 155), phase("7", 170),
              began("7", "train", 210), phase("7", 215), checkpoint("7", 265)]  # fmt: skip
    assert [(s.begin_s, s.end_s) for s in sessions(events)] == [(100, 170), (200, 265)]
    found = goodput(events)["train"]
    assert found.allocated_s == 2 * (70 + 65)
    assert found.share == pytest.approx((40 + 50) / (70 + 65))


def test_what_was_proposed_and_published_after_the_last_checkpoint_is_kept():
    events = [began("7", "train", 110), phase("7", 115), checkpoint("7", 135), phase("7", 140, "proposing"),
              phase("7", 160, "evaluating"), phase("7", 180)]  # fmt: skip
    found = goodput(events)["train"]
    assert found.allocated_s == 2 * 80
    assert found.share == pytest.approx(45 / 80)


def test_without_jobs_there_is_none():
    assert goodput([]) == {}
    assert goodput([phase("local-1", 3.0)]) == {}


def test_a_job_is_as_old_as_its_process_not_as_its_imports():
    code = "import time; time.sleep(1); from hpc.cluster.jobs import _started_s; print(_started_s())"
    begin = time.time()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert begin - 0.1 < float(said) < time.time() - 1
