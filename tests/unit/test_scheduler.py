"""The scheduler's word: read right where Slurm is well, and UNKNOWN within the deadline where it is not (case C040)."""

import json
import logging
import os
import signal
import threading
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc.cluster.job_state import JobState, Seen, from_sacct, from_scontrol, from_squeue, job_state
from hpc.cluster.scheduler import ASKED_TOGETHER, CachedScheduler, Limits, Scheduler
from tests.processes import wait_for
from tests.slurm_commands import SlurmCommands

CONFIG = "ClusterName = promof"
NO_SUCH_JOB = (
    f"[ \"$2\" = config ] && echo '{CONFIG}' && exit; "
    "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
)
NOT_THERE = "neither squeue nor sacct knows it"
SHOWN = (
    "JobId=12 JobName=a name with EndTime in it UserId=me(1) JobState=FAILED Reason=launch failed requeued held "
    "Dependency=(null) Requeue=1 Restarts=3 BatchFlag=1 ExitCode=0:9 RunTime=00:00:10 TimeLimit=01:00:00 "
    "StartTime=2026-03-01T12:00:00 EndTime=2026-03-01T13:00:00 Deadline=N/A PreemptTime=None StdErr=/a b/12.err Power="
)


@pytest.fixture
def slurm(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = SlurmCommands(folder)
    commands.says("squeue", "")
    commands.says("sacct", "")
    return commands


def test_all_jobs_are_asked_about_by_one_call_each(slurm):
    slurm.says("squeue", "7|RUNNING|1|0|None|\n8_0|PENDING|0|0|Priority|\n8_1|COMPLETED|0|0|None|\n")
    slurm.says("sacct", "9|CANCELLED by 2001|0:0\n10|FAILED|3:0\n11|TIMEOUT|0:15\n")
    seen = slurm.scheduler().states(["7", "8_0", "8_1", "9", "10", "11", "7"])
    assert seen == {
        "7": Seen(JobState.RUNNING, "", None, 1),
        "8_0": Seen(JobState.PENDING, "Priority", None, 0),
        "8_1": Seen(JobState.COMPLETED, "", 0, 0),
        "9": Seen(JobState.CANCELLED, "cancelled by 2001", 0),
        "10": Seen(JobState.FAILED, "", 3),
        "11": Seen(JobState.TIMEOUT, "", -15),
    }
    assert len(slurm.calls("squeue")) == len(slurm.calls("sacct")) == 1
    assert "--jobs=7,8,9,10,11" in slurm.calls("sacct")[0].split()


def test_nothing_is_asked_about_no_jobs(slurm):
    assert slurm.scheduler().states([]) == {}
    assert not slurm.calls("squeue")


def test_waiting_tasks_of_an_array_are_known_by_each_name(slurm):
    slurm.says("sacct", "5_[2-3,7%4]|PENDING|0:0\n5_1|COMPLETED|0:0\n5_1.batch|FAILED|1:0\n")
    slurm.write("squeue", "exit 1")
    seen = slurm.scheduler().states(["5_1", "5_2", "5_3", "5_7", "5_4"])
    assert [one.state.value for one in seen.values()] == ["COMPLETED", "PENDING", "PENDING", "PENDING", "UNKNOWN"]


@pytest.mark.parametrize(
    ("tasks", "whole"),
    [
        (["COMPLETED", "RUNNING", "PENDING"], "RUNNING"),
        (["COMPLETED", "PENDING", "FAILED"], "PENDING"),
        (["COMPLETED", "FAILED"], "FAILED"),
        (["COMPLETED", "COMPLETED"], "COMPLETED"),
        (["COMPLETED", "NODE_FAIL", "FAILED"], "NODE_FAIL"),
    ],
)
def test_an_array_as_a_whole_is_what_its_liveliest_task_is(slurm, tasks, whole):
    slurm.says("squeue", "".join(f"40_{k}|{word}|0|0|None|\n" for k, word in enumerate(tasks)) + "4|FAILED|0|0||\n")
    assert slurm.scheduler().states(["40"])["40"].state == whole


def test_squeue_counts_where_both_know_a_job_and_stale_accounts_are_not_believed(slurm):
    slurm.says("squeue", "1|COMPLETED|0|0|None|\n")
    slurm.says("sacct", "1|RUNNING|0:0\n2|RUNNING|0:0\n3|NODE_FAIL|0:0\n")
    seen = slurm.scheduler().states(["1", "2", "3"])
    assert [one.state.value for one in seen.values()] == ["COMPLETED", "UNKNOWN", "UNKNOWN"]
    assert "sacct still says RUNNING" in seen["2"].reason
    assert "sacct still says NODE_FAIL" in seen["3"].reason
    slurm.write("squeue", "exit 1")
    assert slurm.scheduler().states(["2"])["2"].state is JobState.RUNNING


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *((state.value, state) for state in JobState),
        ("CANCELLED by 2001", JobState.CANCELLED),
        ("OUT_OF_ME+", JobState.OUT_OF_MEMORY),
        ("CANCELLED+", JobState.CANCELLED),
        ("running", JobState.RUNNING),
    ],
)
def test_words_of_slurm_are_understood(word, state):
    assert job_state(word) is state


