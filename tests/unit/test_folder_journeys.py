"""Preparing, pretraining and reference sets by jobs: what is submitted, and what the jobs do; without a Slurm."""

import contextlib
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from data_prep.build import Preparation, prepare
from data_prep.synthetic import Synthesis, SyntheticSettings, synthesise
from hpc.cluster.batch_script import Role, parameters, usual_request
from hpc.cluster.folders.arrays import arrays_of, divisions
from hpc.cluster.folders.jobs import Merge, PreparePart, Pretrain, jobs_folder
from hpc.cluster.folders.journeys import (
    describe_folder,
    for_one,
    submit_prep,
    submit_pretrain,
    submit_synthetic,
)
from hpc.cluster.jobs import Evaluate, Fit, IngestReference
from hpc.cluster.journeys import submit_reference
from hpc.cluster.site import Site, known_sites, load_site
from hpc.cluster.submission import submissions
from hpc.cluster.wanted import Wanted, outstanding, wanted_jobs
from hpc.preparation import preparation_settings
from hpc.reference import has_elements, is_fitted, reference_config
from promof_hpc.config import dump_config
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir, is_ingested
from promof_hpc.store.shard import list_names
from tests.commands import ROOT
from tests.integration.test_prep import SETTINGS, SOURCE
from tests.integration.test_pretrain import DATA, TINY_CHEMIST, outcome
from tests.processes import wait_for
from tests.slurm_commands import SlurmCommands

SITE = Site(description="test", private_cluster=True, poll_s=0.001, max_array=2, max_submissions_per_hour=9, grace_s=1,
            kill_wait_s=1, serial={"cpus": 1, "time_min": 30})  # fmt: skip
TINY = replace(SETTINGS, chunk=2)


class Slurm(SlurmCommands):
    """Stand-ins that number what is submitted and say of it what a test wants."""

    def start(self) -> None:
        count = self.folder / "count"
        count.write_text("100\n")
        self.write(
            "sbatch",
            f'read n <"{count}"\nn=$((n + 1))\necho "$n" >"{count}"\n/bin/cp "$1" "{self.folder}/sbatch.$n"\n'
            'echo "Submitted batch job $n"',
        )
        for name in ("srun", "scontrol", "squeue", "sacct"):
            self.says(name, "")

    @property
    def scripts(self) -> list[str]:
        """What was submitted, in order."""
        return [file.read_text() for file in sorted(self.folder.glob("sbatch.1*"))]

    def states(self, **states: str) -> None:
        self.says("squeue", "".join(f"{job[1:]}|{state}|0|0|None|\n" for job, state in states.items()))


