"""Batch scripts: what submitit submits, what the templates say, and that bash and Slurm read both as they are meant.

Set PROMOF_WRITE_GOLDEN=1 to write tests/golden/sbatch anew; then read the difference.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import submitit
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.cluster.batch_script import (
    Request,
    Role,
    Template,
    check_run_path,
    parameters,
    python_command,
    render,
    sbatch_text,
    usual_request,
)
from hpc.cluster.site import Site, known_sites, load_site
from promof_hpc.errors import UsageError
from tests.processes import wait_for

GOLDEN = Path(__file__).parents[1] / "golden" / "sbatch"
WRITE = os.environ.get("PROMOF_WRITE_GOLDEN") == "1"
RUN = Path("/data/my runs (ü) 100% 'a'/pore")  # of case C037
SITES = [name for name in known_sites() if load_site(name).scheduler == "slurm"]
GPU_SITE = Site(
    partition="gpu", account="0123", qos="long", constraint="a100|h100", reservation="r 1", exclusive=True,
    gpus_per_node=4, memory_gb_per_task=1.5, train={"nodes_max": 8}, setup=("module load x",), python="python",
    environment={"A": "it's $HOME", "B": ""},
)  # fmt: skip
LAUNCHER_SITE = GPU_SITE.model_copy(
    update={"mpi": GPU_SITE.mpi.model_copy(update={"launcher": "mpirun --bind-to none"})}
)


@pytest.fixture(autouse=True)
def python(monkeypatch):
    """Profiles without a Python take the one that runs, which is elsewhere on every machine."""
    monkeypatch.setattr(sys, "executable", "/opt/promof/bin/python")


def _request(role, site, run=RUN, **changes):
    nodes = {"nodes": min(2, site.train.nodes_max)} if role is not Role.SERIAL else {}
    return replace(usual_request(Role(role), run, site), **{**nodes, **changes})


def _rendered(template, site, run=RUN, **changes):
    roles = [Role.TRAIN, Role.EVALUATE] if template is Template.ONE_JOB else [Role(template.value)]
    return render(template, [_request(role, site, run, **changes) for role in roles], site)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("what", [*Role, *Template], ids=lambda what: f"{type(what).__name__}-{what}")
def test_scripts_of_the_shipped_profiles_are_those_on_record(site, what):
    profile = load_site(site)
    submits = isinstance(what, Role)
    text = sbatch_text(_request(what, profile), profile) if submits else _rendered(what, profile)
    path = GOLDEN / site / f"{what}.{'submitit' if submits else 'template'}.sh"
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_nothing_else_is_on_record():
    kinds = {f"{role}.submitit.sh" for role in Role} | {f"{template}.template.sh" for template in Template}
    assert {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*.*")} == {f"{s}/{k}" for s in SITES for k in kinds}


def _options(text):
    """The #SBATCH options of a script, as a shell reads them."""
    return sorted(
        word
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
        for word in shlex.split(line[len("#SBATCH ") :])
    )


def _run(script, folder, command, seconds=30):
    """What bash gives `command` when it runs a script: the words of every call; other programs are not started."""
    folder.mkdir(parents=True, exist_ok=True)
    fake = folder / command
    fake.write_text('#!/bin/bash\nprintf "%s\\0" "$@" call >>"$CALLS"\n/usr/bin/env >>"$CALLS.env"\n')
    fake.chmod(0o755)
    calls = folder / "calls"
    path = f"{folder}:/usr/bin:/bin"
    module = "module() { :; }\nsource() { :; }\n"
    subprocess.run(["/bin/bash", "-c", module + script], env={"PATH": path, "CALLS": str(calls), "HOME": "/home/me",
                   "SCRATCH": "/scratch/me"}, timeout=seconds, check=True)  # fmt: skip
    words = calls.read_bytes().decode().split("\0")[:-1]
    ends = [k for k, word in enumerate(words) if word == "call"]
    return [words[begin:end] for begin, end in zip([0, *(k + 1 for k in ends)], ends, strict=False)]


def _srun_options(words):
    """Options of srun up to the program, each as one word."""
    options, words = [], words[: words.index("env")]
    while words:
        word = words.pop(0)
        options.append(f"{word}={words.pop(0)}" if word in ("--output", "--error") else word)
    return sorted(options)


