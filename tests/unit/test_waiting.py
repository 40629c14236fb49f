"""A trainer waits while somebody evaluates, has others start where ranks were idle, and else not for ever."""

from types import SimpleNamespace

import pytest

from hpc.cluster import evaluators
from hpc.cluster.batch_script import Role
from hpc.cluster.evaluators import Evaluators
from hpc.cluster.job_state import JobState, Seen
from hpc.cluster.site import load_site
from hpc.cluster.submission import no_other_submits
from hpc.training.waiting import Watch
from promof_hpc.config import dump_config
from promof_hpc.errors import PromofError
from promof_hpc.store.claims import Owner, claim, release
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import publish_text

IDLE_S = 1800.0


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run")


@pytest.fixture
def clock():
    """Seconds, as a list of one."""
    return [0.0]


def test_nobody_is_asked_before_a_minute_without_results_and_live_claims(run, clock):
    asked = []
    watch = Watch(run, 300.0, lambda idle_s: asked.append(idle_s) or "", lambda: clock[0])

    def look(at_s, open_batches):
        clock[0] = at_s
        assert watch.why_not(open_batches) == ""

    look(0, 5)
    look(59, 5)
    look(60, 4)  # a result
    look(119, 4)
    assert asked == []
    look(120, 4)
    look(121, 4)
    look(180, 4)
    assert asked == [60.0, 120.0]
    claim(run, "00000-00000", Owner.here(), 300.0)
    look(240, 4)
    look(300, 4)
    release(run, "00000-00000")
    look(360, 4)
    assert asked == [60.0, 120.0, 60.0]


def _job(left="", state=JobState.RUNNING, role="evaluate"):
    seen = Seen(state)
    over = left in ("NOTHING", "IDLE", "LEAVE") or seen.final
    return SimpleNamespace(submitted=SimpleNamespace(role=role, job="8"), left=left, over=over, seen=seen)


@pytest.fixture
def scene(run, clock, monkeypatch):
    """Evaluators with `jobs` that the test sets; `submitted` and `told` are what they did."""
    publish_text(run.site, dump_config(load_site("generic")))
    scene = SimpleNamespace(run=run, jobs=[], submitted=[], told=[])
    wanted = [SimpleNamespace(request=SimpleNamespace(role=role)) for role in (Role.TRAIN, Role.EVALUATE)]

    def submit(run, site, missing):
        scene.submitted += [one.request.role for one in missing]
        return [SimpleNamespace(name="promof-evaluate-run", job="9")]

    monkeypatch.setattr(evaluators, "jobs_of", lambda run, **anew: [_job(role="train"), *scene.jobs])
    monkeypatch.setattr(evaluators, "missing_jobs", lambda run, jobs: wanted)
    monkeypatch.setattr(evaluators, "submit", submit)
    scene.evaluators = Evaluators(run, load_site("generic"), "7", scene.told.append, lambda: clock[0])
    return scene


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.COMPLETING])
def test_a_job_that_waits_or_works_is_worth_waiting_for_however_long(scene, state):
    scene.jobs = [_job(state=JobState.FAILED), _job(state=state)]
    assert scene.evaluators.why_nobody(1e6) == ""
    assert not scene.submitted


def test_ranks_that_left_for_want_of_work_are_submitted_again(scene):
    scene.jobs = [_job("LEAVE"), _job("IDLE", JobState.COMPLETED)]
    assert scene.evaluators.why_nobody(60.0) == ""
    assert scene.submitted == [Role.EVALUATE]  # never a second trainer
    assert "submitted promof-evaluate-run as job 9" in scene.told[0]


def test_what_cannot_be_submitted_ends_the_wait_with_the_reason(scene, monkeypatch):
    def submit(run, site, missing):
        raise PromofError("Slurm did not take it")

    monkeypatch.setattr(evaluators, "submit", submit)
    scene.jobs = [_job("IDLE", JobState.COMPLETED)]
    assert scene.evaluators.why_nobody(60.0) == ""  # the next try may succeed
    assert "could not be submitted: Slurm did not take it" in scene.evaluators.why_nobody(IDLE_S)


def test_when_training_has_ended_ranks_that_idled_are_called_back_for_what_is_left(scene, monkeypatch):
    scene.jobs = [_job("IDLE", JobState.COMPLETED)]
    monkeypatch.setattr(evaluators, "is_done", lambda run: True)
    scene.evaluators.call_back()
    assert not scene.submitted
    monkeypatch.setattr(evaluators, "is_done", lambda run: False)
    scene.evaluators.call_back()
    assert scene.submitted == [Role.EVALUATE]
    scene.jobs = [_job(state=JobState.RUNNING)]
    scene.evaluators.call_back()
    assert scene.submitted == [Role.EVALUATE]


def test_while_somebody_else_submits_nothing_is_submitted(scene):
    scene.jobs = [_job("IDLE", JobState.COMPLETED)]
    with no_other_submits(scene.run):
        assert scene.evaluators.why_nobody(60.0) == ""
    assert not scene.submitted


@pytest.mark.parametrize("job", [
    _job(state=JobState.FAILED), _job(state=JobState.CANCELLED), _job("LEAVE", JobState.COMPLETED),
    _job(state=JobState.UNKNOWN), None,
])  # fmt: skip
def test_where_no_evaluate_job_is_left_the_wait_ends_after_a_while(scene, job):
    scene.jobs = [job] if job else []
    assert scene.evaluators.why_nobody(IDLE_S - 1) == ""
    why = scene.evaluators.why_nobody(IDLE_S)
    assert why == "no rank has evaluated anything for 30 min, and no evaluate job is known to wait or work"
    assert not scene.submitted


def test_a_job_that_waited_long_in_the_queue_is_not_given_up_as_soon_as_slurm_is_silent(scene, clock):
    scene.jobs = [_job(state=JobState.PENDING)]
    clock[0] = 9000.0
    assert scene.evaluators.why_nobody(9000.0) == ""
    scene.jobs = [_job(state=JobState.UNKNOWN)]
    clock[0] += IDLE_S - 1
    assert scene.evaluators.why_nobody(9000.0 + IDLE_S - 1) == ""
    clock[0] += 1
    assert scene.evaluators.why_nobody(9000.0 + IDLE_S)


def test_ranks_beside_training_are_started_again_by_the_script_unless_they_left(scene, run, clock):
    scene.jobs = [_job(role="train and evaluate")]
    events = EventLog(run, "7-evaluate")
    events.write("job_began", job="7", role="evaluate")
    assert scene.evaluators.why_nobody(1e6) == ""
    events.write("job_leaves", job="7", role="evaluate", asked="LEAVE", why="more than half ended in nan")
    assert scene.evaluators.why_nobody(1e6) == ""
    clock[0] += IDLE_S
    assert "is known to wait or work (more than half ended in nan)" in scene.evaluators.why_nobody(IDLE_S)


def test_the_minutes_are_the_sites(scene):
    scene.evaluators.site = scene.evaluators.site.model_copy(update={"idle_min": 0.5})
    assert scene.evaluators.why_nobody(29.0) == ""
    assert "for 0.5 min" in scene.evaluators.why_nobody(30.0)
