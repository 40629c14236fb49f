"""Preparing, pretraining and a reference set on a cluster end with the local command's files, whatever dies."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ase.io import read, write

from data_prep.build import prepare
from hpc.cluster.folders.arrays import arrays_of, divisions
from hpc.cluster.folders.jobs import jobs_folder
from hpc.cluster.folders.journeys import describe_folder, submit_prep, submit_pretrain
from hpc.cluster.journeys import submit_reference
from hpc.cluster.site import load_site
from hpc.reference import is_fitted
from promof_hpc.config import dump_config
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.shard import list_names
from tests.commands import ROOT, promof
from tests.integration.test_prep import SETTINGS, SOURCE
from tests.integration.test_pretrain import DATA, TINY_CHEMIST, outcome
from tests.processes import wait_for
from tests.slurm.client import State

DEMO = ROOT / "promof_hpc" / "data" / "demo" / "LIKFOB_clean.cif"


@pytest.fixture
def user(cluster, monkeypatch, tmp_path):
    """This process is logged in to the cluster."""
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def site(tmp_path):
    """The cluster with arrays of two tasks at most."""
    path, usual = tmp_path / "site.yaml", load_site("test-cluster")
    path.write_text(dump_config(usual.model_copy(update={"max_array": 2})))
    return str(path)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but those of its jobs."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != "jobs"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if not p.name.endswith(".tmp")}


def status(folder: Path) -> str:
    return "\n".join(describe_folder(folder))


def noted(folder: Path) -> list[str]:
    return [e["event"] for e in read_events(jobs_folder(folder))]


def kill_task(array: str, task: int) -> None:
    """SIGKILL a task of an array."""

    def process() -> psutil.Process | None:
        for found in psutil.process_iter(["cmdline"]):
            command = found.info["cmdline"] or [""]
            with contextlib.suppress(psutil.Error):
                if "submitit.core._submit" in command and "python" in command[0]:
                    environment = found.environ()
                    ids = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
                    if ids == (array, str(task)) and "SLURM_STEP_ID" in environment:
                        return found
        return None

    wait_for(process, 60, f"task {task} of {array}").kill()


def test_a_preparation_whose_task_was_killed_is_refused_then_completed_as_the_local_one(user, site, tmp_path):
    settings, out, local = replace(SETTINGS, chunk=2), tmp_path / "out", tmp_path / "local"
    submit_prep(str(SOURCE), out, settings, site, parts=3)
    first, second = arrays_of(jobs_folder(out))
    assert (first.tasks, second.tasks) == (2, 1), "no array is longer than the site allows"
    kill_task(first.job, 1)
    prepare(str(SOURCE), local, settings)
    wait_for(lambda: "refused" in noted(out), 120, "the merge to have refused")
    wait_for(lambda: "3 are missing and in the hands of no task" in status(out), 30, "the word of the scheduler")
    ((_, division),) = divisions(jobs_folder(out))
    told = " ".join(e["why"] for e in read_events(jobs_folder(out)) if e["event"] == "refused")
    assert all(chunk in told for chunk in division.parts[1])
    assert division.command in told
    assert not list_names(out / "train")
    assert "summary.json" not in list_names(out)
    before = {p: p.stat().st_mtime_ns for p in (out / "chunks").iterdir()}
    submit_prep(str(SOURCE), out, settings, site, parts=3)
    assert sorted(c for part in divisions(jobs_folder(out))[1][1].parts for c in part) == sorted(division.parts[1])
    wait_for(lambda: "; done" in status(out), 120, "the preparation")
    assert content(out) == content(local)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in (out / "chunks").iterdir()}.items()


def test_a_preempted_pretraining_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(user, site, tmp_path):
    overrides = [*TINY_CHEMIST, "steps=300", "checkpoint_s=0.2"]
    out, local = tmp_path / "out", tmp_path / "local"
    submit_pretrain("chemist", [DATA], out, overrides, site)
    wait_for(lambda: list_names(out / "training" / "chemist" / "checkpoints", ".pt"), 90, "a checkpoint")
    user.wait_for(user.preempt(seconds=1), State.COMPLETED, seconds=60)
    wait_for(lambda: "its weights are there" in status(out), 150, "the weights")
    told = [(e["event"], e["restart"], e.get("asked")) for e in read_events(jobs_folder(out))]
    assert ("job_leaves", 0, "REQUEUE") in told
    assert ("job_began", 1, None) in told
    words = [word for setting in overrides for word in ("--set", setting)]
    promof("pretrain", "chemist", "--data", DATA, "--out", local, *words, cwd=ROOT)
    assert outcome(out, "chemist") == outcome(local, "chemist")


@pytest.mark.filterwarnings("ignore:crystal system")
def test_a_reference_set_of_three_jobs_is_the_local_file(user, site, tmp_path):
    library, run, local = tmp_path / "mofs", RunDir(tmp_path / "run"), RunDir(tmp_path / "local")
    library.mkdir()
    atoms = read(DEMO)
    for k in range(7):
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] * (1 + 0.002 * k), scale_atoms=True)
        write(library / f"m{k}.cif", strained)
    settings = ["evaluation.potential.name=lennard-jones"]
    submit_reference(str(library), run.path, (6, 100), 2, None, settings, site)
    words = ("--count", 6, "--ranks", 1, "--set", *settings)
    promof("reference", "build", library, "--run", local.path, *words, cwd=ROOT)
    wait_for(lambda: "reference.json" in list_names(run.path), 150, "the reference set")
    assert is_fitted(run)
    assert (run.path / "reference.json").read_text() == (local.path / "reference.json").read_text()
    assert (run.path / "reference.md").read_text() == (local.path / "reference.md").read_text()
    wait_for(lambda: "index.html" in list_names(run.report), 60, "the report")
    assert submit_reference(str(library), run.path, (6, 100), 2, None, settings, site) == 0