CHANGES = [{}, {"array": 9, "array_concurrency": 3}, {"after": ("7", "8"), "chained": True}]
MEETINGS = [*((site, {}) for site in SITES), *((site, c) for site in (GPU_SITE, LAUNCHER_SITE) for c in CHANGES)]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("site", "changes"), MEETINGS)
def test_templates_ask_for_what_submitit_asks_for(tmp_path, site, role, changes):
    profile = load_site(site) if isinstance(site, str) else site
    submitted = sbatch_text(_request(role, profile, **changes), profile)
    template = _rendered(Template(role.value), profile, **changes)
    assert _options(submitted) == _options(template)
    command = "env" if profile.mpi.launcher and role is Role.EVALUATE else "srun"
    (ours,), (theirs,) = _run(submitted, tmp_path / "a", command), _run(template, tmp_path / "b", command)
    if command == "srun":
        assert _srun_options(ours) == _srun_options(theirs)
        assert ours[-1] == f"{RUN}/logs"
        ours, theirs = ours[ours.index("env") :], theirs[theirs.index("env") :]
    assert [*ours[: ours.index("-u")], "-u", "-m", "hpc.cluster.jobs", role, str(RUN)] == theirs


def _environment(tmp_path):
    lines = (tmp_path / "calls.env").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines)


def test_jobs_get_the_sites_variables_literally_and_ours(tmp_path):
    _run(sbatch_text(_request(Role.TRAIN, GPU_SITE, after=("7", "8"), chained=True), GPU_SITE), tmp_path, "srun")
    got = _environment(tmp_path)
    assert (got["A"], got["B"], got["SUBMITIT_PREEMPT_SIGNAL"]) == ("it's $HOME", "", "USR2")
    assert got["PROMOF_CHAINED_AFTER"] == "7,8"
    assert "PROMOF_MPI_LAUNCHER" not in got


def test_ranks_of_a_launcher_are_started_by_one_process_in_the_shells_place(tmp_path):
    request = _request(Role.EVALUATE, LAUNCHER_SITE)
    text = sbatch_text(request, LAUNCHER_SITE)
    assert "--signal=B:USR2@300" in _options(text)
    (words,) = _run(text + "\necho the shell is still there >&2; exit 1\n", tmp_path, "env")
    assert words[:2] == ["--block-signal=USR2", "--block-signal=TERM"]
    assert _environment(tmp_path)["PROMOF_MPI_LAUNCHER"] == "mpirun --bind-to none -n 8"
    assert "PROMOF_MPI_LAUNCHER" not in sbatch_text(_request(Role.TRAIN, LAUNCHER_SITE), LAUNCHER_SITE)


def test_trainers_see_all_gpus_and_evaluators_one_each():
    train, evaluate = (parameters(_request(role, GPU_SITE), GPU_SITE) for role in (Role.TRAIN, Role.EVALUATE))
    assert train["gres"] == evaluate["gres"] == "gpu:4"
    assert "--gpus-per-task=1" in evaluate["srun_args"]
    assert not any("gpu" in option for option in train["srun_args"])
    assert train["ntasks_per_node"] == evaluate["ntasks_per_node"] == 4
    assert "gres" not in parameters(_request(Role.SERIAL, GPU_SITE), GPU_SITE)
    on_cpus = Site(cpus_per_task=3)
    wanted = parameters(_request(Role.EVALUATE, on_cpus, nodes=4), on_cpus)
    assert not [word for word in (*wanted, *wanted["srun_args"]) if "gpu" in word or "gres" in word]


def test_gpus_may_be_asked_for_by_count_and_kind():
    site = GPU_SITE.model_copy(update={"gpu_request": "--gpus-per-node=a100:{count}"})
    assert parameters(_request(Role.TRAIN, site), site)["gpus_per_node"] == "a100:4"
    assert "--gpus-per-node=a100:4" in _options(_rendered(Template.TRAIN, site))


@pytest.mark.parametrize(
    ("changes", "tasks", "cpus"),
    [
        ({}, 4, 8),
        ({}, 1, 32),
        ({"exclusive": False}, 1, 8),
        ({"cpus_per_gpu": 3}, 2, 6),
        ({"cpus_per_task": 5}, 2, 5),
        ({"gpus_per_node": 0}, 2, 1),
    ],
)
def test_the_cpus_of_a_node_are_shared_by_its_tasks_and_told_to_srun_too(changes, tasks, cpus):
    site = GPU_SITE.model_copy(update=changes)
    for role in (Role.TRAIN, Role.EVALUATE):
        wanted = parameters(_request(role, site, tasks_per_node=tasks), site)
        assert wanted["cpus_per_task"] == cpus
        assert f"--cpus-per-task={cpus}" in wanted["srun_args"]
        assert wanted["mem"] == f"{1536 * tasks}M"


