"""`promof status`, `resume`, `stop`, `retry`, `logs` and `submit` where Slurm's commands are stand-ins (case C040)."""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hpc.cluster.submission as submission
import hpc.inspection as inspection
from hpc.cli import app
from hpc.cluster.overview import ASK_ANEW_S, jobs_of, scheduler_cache
from hpc.cluster.scheduler import Scheduler
from hpc.cluster.site import Site
from hpc.cluster.submission import no_other_submits, submissions, submit, without_slurm
from hpc.cluster.wanted import wanted_jobs
from hpc.kinds import config_of, design_of
from hpc.runs import open_same
from promof_hpc.config import DesignConfig, ScreenConfig, dump_config, load_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.report.status import snapshot
from promof_hpc.store.events import EventLog
from promof_hpc.store.run_dir import RunDir, raise_budget, request_stop, stop_requested
from promof_hpc.store.shard import publish_text, replace_text
from tests.commands import COMMAND, ENVIRONMENT
from tests.processes import wait_for
from tests.runs import lennard_jones_run
from tests.unit.test_folder_journeys import Slurm, at_hand
from tests.unit.test_scheduler import CONFIG, MODES, NO_SUCH_JOB

SITE = Site(private_cluster=True, poll_s=0.001, max_submissions_per_hour=9)
DEADLINE_S = 1.0  # of every question here; a command asks a few times
WORDS = ("NODE_FAIL", "REQUEUED", "PREEMPTED", "SPECIAL_EXIT", "STOPPED", "FROBNICATED", "CANCELLED by 2001")
STATES = "JobID|State|NodeList\n101|{0}|n1\n101.batch|CANCELLED|n1\n101.extern|COMPLETED|n1\n101.0|OUT_OF_ME+|n1\n"
ILL = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
ACCOUNTING_OFF = MODES["disabled"][0]


@dataclass
class Desk:
    """A user who has submitted a screening: job 101 evaluates it."""

    run: RunDir
    slurm: Slurm

    def promof(self, *words: object, code: int = 0) -> str:
        """What a command says, its message included; its exit code must be `code`."""
        done = CliRunner().invoke(app, [str(word) for word in words])
        error = done.exception
        if isinstance(error, PromofError):
            said, got = f"{done.output}promof: {error}", error.exit_code
        else:
            assert error is None or isinstance(error, SystemExit), repr(error)
            said, got = done.output, done.exit_code
        assert got == code, said
        return said

    def status(self) -> dict[str, Any]:
        """What `promof status --json` writes to its standard output."""
        return json.loads(CliRunner().invoke(app, ["status", str(self.run.path), "--json"]).stdout)

    def submitted(self) -> list[str]:
        """Jobs on record."""
        return [one.job for one in submissions(self.run)]

    def squeue(self, state: str, reason: str = "None", job: int = 101) -> None:
        self.slurm.says("squeue", f"{job}|{state}|0|0|{reason}|\n")

    def note(self, event: str, **content: object) -> None:
        """An event of job 101."""
        EventLog(self.run, "101-evaluate").write(event, role="evaluate", job="101", restart=0, **content)

    def begins(self) -> None:
        """Job 101 begins to work."""
        self.note("job_began", host="n1", tasks=1, allocated_s=time.time())


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    commands = at_hand(tmp_path, monkeypatch)
    commands.says("scancel", "")
    monkeypatch.setattr(Scheduler.__init__, "__defaults__", (DEADLINE_S, None))
    monkeypatch.setattr(inspection, "WATCH_S", 0.02)
    return commands


@pytest.fixture
def desk(tmp_path, slurm):
    run = lennard_jones_run(tmp_path / "run", "Slow", 4)
    publish_text(run.site, dump_config(SITE))
    slurm.says("scontrol", CONFIG)
    desk = Desk(run, slurm)
    assert "as job 101" in desk.promof("resume", run.path)
    return desk