def test_a_new_word_is_unknown_and_told_once(caplog, slurm):
    slurm.says("squeue", "1|TWIDDLED|0|0|None|\n2|TWIDDLED|0|0|None|\n3|REQUEUE+|0|0|None|\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            seen = slurm.scheduler().states(["1", "2", "3"])
    assert seen["1"] == Seen(JobState.UNKNOWN, "Slurm says 'TWIDDLED'", None, 0)
    assert seen["3"].state is JobState.UNKNOWN  # REQUEUED, REQUEUE_FED or REQUEUE_HOLD
    assert [("TWIDDLED" in text, "REQUEUE+" in text) for text in caplog.messages] == [(True, False), (False, True)]


# how sacct may be, by the modes of case C040, and what is then said of a job that squeue does not list
MODES = {
    "disabled": ("echo Slurm accounting storage is disabled >&2; exit 1", "accounting off"),
    "empty": ("echo 'JobID|State|NodeList'", NOT_THERE),
    "slow": ("/bin/sleep 120", "sacct did not answer within 1 s"),
    "garbage": (r"printf 'W\303\244rtung, try later\n\000\001\377|||\n4711|\n|4711|RUNNING\n'", NOT_THERE),
    "other_cluster": ("echo '99999|RUNNING|x1'", NOT_THERE),
    "non-zero": ("echo '4711|RUNN' >&2; echo sacct: error: no route to host >&2; exit 1", "no route to host"),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_odd_sacct_leaves_unknown_with_the_reason_within_the_deadline(slurm, mode):
    body, reason = MODES[mode]
    slurm.write("sacct", body)
    begin = time.monotonic()
    seen = slurm.scheduler(1.0 if mode == "slow" else 20.0).states(["4711"])["4711"]
    assert time.monotonic() - begin < 10
    assert seen.state is JobState.UNKNOWN
    assert reason in seen.reason


def test_the_states_of_case_c040_are_read_beside_steps_and_a_header(slurm):
    lines = (
        "JobID|State|NodeList\n4711|{}|n1\n4711.batch|CANCELLED|n1\n4711.extern|COMPLETED|n1\n4711.0|OUT_OF_ME+|n1\n"
    )
    slurm.write("squeue", "exit 1")
    for word in ("NODE_FAIL", "REQUEUED", "PREEMPTED", "SPECIAL_EXIT", "STOPPED", "FROBNICATED", "CANCELLED by 2001"):
        slurm.says("sacct", lines.format(word))
        seen = slurm.scheduler().states(["4711"])["4711"]
        read = {"CANCELLED by 2001": "CANCELLED"} | dict.fromkeys(("FROBNICATED", "NODE_FAIL", "PREEMPTED"), "UNKNOWN")
        assert seen.state == read.get(word, word)
        assert seen.exit_code is None


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_what_slurm_may_requeue_is_over_where_squeue_lists_it_or_the_controller_has_forgotten_it(slurm, state):
    slurm.says("squeue", f"1|{state}|0|0|None|\n2|PENDING|1|0|BeginTime|\n")
    slurm.says("sacct", f"1|{state}|0:0\n2|{state}|0:0\n3|{state}|0:0\n")
    slurm.write("scontrol", NO_SUCH_JOB)
    seen = slurm.scheduler().states(["1", "2", "3"])
    assert [one.state.value for one in seen.values()] == [state, "PENDING", state]
    assert [one.final for one in seen.values()] == [True, False, True]
    assert slurm.calls("scontrol") == ["show job --oneliner 3", "show config"]
    slurm.write("squeue", "exit 1")
    seen = slurm.scheduler().states(["3"])["3"]
    assert (seen.state, seen.reason) == (JobState.UNKNOWN, f"squeue did not answer, and sacct still says {state}")
    assert len(slurm.calls("scontrol")) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_job_is_gone_where_the_controller_itself_knows_it_no_more(slurm, mode):
    slurm.write("sacct", MODES[mode][0])
    slurm.write("scontrol", NO_SUCH_JOB)
    seen = slurm.scheduler(1.0 if mode == "slow" else 20.0).states(["4711"])["4711"]
    assert seen == Seen(JobState.GONE, "the controller knows it no more", cluster="promof")
    assert seen.final


@pytest.mark.parametrize(
    "body",
    ["exit 0", "exit 1", "echo 'JobId=4711 JobState=PENDING'", "/bin/sleep 120",
     "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"],
)  # fmt: skip
def test_no_other_answer_of_the_controller_makes_a_job_gone(slurm, body):
    slurm.write("scontrol", body)
    assert slurm.scheduler(1.0).states(["4711"])["4711"] == Seen(JobState.UNKNOWN, NOT_THERE)


def test_a_controller_is_not_asked_where_squeue_is_silent_and_once_for_the_tasks_of_an_array(slurm):
    slurm.write("scontrol", NO_SUCH_JOB)
    seen = slurm.scheduler().states(["5_0", "5_1", "6"])
    assert [one.state.value for one in seen.values()] == ["GONE"] * 3
    asked = ["show config", "show job --oneliner 5", "show job --oneliner 6"]
    assert sorted(slurm.calls("scontrol")) == asked
    slurm.write("squeue", "exit 1")
    assert slurm.scheduler().states(["5_0"])["5_0"].state is JobState.UNKNOWN
    assert len(slurm.calls("scontrol")) == len(asked)


def test_a_controller_that_does_not_answer_is_not_asked_about_every_job(slurm):
    slurm.write("scontrol", "/bin/sleep 120")
    begin = time.monotonic()
    seen = slurm.scheduler(1.0).states([str(job) for job in range(40)])
    assert {one.state for one in seen.values()} == {JobState.UNKNOWN}
    assert len(slurm.calls("scontrol")) <= ASKED_TOGETHER
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("seen", "badly"),
    [
        *((Seen(JobState(word), "", 0), True) for word in
          ("FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")),
        (Seen(JobState.COMPLETED, "", 0), False),
        (Seen(JobState.COMPLETED, "", 1), True),
        (Seen(JobState.CANCELLED, "cancelled by 2001", 0), False),
        (Seen(JobState.GONE), True),
        (Seen(JobState.RUNNING), False),
        (Seen(JobState.UNKNOWN), False),
    ],
)  # fmt: skip
def test_many_a_bad_end_goes_with_the_exit_code_0(seen, badly):
    assert seen.badly is badly


def test_without_any_command_nothing_raises(tmp_path):
    scheduler = Scheduler(5, {"PATH": str(tmp_path)})
    assert scheduler.states(["1"]) == {"1": Seen(JobState.UNKNOWN, "squeue is not in PATH; sacct is not in PATH")}
    assert scheduler.reachable() == "scontrol is not in PATH"
    assert scheduler.limits() == Limits()
    assert scheduler.job("1").seen == Seen(JobState.UNKNOWN, "scontrol is not in PATH")
    assert scheduler.cancel(["1"]) == "scancel is not in PATH"
    assert scheduler.release("1") == scheduler.requeue("1") == "scontrol is not in PATH"


def test_a_program_that_cannot_run_is_a_reason_and_no_error(slurm):
    (slurm.folder / "squeue").write_bytes(b"\x7fELF nonsense")
    (slurm.folder / "sacct").chmod(0o644)
    seen = slurm.scheduler().states(["1"])["1"]
    assert seen.state is JobState.UNKNOWN
    assert "squeue cannot be started" in seen.reason


def test_a_slow_squeue_does_not_take_the_time_of_sacct(slurm):
    slurm.write("squeue", "/bin/sleep 120")
    slurm.says("sacct", "1|FAILED|1:0\n")
    assert slurm.scheduler(3.0).states(["1"])["1"].state is JobState.FAILED


@pytest.mark.parametrize("escaped", [False, True])
def test_what_does_not_answer_is_killed_with_its_children(slurm, tmp_path, escaped):
    pid_file = tmp_path / "pid"
    start = "/usr/bin/setsid " if escaped else ""
    slurm.write("scontrol", f"{start}/bin/sh -c 'echo $$ >\"{pid_file}\"; exec /bin/sleep 60' & wait")
    begin = time.monotonic()
    assert slurm.scheduler(3.0).reachable() == "scontrol did not answer within 3 s"
    assert time.monotonic() - begin < 15
    pid = int(pid_file.read_text())
    if escaped:  # out of reach, and it holds the pipe: it must not hold us
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 10, "its end")