def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """These in place of all other commands, and nothing remembered of what Slurm said."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = Slurm(folder)
    commands.start()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return commands


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return at_hand(tmp_path, monkeypatch)


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(dump_config(SITE))
    return str(path)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    prepare(str(SOURCE), folder, TINY)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but those of its jobs."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != "jobs"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def submitted(out: Path, job: str):
    """What a task of a job of a folder, or of a run, calls."""
    (file,) = out.rglob(f"logs/{job}_submitted.pkl")
    return pickle.loads(file.read_bytes()).function


def options(script: str) -> set[str]:
    return {w for line in script.splitlines() if line.startswith("#SBATCH ") for w in shlex.split(line[8:])}


def as_job(call: object, number: int = 7, task: int | None = None, cpus: int = 1, **variables: str) -> list[str]:
    """The command that does what a task of a job does, as Slurm starts it."""
    words = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": str(number), "SLURM_CPUS_PER_TASK": str(cpus)}
    if task is not None:
        words |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": str(task)}
    environment = [f"{name}={value}" for name, value in (words | variables).items()]
    program = f"from {type(call).__module__} import {type(call).__name__} as Job\n"
    program += f"if __name__ == '__main__':\n    Job(**{vars(call)!r})()"
    return ["/usr/bin/env", "--block-signal=USR2", "--block-signal=TERM", *environment, sys.executable, "-c", program]


def start(command: list[str], folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def run(command: list[str], folder: Path, code: int = 0) -> str:
    process = start(command, folder)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors + out
    return out + errors


def events(out: Path) -> list[tuple[str, str, str]]:
    return [(e["event"], e["job"], e.get("asked", "")) for e in read_events(jobs_folder(out))]


def test_a_dry_run_prints_plan_and_scripts_and_makes_nothing(tmp_path, slurm, site, capsys):
    out = tmp_path / "out"
    assert submit_prep(str(SOURCE), out, TINY, site, parts=3, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "10 chunks; 10 are missing" in said
    assert "promof-prep-out-0: 2 tasks of an array, 1 CPUs, 30 min" in said
    assert "promof-merge-out: 1 CPUs, 30 min, after promof-prep-out-0, promof-prep-out-1" in said
    assert said.count("#!/bin/bash") == 2
    assert said.count("#SBATCH --array=0-1%2") == 1
    assert not out.exists()
    assert not slurm.scripts


def test_tasks_are_told_their_place_in_a_file_and_the_merge_comes_after_every_array(tmp_path, slurm, site):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, TINY, site, parts=5)
    whole = Preparation.read(out)
    ((name, division),) = divisions(jobs_folder(out))
    assert sorted(c for part in division.parts for c in part) == whole.chunks
    arrays = [(a.job, a.first, a.tasks) for a in arrays_of(jobs_folder(out))]
    assert arrays == [("101", 0, 2), ("102", 2, 2), ("103", 4, 1)]
    tasks = ["101_0", "101_1", "102_0", "102_1", "103"]
    place = str(jobs_folder(out).path / "parts" / name)
    assert [submitted(out, task) for task in tasks] == [PreparePart(str(out), place, k) for k in range(5)]
    assert submitted(out, "104") == Merge(str(out), place)
    assert [("--array=0-1%2" in options(script)) for script in slurm.scripts] == [True, True, False, False]
    assert "--dependency=afterany:101:102:103" in options(slurm.scripts[-1])
    assert [s.role for s in submissions(jobs_folder(out))] == ["prepare", "prepare", "prepare", "serial"]


def test_the_jobs_together_leave_what_the_local_command_leaves(tmp_path, slurm, site, local):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, TINY, site, parts=3)
    for task in ("101_0", "101_1", "102", "103"):
        said = run(as_job(submitted(out, task), task=0), tmp_path)
    assert "MOFs prepared" in said
    assert content(out) == content(local)
    assert describe_folder(out)[0] == "10 of 10 chunks; done"
    before = len(slurm.scripts)
    submit_prep(str(SOURCE), out, TINY, site)
    assert len(slurm.scripts) == before


def test_a_merge_without_all_chunks_names_them_and_the_command_and_makes_nothing(tmp_path, slurm, site):
    out, settings = tmp_path / "out", preparation_settings(3, False, 200, 20)
    submit_prep(str(SOURCE), out, replace(settings, chunk=8), site, parts=2)
    run(as_job(submitted(out, "101_1"), task=1), tmp_path)
    before = set(content(out))
    said = run(as_job(submitted(out, "102")), tmp_path, code=1)
    flags = "--seed=3 --max-atoms=200 --max-blocks=20 --no-conformers"
    command = f"promof submit prep {SOURCE} {flags} --out={out} --site={site}"
    assert f"2 of 3 chunks (00000.h5, 00002.h5) of {out} are missing; `{command}` submits them" in said
    assert set(content(out)) == before
    assert ("refused", "7", "") in events(out)


def test_a_second_submission_leaves_living_tasks_alone_and_takes_what_the_dead_have_left(tmp_path, slurm, site, capsys):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, TINY, site, parts=4)
    run(as_job(submitted(out, "102_1"), task=1), tmp_path)
    slurm.states(_101_0="RUNNING", _101_1="PENDING", _102_0="RUNNING", _102_1="COMPLETED", _103="PENDING")
    submit_prep(str(SOURCE), out, TINY, site)
    assert len(slurm.scripts) == 3, "every chunk is made or in somebody's hands, and the merge waits"
    assert "serial job 103: pending" in capsys.readouterr().out
    slurm.states(_101_0="FAILED", _101_1="PENDING", _102_0="CANCELLED", _102_1="COMPLETED", _103="PENDING")
    submit_prep(str(SOURCE), out, TINY, site, parts=1)
    (_, division), (name, again) = divisions(jobs_folder(out))
    assert again.parts == (tuple(sorted(division.parts[0] + division.parts[2])),)
    assert submitted(out, "104") == PreparePart(str(out), str(jobs_folder(out).path / "parts" / name), 0)
    assert "--dependency=afterany:101:104" in options(slurm.scripts[-1])


def test_tasks_in_unknown_states_are_not_submitted_again_and_how_to_do_so_is_said(tmp_path, slurm, site, capsys):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, TINY, site, parts=2)
    capsys.readouterr()
    submit_prep(str(SOURCE), out, TINY, site, parts=2)
    assert len(slurm.scripts) == 2
    said = capsys.readouterr().out
    assert f"remove its file in {jobs_folder(out).path / 'arrays'}" in said
    (jobs_folder(out).path / "arrays" / "101.json").unlink()
    submit_prep(str(SOURCE), out, TINY, site, parts=2)
    assert len(slurm.scripts) == 4


def test_too_many_submissions_within_an_hour_are_refused(tmp_path, slurm, site):
    out = tmp_path / "out"
    with pytest.raises(PromofError, match=r"max_submissions_per_hour"):
        submit_prep(str(SOURCE), out, replace(TINY, chunk=1), site, parts=19)
    assert not slurm.scripts
    assert not arrays_of(jobs_folder(out))


def test_what_slurm_refuses_is_told_in_its_words(tmp_path, slurm, site):
    slurm.write("sbatch", 'echo "sbatch: error: invalid account" >&2\nexit 1')
    with pytest.raises(PromofError, match=r"did not take promof-prep-out-0: .*invalid account.*the same command"):
        submit_prep(str(SOURCE), tmp_path / "out", TINY, site, parts=4)


def test_a_path_that_slurm_would_change_is_refused_before_anything_is_made(tmp_path, slurm, site):
    with pytest.raises(UsageError, match="'%j'"):
        submit_prep(str(SOURCE), tmp_path / "a%j", TINY, site)
    assert not (tmp_path / "a%j").exists()


def test_a_relative_source_means_what_it_meant_where_it_was_submitted(tmp_path, slurm, site, monkeypatch):
    monkeypatch.chdir(SOURCE.parent)
    out = tmp_path / "out"
    submit_prep(SOURCE.name, out, replace(TINY, chunk=19), site)
    run(as_job(submitted(out, "101")), tmp_path)
    assert list_names(out / "chunks") == ["00000.h5"]
    ((_, division),) = divisions(jobs_folder(out))
    assert division.command.startswith(f"cd {SOURCE.parent} && promof submit prep {SOURCE.name} ")


def test_the_warning_ends_a_task_after_a_chunk_and_queues_it_again_while_its_workers_live(tmp_path, slurm, site):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, replace(TINY, chunk=1), site, parts=1)
    slurm.write("scontrol", f'/bin/ls "{out}/chunks" >"{tmp_path}/made"')
    process = start(as_job(submitted(out, "101"), task=3, cpus=2), tmp_path)
    wait_for(lambda: _workers(process.pid), 60, "workers")
    os.killpg(process.pid, signal.SIGUSR2)
    wait_for(lambda: ("requeued", "6_3", "") in events(out), 60, "the requeue")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert slurm.calls("scontrol")[-1] == "requeue 6_3"
    assert 0 < len((tmp_path / "made").read_text().split()) < 19
    assert events(out) == [("job_began", "6_3", ""), ("job_leaves", "6_3", "REQUEUE"), ("requeued", "6_3", "")]
    run(as_job(submitted(out, "101"), task=3, cpus=2, SLURM_RESTART_COUNT="1"), tmp_path)
    assert len(list_names(out / "chunks")) == 19
    assert ("job_leaves", "6_3", "NOTHING") in events(out)


def test_term_ends_the_work_and_the_task_waits_for_its_end(tmp_path, slurm, site):
    out = tmp_path / "out"
    submit_prep(str(SOURCE), out, replace(TINY, chunk=1), site, parts=1)
    process = start(as_job(submitted(out, "101"), cpus=2), tmp_path)
    wait_for(lambda: _workers(process.pid), 60, "workers")
    os.killpg(process.pid, signal.SIGTERM)
    wait_for(lambda: ("job_leaves", "7", "HOLD") in events(out), 60, "the task to have stopped")
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert not [call for call in slurm.calls("scontrol") if call.startswith("requeue")]


def _workers(pid: int) -> list[psutil.Process]:
    """The two that make chunks."""
    with contextlib.suppress(psutil.Error):
        found = [p for p in psutil.Process(pid).children() if "spawn_main" in " ".join(p.cmdline())]
        return found if len(found) == 2 else []
    return []


def test_synthetic_mofs_are_dealt_by_chunks_and_another_count_is_another_set(tmp_path, slurm, site):
    out = tmp_path / "out"
    submit_synthetic(DATA, out, 100, 1, site, parts=3)
    ((_, division),) = divisions(jobs_folder(out))
    whole = Synthesis.read(DATA, out)
    assert whole.settings == SyntheticSettings(count=100, seed=1)
    assert sorted(c for part in division.parts for c in part) == whole.chunks == [f"{k:05d}.h5" for k in range(4)]
    assert division.data == str(DATA)
    assert "promof submit prep synthetic" in division.command
    with pytest.raises(UsageError, match="another settings"):
        submit_synthetic(DATA, out, 200, 1, site)
    said = run(as_job(submitted(out, "103")), tmp_path, code=1)
    assert "4 of 4 chunks" in said


def test_chunks_of_synthetic_mofs_made_apart_are_those_made_together(tmp_path):
    settings = SyntheticSettings(count=2, seed=1, chunk=1)
    together, apart = tmp_path / "together", tmp_path / "apart"
    synthesise(DATA, together, settings)
    whole = Synthesis.begin(DATA, apart, settings)
    with pytest.raises(PromofError, match=r"2 of 2 chunks .*are missing"):
        whole.finish(1, lambda *_: None)
    for name in ("00001.h5", "00000.h5"):
        Synthesis.read(DATA, apart).make([name], 1, lambda *_: None)
    assert whole.finish(1, lambda *_: None).made == 2
    assert content(apart) == content(together)


def test_a_pretraining_stops_at_the_warning_goes_on_and_ends_with_the_local_weights(tmp_path, slurm, site):
    out, overrides = tmp_path / "out", [*TINY_CHEMIST, "steps=60", "checkpoint_s=1000"]
    submit_pretrain("chemist", [DATA], out, overrides, site)
    assert submitted(out, "101") == Pretrain(str(out), str(out / "jobs" / "pretrain-chemist.json"))
    assert {"--nodes=1", "--ntasks-per-node=1"} <= options(slurm.scripts[0])
    process = start(as_job(submitted(out, "101"), number=101), tmp_path)
    curve = out / "training" / "chemist"
    wait_for(lambda: list_names(curve / "events"), 100, "the training to have begun")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 0
    assert slurm.calls("scontrol")[-1] == "requeue 101"
    slurm.states(_101="PENDING")
    chemist, job = describe_folder(out)
    assert re.fullmatch(r"chemist: no weights yet; the newest checkpoint is of step \d+", chemist)
    assert job == "train job 101: stopped after a warning of Slurm, pending"
    submit_pretrain("chemist", [DATA], out, overrides, site)
    assert len(slurm.scripts) == 1, "it waits in the queue"
    run(as_job(submitted(out, "101"), number=101, SLURM_RESTART_COUNT="1"), tmp_path)
    words = [w for o in overrides for w in ("--set", o)]
    main = [sys.executable, "-m", "hpc.cli", "pretrain", "chemist"]
    local = [*main, "--data", str(DATA), "--out", str(tmp_path / "local")]
    run([*local, *words], ROOT)
    assert outcome(out, "chemist") == outcome(tmp_path / "local", "chemist")
    submit_pretrain("chemist", [DATA], out, overrides, site)
    assert len(slurm.scripts) == 1, "it is trained"
    with pytest.raises(UsageError, match="another seed"):
        submit_pretrain("chemist", [DATA], out, [*overrides, "seed=4"], site)


@pytest.mark.parametrize(("device", "gpu"), [("cpu", ""), ("cuda", ", 1 GPU")])
def test_pretraining_asks_for_one_gpu_where_it_uses_one_and_for_its_cpus(tmp_path, slurm, capsys, device, gpu):
    profile = tmp_path / "gpus.yaml"
    profile.write_text("gpus_per_node: 4\ncpus_per_gpu: 6\nevaluate:\n  tasks_per_node: 4\n")
    asked = ["steps=5", f"device={device}"]
    submit_pretrain("engineer", [DATA], tmp_path / "out", asked, str(profile), dry_run=True)
    said = capsys.readouterr().out
    assert f"promof-pretrain-engineer-out: 6 CPUs{gpu}, 1440 min" in said
    assert {"--cpus-per-task=6", "--ntasks-per-node=1"} <= options(said)
    assert ("--gres=gpu:1" in options(said)) == bool(gpu)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("policy", "data", "overrides", "words"),
    [
        ("chemists", DATA, [], "known: chemist, engineer"),
        ("chemist", DATA, ["widths=3"], "unknown key 'widths'"),
        ("chemist", ROOT, [], "make one with `promof prep`"),
        ("chemist", DATA, ["device=cuda"], "the site profile asks for no GPUs"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(tmp_path, slurm, site, policy, data, overrides, words):
    with pytest.raises(UsageError, match=words):
        submit_pretrain(policy, [data], tmp_path / "out", overrides, site)
    assert not slurm.scripts


@pytest.mark.parametrize("name", [name for name in known_sites() if load_site(name).scheduler == "slurm"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_profile_seen_by_one_process_is_a_profile(tmp_path, name, device):
    site = for_one(load_site(name), device)
    path = tmp_path / "site.yaml"
    path.write_text(dump_config(site))
    assert load_site(str(path)) == site
    assert parameters(replace(usual_request(Role.TRAIN, tmp_path, site), tasks_per_node=1), site)


def test_jobs_of_which_one_lives_are_left_out_and_the_others_wait_for_its_id(tmp_path, slurm, site):
    request = usual_request(Role.SERIAL, tmp_path, SITE)
    first, second = (replace(request, name=name) for name in ("first", "second"))
    wanted = [Wanted(Evaluate("x"), first), Wanted(Evaluate("x"), second, after=("first",))]
    assert outstanding(wanted, []) == wanted

    class Alive:
        class submitted:  # noqa: N801
            name, job = "first", "44"

    assert outstanding(wanted, [Alive()]) == [Wanted(Evaluate("x"), replace(second, after=("44",)))]


def test_a_reference_set_is_read_evaluated_and_fitted_by_three_jobs(tmp_path, slurm, site, capsys):
    run_ = RunDir(tmp_path / "ref")
    overrides = ["evaluation.potential.name=lennard-jones"]
    code = submit_reference("demo", run_.path, (6, 100), 1, None, overrides, site, dry_run=True)
    assert code == 0
    assert "promof-fit-ref: 1 x 1 tasks, 1 CPUs each, 30 min, after promof-evaluate-ref" in capsys.readouterr().out
    assert not run_.path.exists()
    config = reference_config(run_, "demo", 1, None, overrides)
    assert [type(one.job) for one in wanted_jobs(run_, config, SITE, "reference")] == [IngestReference, Evaluate, Fit]


def test_a_fit_refuses_what_is_incomplete_and_is_submitted_again_after_the_living_evaluators(tmp_path, slurm, site):
    library, reference = tmp_path / "mofs", RunDir(tmp_path / "ref")
    library.mkdir()
    for k in range(6):
        (library / f"m{k}.cif").write_bytes((ROOT / "promof_hpc/data/demo/LIKFOB_clean.cif").read_bytes())
    asked = (str(library), reference.path, (6, 100), 1, None, ["evaluation.potential.name=lennard-jones"], site)
    submit_reference(*asked)
    assert ["--dependency=afterany:101" in options(script) for script in slurm.scripts] == [False, True, False]
    assert "--dependency=afterany:102" in options(slurm.scripts[2])
    assert "its library has not been read" in run(as_job(submitted(reference.path, "103")), tmp_path, code=1)
    reading = start(as_job(submitted(reference.path, "101"), number=101), tmp_path)
    wait_for(lambda: [e for e in read_events(reference) if e["role"] == "ingest"], 60, "the reading to have begun")
    reading.send_signal(signal.SIGUSR2)
    assert reading.wait(60) == 0
    assert slurm.calls("scontrol")[-1] == "requeue 101"
    assert not is_ingested(reference)
    run(as_job(submitted(reference.path, "101"), number=101, SLURM_RESTART_COUNT="1"), tmp_path)
    assert is_ingested(reference)
    assert has_elements(reference)
    said = run(as_job(submitted(reference.path, "103"), number=103), tmp_path, code=1)
    assert re.search(r"(\d+) of \1 evaluations are missing; `promof resume ", said)
    assert not is_fitted(reference)
    slurm.states(_101="COMPLETED", _102="RUNNING", _103="FAILED")
    submit_reference(*asked)
    assert [job.name for job in submissions(reference)][3:] == ["promof-fit-ref"]
    assert "--dependency=afterany:102" in options(slurm.scripts[-1])