@pytest.mark.parametrize("squeue", ["exit 0", "exit 1"])
@pytest.mark.parametrize("odd", [*MODES, *WORDS])
def test_an_odd_scheduler_hangs_no_command_and_has_nothing_submitted_twice(desk, odd, squeue):
    desk.begins()
    if odd in MODES:
        desk.slurm.write("sacct", MODES[odd][0])
    else:
        desk.slurm.says("sacct", STATES.format(odd))
    desk.slurm.write("squeue", squeue)
    desk.slurm.write("scontrol", ILL)
    over = odd.startswith("CANCELLED")
    alive = squeue == "exit 1" and odd in ("REQUEUED", "SPECIAL_EXIT", "STOPPED")  # sacct is believed
    begin = time.monotonic()
    now = desk.status()
    assert now["done"] == 0
    told = "evaluate job 101: cancelled" if over else "at work since" if alive else "unknown to the scheduler ("
    assert told in now["jobs"][0]
    if not alive:
        watched = desk.promof("status", desk.run.path, "--watch")
        assert over or "No longer watched" in watched
    desk.promof("resume", desk.run.path)
    desk.promof("resume", desk.run.path)
    desk.promof("retry", desk.run.path)
    desk.promof("logs", desk.run.path, "--failed")
    desk.promof("stop", desk.run.path)
    desk.promof("stop", desk.run.path, "--now")
    assert stop_requested(desk.run)
    assert time.monotonic() - begin < 60
    assert desk.submitted() == (["101", "102"] if over else ["101"])
    assert desk.slurm.calls("scancel") == [desk.submitted()[-1]]


def test_a_held_job_is_named_by_status_and_released_by_resume(desk):
    desk.squeue("PENDING", "launch failed requeued held")
    said = desk.promof("status", desk.run.path)
    assert "held by Slurm (launch failed requeued held): `promof resume` releases it" in said
    assert "Job 101 was held by Slurm; released." in desk.promof("resume", desk.run.path)
    assert "release 101" in desk.slurm.calls("scontrol")
    assert desk.submitted() == ["101"]
    desk.slurm.write("scontrol", "echo 'Job is not held' >&2; exit 1")
    assert "releasing it failed (scontrol: Job is not held)" in desk.promof("resume", desk.run.path)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_slurm_ended_for_good_is_replaced(desk, state, listed):
    desk.begins()
    if listed:
        desk.squeue(state)
    else:
        desk.slurm.says("sacct", f"101|{state}|0:0\n")
        assert "as job" not in desk.promof("resume", desk.run.path)  # it may be about to come back
        desk.slurm.write("scontrol", NO_SUCH_JOB)
    said = desk.promof("status", desk.run.path)
    assert f"evaluate job 101: {state.lower()}" in said
    assert "No evaluate job is left" in said
    assert "as job 102" in desk.promof("resume", desk.run.path)
    assert "as job" not in desk.promof("resume", desk.run.path) or listed is False
    assert desk.submitted()[:2] == ["101", "102"]


def test_a_forgotten_job_is_replaced_where_accounting_is_off(desk):
    desk.begins()
    desk.slurm.write("sacct", ACCOUNTING_OFF)
    desk.slurm.write("scontrol", ILL)
    said = desk.promof("status", desk.run.path)
    assert re.search(r"at work since \d\d:\d\d by its own word; unknown to the scheduler \(accounting off\)", said)
    assert "Nothing was submitted" in desk.promof("resume", desk.run.path)
    desk.slurm.write("scontrol", NO_SUCH_JOB)
    said = desk.promof("status", desk.run.path)
    assert "evaluate job 101: gone (the controller knows it no more)" in said
    assert "No evaluate job is left" in said
    assert desk.promof("status", desk.run.path, "--watch").count("idle:") == 1
    assert "as job 102" in desk.promof("resume", desk.run.path)


def test_what_a_controller_hides_of_another_user_is_not_taken_as_gone(desk, monkeypatch):
    desk.slurm.write("scontrol", NO_SUCH_JOB)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "another user submitted it" in desk.promof("status", desk.run.path)
    assert "Nothing was submitted" in desk.promof("resume", desk.run.path)
    assert desk.submitted() == ["101"]