@given(st.text(), st.lists(st.text("0123456789|_[]%-:,+ \x00\nRUNIG=", max_size=30)))
def test_no_text_is_too_odd_to_be_read(text, words):
    for odd in (text, "|".join(words), " ".join(words)):
        from_squeue(odd)
        from_sacct(odd)
        from_scontrol(odd)


@pytest.mark.parametrize(
    ("state", "reason", "held"),
    [
        (JobState.PENDING, "launch failed requeued held", True),
        (JobState.PENDING, "launch_failed_requeued_held", True),
        (JobState.PENDING, "job requeued in held state", True),
        (JobState.PENDING, "JobHeldUser", True),
        (JobState.PENDING, "JobHeldAdmin", True),
        (JobState.PENDING, "JobHoldMaxRequeue", True),
        (JobState.REQUEUE_HOLD, "", True),
        (JobState.SPECIAL_EXIT, "", True),
        (JobState.PENDING, "Priority", False),
        (JobState.PENDING, "BeginTime", False),
        (JobState.RUNNING, "JobHeldUser", False),
        (JobState.UNKNOWN, "", False),
    ],
)
def test_held_jobs_are_recognised(state, reason, held):
    assert Seen(state, reason).held is held


def test_a_job_in_detail_is_read_with_spaces_in_its_values(slurm):
    slurm.says("scontrol", SHOWN + "\n" + SHOWN.replace("FAILED", "RUNNING"))
    fields = slurm.scheduler().job("12")
    assert fields.seen == Seen(JobState.FAILED, "launch failed requeued held", -9, 3)
    assert fields.end_time_s == time.mktime((2026, 3, 1, 13, 0, 0, 0, 0, -1))
    assert fields.preempt_time_s is None
    assert slurm.calls("scontrol") == ["show job --oneliner 12"]