def test_every_job_can_be_requeued_and_is_warned():
    for site in map(load_site, SITES):
        for role in Role:
            options = _options(sbatch_text(_request(role, site), site))
            assert "--requeue" in options
            assert f"--signal=USR2@{site.signal.lead_s}" in options
            assert not [option for option in options if "wckey" in option]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An sbatch that keeps the script, and an srun that submitit finds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = tmp_path / "submitted.sh"
    (folder / "sbatch").write_text(f'#!/bin/sh\ncp "$1" "{script}"\necho Submitted batch job 42\n')
    (folder / "srun").write_text("#!/bin/sh\nexit 1\n")
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return script


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("array", [0, 3])
def test_the_text_is_what_submitit_submits(sbatch, tmp_path, role, array):
    run = tmp_path / "my runs (ü) 100% 'a'" / "x"
    request = _request(role, GPU_SITE, run, array=array, array_concurrency=2 if array else 0)
    executor = submitit.SlurmExecutor(run / "logs", python=python_command(request, GPU_SITE))
    executor.update_parameters(**parameters(request, GPU_SITE))
    if array:
        executor.map_array(str, range(array))
    else:
        executor.submit(str, run)
    assert sbatch.read_text(encoding="utf-8") == sbatch_text(request, GPU_SITE)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/runs/a%jb", "'%j'"),
        ("/runs/100%%", "'%%'"),
        ("/runs/a%5x", "'%5'"),
        ("/runs/a\\b", r"'\\\\'"),
        ("/runs/a\nb", r"'\\n'"),
        ("/runs/\udcff", "not UTF-8"),
        ("runs/a", "is relative"),
    ],
)
def test_a_path_that_slurm_would_change_is_refused_with_what_is_in_the_way(path, told):
    with pytest.raises(UsageError, match=told) as error:
        Request("x", Role.TRAIN, Path(path), 1, 1, 60)
    assert "choose another run directory with --run" in str(error.value)
    assert "\n" not in str(error.value)
    str(error.value).encode()


ODD = st.sampled_from(" 'üa1%$`\"#;&|<>()[]{}*?!~=,:^-é漢\t")
ANY = st.characters(exclude_categories=["C"], exclude_characters="\\/")
SAFE = st.text(ODD | ANY, min_size=1, max_size=12).map("/data/{}/x".format)


@given(SAFE)
@settings(max_examples=20, deadline=None)
def test_bash_reads_any_path_as_it_is(path):
    run = Path(path)
    try:
        check_run_path(run)
    except UsageError:
        return
    begin = "srun() { printf '%s\\0' \"$@\"; }\nmodule() { :; }\n"
    for text in (sbatch_text(_request(Role.TRAIN, GPU_SITE, run), GPU_SITE), _rendered(Template.TRAIN, GPU_SITE, run)):
        done = subprocess.run(["/bin/bash", "-c", begin + text], capture_output=True, timeout=30, check=True)
        words = done.stdout.decode().split("\0")[:-1]
        logs = str(run / "logs")
        assert words[-1] in (logs, str(run))
        assert [w.removeprefix("--output=") for w in words if "_log.out" in w] == [f"{logs}/%j_%t_log.out"]
        assert f"--output={logs}/%j_0_log.out" in _options(text)


@pytest.mark.parametrize(
    ("role", "changes", "told"),
    [
        (Role.TRAIN, {"nodes": 9}, r"9 nodes are asked for, and the site gives 8 \(train.nodes_max\)"),
        (Role.EVALUATE, {"tasks_per_node": 5}, "5 ranks on a node of 4 GPUs"),
        (Role.TRAIN, {"time_min": 5}, "leaves no work before the signal 300 s earlier"),
        (Role.SERIAL, {"nodes": 2}, "a serial job has one process"),
        (Role.TRAIN, {"chained": True}, "name the jobs that it comes after"),
        (Role.TRAIN, {"nodes": 0}, "must be 1 or more"),
    ],
)
def test_what_a_site_does_not_give_is_refused(role, changes, told):
    with pytest.raises(UsageError, match=told):
        sbatch_text(_request(role, GPU_SITE, **changes), GPU_SITE)


def test_a_site_without_a_scheduler_takes_no_jobs():
    site = load_site("local")
    for make in (parameters, sbatch_text):
        with pytest.raises(UsageError, match="no scheduler"):
            make(_request(Role.TRAIN, site), site)


def test_templates_want_their_own_requests():
    train, evaluate = _request(Role.TRAIN, GPU_SITE), _request(Role.EVALUATE, GPU_SITE)
    for template, requests in (
        (Template.TRAIN, [evaluate]),
        (Template.ONE_JOB, [train]),
        (Template.TRAIN, [train] * 2),
    ):
        with pytest.raises(UsageError, match="takes requests to"):
            render(template, requests, GPU_SITE)
    with pytest.raises(UsageError, match=r"mpi\.launcher is set"):
        render(Template.ONE_JOB, [train, evaluate], LAUNCHER_SITE)