def test_what_another_cluster_does_not_know_is_not_taken_as_gone(desk):
    desk.slurm.write("scontrol", NO_SUCH_JOB.replace("promof", "elsewhere"))
    assert "it was submitted to promof, and elsewhere was asked" in desk.promof("status", desk.run.path)
    assert "Nothing was submitted" in desk.promof("resume", desk.run.path)
    assert desk.submitted() == ["101"]


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"])
def test_a_job_that_ended_badly_with_exit_code_0_has_failed(desk, state):
    (desk.run.logs / "101_0_log.err").write_text("the last words\n")
    desk.squeue(state)
    assert "the last words" in desk.promof("logs", desk.run.path, "--failed", code=1)
    assert "again, as job 102" in desk.promof("retry", desk.run.path)


@pytest.mark.parametrize(("state", "asked"), [("CANCELLED", None), ("COMPLETED", None), ("TIMEOUT", "LEAVE")])
def test_a_job_that_was_cancelled_or_said_why_it_left_has_not_failed(desk, state, asked):
    if asked:
        desk.note("job_leaves", asked=asked)
    desk.squeue(state)
    assert "No job has failed." in desk.promof("logs", desk.run.path, "--failed")
    assert "No job has failed." in desk.promof("retry", desk.run.path)
    assert desk.submitted() == ["101"]


def test_ranks_that_left_for_want_of_work_are_over_while_slurm_still_ends_their_job(desk):
    desk.begins()
    desk.note("job_leaves", asked="IDLE", why="nothing to do for 30 min")
    desk.squeue("COMPLETING")
    said = desk.promof("status", desk.run.path)
    assert "evaluate job 101: left: nothing to do for 30 min" in said
    assert "as job 102" in desk.promof("resume", desk.run.path)


def test_a_link_that_did_not_go_on_has_not_failed_whatever_slurm_forgets(desk):
    desk.slurm.write("scontrol", NO_SUCH_JOB)
    told = "evaluate job 101: left: it did not go on where the job before it ended, because the run is done"
    EventLog(desk.run, "101-chain").write("chain_ends", role="chain", job="101", restart=0, why="the run is done")
    assert told in desk.promof("status", desk.run.path)
    assert "No job has failed." in desk.promof("logs", desk.run.path, "--failed")


@pytest.mark.parametrize(("why", "told"), [("", "left: the run was to stop"), ("a rank hangs", "left: a rank hangs")])
def test_why_a_job_left_is_told(desk, why, told):
    desk.begins()
    desk.note("job_leaves", asked="LEAVE", **({"why": why} if why else {}))
    assert f"evaluate job 101: {told}" in desk.promof("status", desk.run.path)


def test_watching_goes_on_while_jobs_wait_and_ends_with_them(desk):
    asked = desk.slurm.folder / "squeue.calls"
    asked.unlink(missing_ok=True)
    counting = f'n=0; while read line; do n=$((n + 1)); done <"{asked}"'
    desk.slurm.write("squeue", f'{counting}; [ "$n" -lt 5 ] && echo "101|PENDING|0|0|Priority|" || '
                               'echo "101|COMPLETED|0|0|None|"')  # fmt: skip
    said = desk.promof("status", desk.run.path, "--watch")
    assert said.count("evaluate job 101: pending (Priority)") == 4
    assert said.count("evaluate job 101: completed") == 1
    assert said.count("No evaluate job is left") == 1


def test_watching_a_stopped_screening_ends_when_its_jobs_have(desk):
    request_stop(desk.run, "a test")
    desk.squeue("CANCELLED")
    assert desk.promof("status", desk.run.path, "--watch").count("stopping:") == 1


def test_who_acts_is_not_told_what_slurm_said_a_minute_ago(desk):
    replace_text(desk.run.site, dump_config(SITE.model_copy(update={"poll_s": 60.0})))
    desk.squeue("RUNNING")
    desk.promof("status", desk.run.path)
    desk.squeue("CANCELLED")
    desk.slurm.write("scancel", "exit 0")
    for aged_s, resumed in ((ASK_ANEW_S - 5, False), (ASK_ANEW_S + 1, True)):
        said = json.loads(scheduler_cache().read_text())
        said["asked_s"] = time.time() - aged_s
        scheduler_cache().write_text(json.dumps(said))
        assert "running" in desk.promof("status", desk.run.path)
        assert ("as job 102" in desk.promof("resume", desk.run.path)) is resumed