def test_the_time_of_preemption_is_read(slurm):
    slurm.says("scontrol", SHOWN.replace("PreemptTime=None", "PreemptTime=2026-03-01T12:30:00"))
    fields = slurm.scheduler().job("12")
    assert fields.end_time_s - fields.preempt_time_s == 1800


def test_limits_are_read_from_the_configuration(slurm):
    slurm.says(
        "scontrol",
        "Configuration data as of now\nKillWait                = 30 sec\nMaxArraySize            = 1001\n"
        "PreemptMode             = GANG,SUSPEND\nPreemptType             = preempt/qos\n"
        "SlurmctldParameters     = idle_on_node_suspend,preempt_send_user_signal\nSLURM_VERSION           = 23.02.1\n",
    )
    assert slurm.scheduler().limits() == Limits(1001, 30, "GANG,SUSPEND", "preempt/qos", True, "23.02.1")
    slurm.says("scontrol", "nothing = of use\n===\n")
    assert slurm.scheduler().limits() == Limits()


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ("Slurmctld(primary) at a is UP", 0, ""),
        ("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP", 1, ""),
        ("Slurmctld(primary) at a is DOWN", 0, "no Slurm controller is up (Slurmctld(primary) at a is DOWN)"),
        ("", 0, "no Slurm controller is up (scontrol ping said nothing)"),
    ],
)
def test_a_controller_is_reachable_if_one_is_up(slurm, text, code, why):
    slurm.write("scontrol", f"printf '{text}'; exit {code}")
    assert slurm.scheduler().reachable() == why