class OneJob:
    """The script of both steps under bash, with an srun that does what `train` and `evaluate` say, and short sleeps."""

    def __init__(self, folder, train, evaluate, run=Path("/data/run")):
        self._notes = folder / "notes"
        (folder / "srun").write_text(
            f'#!/bin/bash\ncase "$*" in *"jobs train"*) step=train ;; *) step=evaluate ;; esac\n'
            f'echo "$step" >>"{self._notes}"\nif [ "$step" = train ]; then {train}; else {evaluate}; fi\n'
        )
        (folder / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.05\n")
        for name in ("srun", "sleep"):
            (folder / name).chmod(0o755)
        script = folder / "job.sh"
        script.write_text(_rendered(Template.ONE_JOB, load_site("test-cluster"), run), encoding="utf-8")
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "NOTES": str(self._notes)}
        self.process = subprocess.Popen(["/bin/bash", str(script)], env=environment, start_new_session=True)

    def steps(self):
        """Steps begun so far."""
        return self._notes.read_text().split() if self._notes.exists() else []


@pytest.fixture
def one_job(tmp_path):
    """Starts a OneJob; what it leaves behind is ended."""
    started = []

    def start(*steps):
        started.append(OneJob(tmp_path, *steps))
        return started[-1]

    yield start
    for job in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait(10)


def test_one_job_ends_with_the_code_of_its_training(one_job):
    begin = time.monotonic()
    job = one_job("/bin/sleep 1; exit 3", "/bin/sleep 1.5")
    assert job.process.wait(30) == 3
    assert time.monotonic() - begin > 1.4  # the evaluators were given the time to leave
    assert sorted(job.steps()) == ["evaluate", "train"]


def test_one_job_waits_for_a_second_opinion_but_not_where_training_failed(one_job, tmp_path):
    until_told = f'while [ ! -e "{tmp_path}/asked" ]; do /bin/sleep 0.1; done'
    job = one_job("exit 0", until_told)
    with pytest.raises(subprocess.TimeoutExpired):
        job.process.wait(5)  # more than sixty of the short sleeps
    (tmp_path / "asked").touch()
    assert job.process.wait(30) == 0
    (tmp_path / "asked").unlink()
    assert one_job("exit 4", until_told).process.wait(30) == 4


def test_one_job_starts_evaluators_again_until_training_ends(one_job):
    few = '[ "$(grep -c evaluate "$NOTES")" -lt 4 ]'
    job = one_job(f"while {few}; do /bin/sleep 0.1; done", f"if {few}; then exit 1; fi")
    assert job.process.wait(30) == 0
    assert job.steps().count("evaluate") >= 4
    assert job.steps().count("train") == 1


def test_one_job_leaves_evaluators_alone_that_left_of_their_own_accord(one_job):
    job = one_job("/bin/sleep 2", "exit 0")
    assert job.process.wait(30) == 0
    assert sorted(job.steps()) == ["evaluate", "train"]


def test_one_job_starts_no_evaluators_while_the_run_is_to_stop(one_job, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "STOP").touch()
    job = one_job("/bin/sleep 2", "exit 1", run)
    assert job.process.wait(30) == 0
    assert sorted(job.steps()) == ["evaluate", "train"]


def test_one_job_gives_up_when_evaluators_end_badly_ten_times(one_job):
    job = one_job("/bin/sleep 60", "exit 1")
    assert job.process.wait(30) == 1
    assert job.steps().count("evaluate") == 10


def test_only_the_evaluators_of_one_job_know_that_the_allocation_is_anothers(one_job, tmp_path):
    say = f'echo "$PROMOF_BESIDE" >"{tmp_path}/$step"'
    assert one_job(say, say).process.wait(30) == 0
    assert (tmp_path / "train").read_text() == "\n"
    assert (tmp_path / "evaluate").read_text() == "train\n"


def test_one_job_asks_for_the_cpus_of_its_larger_step():
    site = Site(train={"tasks_per_node": 1}, evaluate={"tasks_per_node": 4}, gpus_per_node=4, cpus_per_gpu=16)
    options = _options(_rendered(Template.ONE_JOB, site))
    assert {"--ntasks-per-node=4", "--cpus-per-task=16"} <= set(options)  # 1 x 64 and 4 x 16


def test_one_job_outlives_the_signals_that_are_for_its_steps(one_job, tmp_path):
    until_told = f'while [ ! -e "{tmp_path}/stop" ]; do /bin/sleep 0.1; done'
    job = one_job(until_told, until_told)
    wait_for(lambda: len(job.steps()) == 2, 30, "both steps")
    for number in (signal.SIGTERM, signal.SIGUSR2):
        job.process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        job.process.wait(1)
    (tmp_path / "stop").touch()
    assert job.process.wait(30) == 0