def test_stop_now_cancels_what_is_not_over_and_says_so(desk):
    desk.squeue("RUNNING")
    assert "Cancelled 101." in desk.promof("stop", desk.run.path, "--now")
    assert desk.slurm.calls("scancel") == ["101"]
    desk.squeue("CANCELLED")
    assert "no job is left" in desk.promof("stop", desk.run.path, "--now")
    assert len(desk.slurm.calls("scancel")) == 1
    assert "as job 102" in desk.promof("resume", desk.run.path)
    assert not stop_requested(desk.run)


def test_of_two_resumes_at_once_one_submits(desk, monkeypatch):
    monkeypatch.setattr(submission, "SBATCH_S", 5.0)  # of the second, should it submit
    desk.squeue("CANCELLED")
    body = (desk.slurm.folder / "sbatch").read_text().partition("\n")[2].partition("\n")[2]
    asked, go = desk.slurm.folder / "asked", desk.slurm.folder / "go"
    desk.slurm.write("sbatch", f': >"{asked}"; while [ ! -e "{go}" ]; do /bin/sleep 0.05; done\n{body}')
    environment = {**ENVIRONMENT, **{name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME")}}
    first = subprocess.Popen(
        [*COMMAND, "resume", str(desk.run.path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for(asked.exists, 60, "the first submission")
        assert "Another command is submitting jobs" in desk.promof("resume", desk.run.path, code=1)
        assert "Another command is submitting jobs" in desk.promof("retry", desk.run.path, code=1)
    finally:
        go.touch()
    assert "as job 102" in first.communicate(timeout=60)[0]
    assert "Nothing was submitted" in desk.promof("resume", desk.run.path)
    assert desk.submitted() == ["101", "102"]


def test_a_lock_is_free_again_when_its_holder_has_ended(desk):
    with pytest.raises(ValueError), no_other_submits(desk.run):
        raise ValueError
    with no_other_submits(desk.run):
        pass


@pytest.mark.parametrize("said", ["/bin/sleep 60", "echo 'error: Socket timed out on send/recv operation' >&2; exit 1"])
def test_a_job_that_slurm_took_without_saying_so_is_found_by_its_script(desk, monkeypatch, said):
    monkeypatch.setattr(submission, "SBATCH_S", 1.0)
    script = desk.slurm.folder / "script"
    desk.slurm.write("sbatch", f'echo "$1" >"{script}"\n{said}')
    desk.slurm.write("squeue", f'case "$*" in\n*--name=promof-evaluate-run*) read s <"{script}"\n'
                               'echo "333|/elsewhere/run/logs/.submission_file_0.sh"; echo "777|$s" ;;\n'
                               '*) echo "101|CANCELLED|0|0|None|" ;;\nesac')  # fmt: skip
    assert "as job 777" in desk.promof("resume", desk.run.path)
    assert desk.submitted() == ["101", "777"]
    assert (desk.run.logs / "777_submitted.pkl").exists()


def test_two_steps_in_one_job_are_submitted_and_found_alike(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "SBATCH_S", 1.0)
    site = SITE.model_copy(update={"layout": "one_job"})
    config = load_config(DesignConfig, None, ["budget=64", "evaluation.potential.name=lennard-jones"])
    run = _begun(tmp_path / "a run", config, "design")
    assert [one.job for one in submit(run, site, wanted_jobs(run, config, site, "design"))] == ["101"]
    script = slurm.folder / "script"
    slurm.write("sbatch", f'echo "$1" >"{script}"\n/bin/sleep 60')
    slurm.write("squeue", f'read s <"{script}"; echo "102|$s"')
    assert [one.job for one in submit(run, site, wanted_jobs(run, config, site, "design"))] == ["102"]


def test_a_job_of_two_steps_is_at_work_until_both_have_left(slurm, tmp_path):
    site = SITE.model_copy(update={"layout": "one_job"})
    config = load_config(DesignConfig, None, ["budget=64", "evaluation.potential.name=lennard-jones"])
    run = _begun(tmp_path / "run", config, "design")
    submit(run, site, wanted_jobs(run, config, site, "design"))
    slurm.says("squeue", "101|RUNNING|0|0|None|\n")

    def note(role: str, event: str, **content: object) -> None:
        EventLog(run, f"101-{role}").write(event, role=role, job="101", restart=0, **content)

    for role in ("train", "evaluate"):
        note(role, "job_began", host="n1", tasks=1, allocated_s=time.time())
    note("train", "job_leaves", asked="NOTHING", why="")
    assert not jobs_of(run)[0].over  # the ranks may have a second potential to ask
    note("evaluate", "job_leaves", asked="NOTHING", why="")
    assert jobs_of(run)[0].over


def test_what_is_submitted_from_within_a_job_takes_nothing_of_its_task(monkeypatch):
    for name in ("PROMOF_CHAINED_AFTER", "PMI_RANK", "RANK", "SLURM_JOB_ID", "SBATCH_PARTITION"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    before = dict(os.environ)
    with without_slurm():
        left = {name for name in before if name not in os.environ}
        assert os.environ["SLURM_CONF"] == "/etc/slurm/slurm.conf"
    assert left >= {"PROMOF_CHAINED_AFTER", "PMI_RANK", "RANK", "SLURM_JOB_ID", "SBATCH_PARTITION"}
    assert dict(os.environ) == before
    monkeypatch.delenv("SLURM_JOB_ID")
    with without_slurm():
        assert os.environ["PMI_RANK"] == "7"  # a user's own, on a login node


def test_a_library_that_nobody_has_read_yet_is_not_done(slurm, tmp_path):
    assert snapshot(_begun(tmp_path / "run", ScreenConfig(library="demo"), "screen"), None).state == "idle"


def test_a_job_that_nobody_knows_of_is_said_to_be_unknown_or_not_taken(desk, monkeypatch):
    monkeypatch.setattr(submission, "SBATCH_S", 1.0)
    desk.slurm.write("sbatch", "/bin/sleep 60")
    answer = 'case "$*" in\n*--name=*) {} ;;\n*) echo "101|CANCELLED|0|0|None|" ;;\nesac'
    desk.slurm.write("squeue", answer.format("exit 0"))
    said = desk.promof("resume", desk.run.path, code=1)
    assert "did not take promof-evaluate-run: sbatch did not answer within 1 s, and squeue lists no such job" in said
    desk.slurm.write("squeue", answer.format("echo down >&2; exit 1"))
    said = desk.promof("resume", desk.run.path, code=1)
    assert "whether it took promof-evaluate-run is not known (squeue: down)" in said
    assert "`squeue --name=promof-evaluate-run`" in said
    assert desk.submitted() == ["101"]


@pytest.mark.parametrize("name", ["a:b", "a%j", "a\\b"])
@pytest.mark.parametrize("verb", ["design", "screen", "reference"])
def test_a_path_in_which_no_job_can_work_is_refused_before_anything_is_made(slurm, tmp_path, verb, name):
    words = ("--run", tmp_path / "new" / name, "--site", "generic")
    said = Desk(RunDir(tmp_path), slurm).promof("submit", verb, *words, code=2)
    assert "The path of the run" in said
    assert not (tmp_path / "new").exists()


def _submit(desk: Desk, tmp_path: Path, *words: object, code: int = 0) -> str:
    site = tmp_path / "site.yaml"
    site.write_text(dump_config(SITE))
    settings = ("--set", "evaluation.potential.name=lennard-jones", "--set", "reference=none")
    return desk.promof("submit", "screen", "demo", *settings, "--run", desk.run.path, "--site", site, *words, code=code)


def test_a_chain_is_submitted_again_with_what_it_belongs_to(slurm, tmp_path):
    desk = Desk(RunDir(tmp_path / "new"), slurm)
    assert "2 more that go on" in _submit(desk, tmp_path, "--chain", 2, "--dry-run")
    assert "1 more that go on" in _submit(desk, tmp_path, "--chain", 1)  # reads, evaluates, goes on
    assert desk.submitted() == ["101", "102", "103"]
    slurm.states(_101="RUNNING", _102="CANCELLED", _103="CANCELLED")
    said = _submit(desk, tmp_path, "--chain", 2)
    assert "2 more that go on" in said
    assert desk.submitted()[3:] == ["104", "105", "106"]
    assert "afterany:101" in slurm.scripts[3]
    assert ["PROMOF_CHAINED_AFTER" in script for script in slurm.scripts[3:]] == [False, True, True]
    assert said.count("--chain counts for what is submitted now") == 1
    slurm.states(_101="RUNNING", _104="PENDING", _105="PENDING", _106="PENDING")
    said = _submit(desk, tmp_path, "--chain", 2)
    assert "Nothing was submitted" in said
    assert said.count("--chain counts for what is submitted now") == 1
    assert len(desk.submitted()) == 6


def test_more_jobs_at_once_than_the_profile_allows_are_told_apart_from_too_many_within_an_hour(slurm, tmp_path):
    desk = Desk(RunDir(tmp_path / "new"), slurm)
    said = _submit(desk, tmp_path, "--chain", 20, code=1)
    assert re.search(r"22 jobs are asked for at once, and the site profile allows 9 .*max_submissions_per_hour", said)
    assert "--failed" not in said
    assert desk.submitted() == []
    _submit(desk, tmp_path, "--chain", 3)
    slurm.states(_101="FAILED", **{f"_{job}": "CANCELLED" for job in range(102, 106)})
    said = _submit(desk, tmp_path, "--chain", 6, code=1)
    assert re.search(r"5 jobs of .* within the last hour and 8 more are asked for; the site profile allows 9", said)


def _begun(path: Path, config: DesignConfig | ScreenConfig, kind: str) -> RunDir:
    run = RunDir.create(path)
    publish_text(run.provenance, json.dumps({"kind": kind}))
    publish_text(run.config, dump_config(config))
    return run


def test_another_number_of_processes_counts_from_the_next_submission_on(tmp_path):
    config = DesignConfig(budget=64)
    run = _begun(tmp_path / "run", config, "design")
    raise_budget(run, 64, 128, "now")
    provenance = run.provenance.read_bytes()
    words = ["budget=128", "farm.ranks=8", "training.tasks=4", "training.zero_stage=2", "training.engine=deepspeed"]
    assert open_same(run.path, load_config(DesignConfig, None, words), "design") == run
    now = design_of(run)
    assert (now.farm.ranks, now.training.tasks, now.training.zero_stage, now.budget) == (8, 4, 2, 128)
    assert load_config(DesignConfig, run.config).budget == 64
    assert run.provenance.read_bytes() == provenance
    with pytest.raises(UsageError, match=r"another configuration: seed, training\.precision in"):
        open_same(run.path, load_config(DesignConfig, None, [*words, "training.precision=bf16", "seed=3"]), "design")
    assert design_of(run) == now


def test_the_same_configuration_leaves_the_file_as_it_is(tmp_path):
    run = _begun(tmp_path / "run", ScreenConfig(), "screen")
    before = run.config.stat().st_ino
    open_same(run.path, ScreenConfig(), "screen")
    assert run.config.stat().st_ino == before
    open_same(run.path, load_config(ScreenConfig, None, ["farm.ranks=3"]), "screen")
    assert config_of(run).farm.ranks == 3


def test_ranks_of_a_new_submission_take_effect(slurm, tmp_path):
    desk = Desk(RunDir(tmp_path / "new"), slurm)
    _submit(desk, tmp_path)
    slurm.states(_101="COMPLETED", _102="CANCELLED")
    _submit(desk, tmp_path, "--set", "farm.ranks=3")
    assert "--nodes=1" in slurm.scripts[1]
    assert "--nodes=3" in slurm.scripts[-1]