def test_orders_say_why_they_failed_and_what_was_ordered(slurm):
    slurm.write("scancel", "exit 0")
    slurm.write("scontrol", "echo; echo 'slurm_suspend error: Job is not held' >&2; exit 1")
    scheduler = slurm.scheduler()
    assert scheduler.cancel(["1", "2_3"]) == ""
    assert scheduler.cancel([]) == ""
    assert slurm.calls("scancel") == ["1 2_3"]
    assert scheduler.release("4") == scheduler.requeue("5") == "scontrol: slurm_suspend error: Job is not held"
    assert slurm.calls("scontrol") == ["release 4", "requeue 5"]


def test_a_users_own_filters_do_not_reach_the_commands(slurm):
    slurm.write("squeue", 'echo "1|RUNNING|0|0|$SQUEUE_PARTITION$SLURM_TIME_FORMAT$SLURM_CONF|"')
    own = {"SQUEUE_PARTITION": "high", "SLURM_TIME_FORMAT": "relative", "SLURM_CONF": "/etc/slurm.conf"}
    assert slurm.scheduler(**own).states(["1"])["1"].reason == "/etc/slurm.conf"


class Clock:
    """A clock that stands until it is moved."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cached(slurm, tmp_path, clock):
    """Two processes of a user, with one cache."""
    slurm.says("squeue", "1|RUNNING|0|0|None|\n2|COMPLETED|0|0|None|\n3|PENDING|0|0|None|\n")
    return [CachedScheduler(slurm.scheduler(), tmp_path / "cache" / "slurm.json", 60.0, clock) for _ in range(2)]


def test_processes_that_share_a_cache_ask_once_in_a_period(slurm, cached, clock):
    for one in cached * 3:
        assert one.states(["1", "2"])["1"].state is JobState.RUNNING
        clock.now_s += 5
    assert len(slurm.calls("squeue")) == len(slurm.calls("sacct")) == 1
    clock.now_s += 60
    slurm.says("squeue", "1|FAILED|0|256|None|\n")
    assert cached[1].states(["1"])["1"] == Seen(JobState.FAILED, "", 1, 0)
    assert len(slurm.calls("squeue")) == 2


def test_a_job_that_nobody_asked_about_waits_for_the_next_question_and_is_then_asked_about_with_the_others(
    slurm, cached, clock
):
    cached[0].states(["1"])
    clock.now_s += 20
    assert cached[1].states(["3"])["3"] == Seen(
        JobState.UNKNOWN, "not asked about yet; the next question is due in 40 s"
    )
    clock.now_s += 41
    assert cached[1].states(["3"])["3"].state is JobState.PENDING
    assert "--jobs=1,3" in slurm.calls("sacct")[-1]
    assert cached[0].states(["1"])["1"].state is JobState.RUNNING
    assert len(slurm.calls("squeue")) == 2


def test_jobs_that_have_ended_are_not_asked_about_again(slurm, cached, clock):
    cached[0].states(["2"])
    clock.now_s += 1000
    assert cached[1].states(["2"])["2"].state is JobState.COMPLETED
    assert len(slurm.calls("squeue")) == 1


def test_jobs_that_nobody_wants_any_more_are_forgotten(slurm, cached, clock):
    cached[0].states(["1", "2"])
    clock.now_s += 90_000
    cached[0].states(["3"])
    assert list(json.loads(cached[0].path.read_text())["jobs"]) == ["3"]
    assert "--jobs=3" in slurm.calls("sacct")[-1].split()


def test_while_another_process_asks_the_old_answer_is_given(slurm, cached, clock):
    cached[0].states(["1"])
    clock.now_s += 61
    slurm.write(
        "squeue", f'/bin/touch "{slurm.folder}/asking"; while [ ! -e "{slurm.folder}/go" ]; do /bin/sleep 0.05; done'
    )
    thread = threading.Thread(target=cached[0].states, args=(["1"],))
    thread.start()
    wait_for((slurm.folder / "asking").exists, 10, "the question")
    assert cached[1].states(["1"])["1"].state is JobState.RUNNING
    (slurm.folder / "go").touch()
    thread.join(10)
    assert len(slurm.calls("squeue")) == 2
    assert cached[1].states(["1"])["1"].state is JobState.UNKNOWN  # squeue said nothing


def test_of_many_processes_that_come_at_once_one_asks(slurm, cached, clock):
    for number in range(1, 6):
        clock.now_s += 100
        together = threading.Barrier(8)
        threads = [threading.Thread(target=lambda b=together: (b.wait(10), cached[0].states(["1"]))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(slurm.calls("squeue")) == number


def test_a_question_that_never_ended_is_not_asked_again_at_once(slurm, cached, clock):
    asked, sacct = slurm.folder / "asked", slurm.folder / "sacct.calls"
    until_both_run = f'while [ ! -e "{sacct}" ]; do /bin/sleep 0.05; done'
    kill = f'{until_both_run}; : >"{asked}"; kill -KILL "$PPID"'  # the process that asks
    slurm.write("squeue", f'if [ ! -e "{asked}" ]; then {kill}; fi')
    child = os.fork()
    if child == 0:
        cached[0].states(["1"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert cached[1].states(["1"])["1"].state is JobState.UNKNOWN
    assert len(slurm.calls("squeue")) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\x00", b'{"asked_s": 1}', b'{"asked_s": 999, "jobs": {"1": 3}, "wanted_s": {}}']
)
def test_a_cache_that_is_not_ours_is_replaced(slurm, cached, content):
    cached[0].path.parent.mkdir()
    cached[0].path.write_bytes(content)
    assert cached[0].states(["1"])["1"].state is JobState.RUNNING
    assert cached[1].states(["1"])["1"].state is JobState.RUNNING
    assert len(slurm.calls("squeue")) == 1


def test_a_clock_that_was_put_back_does_not_stop_the_questions(slurm, cached, clock):
    cached[0].states(["1"])
    clock.now_s -= 500
    cached[0].states(["1"])
    assert len(slurm.calls("squeue")) == 2


def test_a_cache_that_cannot_be_written_is_told_and_does_not_fail(slurm, tmp_path, clock, caplog):
    (tmp_path / "file").write_text("")
    scheduler = CachedScheduler(slurm.scheduler(), tmp_path / "file" / "slurm.json", 60.0, clock)
    slurm.says("squeue", "1|RUNNING|0|0|None|\n")
    assert scheduler.states(["1"])["1"].state is JobState.RUNNING
    assert "cannot be kept" in caplog.text
