"""`promof compare`: a study of two cheap strategies, as a user runs, extends and resumes it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from promof_hpc.store.budget import fold
from promof_hpc.store.run_dir import RunDir
from tests.commands import promof

STUDY = {
    "design": {
        "budget": 10,
        "reference": "none",
        "reward": {"stability_weight": 0},
        "rounds": {"targets": 1, "sets": 2, "assemblies": 3},
        "evaluation": {
            "potential": {"name": "lennard-jones"},
            "stages": "read,pores,relax,energy",
            "relax": {"max_steps": 5},
        },
    },
    "strategies": [{"name": "tests.strategies:Drift", "label": "drift"}, {"name": "tests.strategies:Exhausted"}],
    "tasks": [{"name": "pore", "pld_ang": 3.0}],
    "seeds": 1,
}


def write(place: Path, **changes: object) -> Path:
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study."""
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    (folder / "said.txt").write_text(promof("compare", "study.yaml", cwd=folder))
    return folder


def runs_of(place: Path) -> dict[str, RunDir]:
    found = [p.parent for p in (place / "runs" / "study").rglob("config.yaml")]
    return {str(p.relative_to(place / "runs" / "study")): RunDir.open(p) for p in found}


def stamps(place: Path) -> dict[Path, int]:
    rounds = [p for run in runs_of(place).values() for p in run.rounds.rglob("*") if p.is_file()]
    return {p: p.stat().st_mtime_ns for p in rounds}


def test_every_run_is_an_ordinary_run_with_the_same_budget_spent_exactly(place: Path):
    runs = runs_of(place)
    assert set(runs) == {"pore-3-0.2/drift/seed-0000", "pore-3-0.2/tests.strategies-exhausted/seed-0000"}
    assert all(fold(run, None).committed == 10 for run in runs.values())
    status = json.loads(promof("status", next(iter(runs.values())).path, "--json", cwd=place))
    assert status["state"] == "done"


def test_the_table_tells_what_the_ledgers_hold_and_where(place: Path):
    content = json.loads((place / "runs/study/comparison.json").read_text())
    for line in content["lines"]:
        for figures in line["runs"]:
            run = RunDir.open(place / "runs/study" / figures["path"])
            assert figures["evaluations"] == fold(run, None).committed == content["budget"]
            assert figures["weights_sha256"] == run.provenance_record()["potential"]["weights_sha256"]
            assert figures["finished"]
    said = (place / "said.txt").read_text()
    assert "| drift |" in said
    assert said.splitlines()[2].startswith("| Strategy | Success, %")
    assert "<svg" in (place / "runs/study/comparison.html").read_text()


def test_a_finished_study_is_not_done_again_and_more_seeds_add_to_it(place: Path):
    before = stamps(place)
    promof("compare", "study.yaml", cwd=place)
    assert stamps(place) == before
    write(place, seeds=2)
    promof("compare", "study.yaml", "--jobs", 2, cwd=place)
    after = stamps(place)
    assert {p: t for p, t in after.items() if p in before} == before
    assert len(runs_of(place)) == 4
    assert "4 of 4 runs finished" in (place / "runs/study/comparison.md").read_text()


def test_a_strategy_that_cannot_be_built_is_told_and_does_not_stop_the_others(tmp_path: Path):
    write(tmp_path, strategies=[{"name": "tests.strategies:Unbuildable"}, {"name": "tests.strategies:Exhausted"}])
    said = promof("compare", "study.yaml", cwd=tmp_path, code=1)
    assert "unbuildable/seed-0000: failed: No weights in nowhere" in said
    assert len(runs_of(tmp_path)) == 1


def test_a_strategy_that_wants_more_budget_gets_a_clear_error_and_nothing_is_made(tmp_path: Path):
    write(tmp_path, strategies=[{"name": "random", "set": {"budget": 100}}])
    said = promof("compare", "study.yaml", cwd=tmp_path, code=2)
    assert "strategy 'random' asks for a budget of its own; all compared systems get the same" in said
    assert not (tmp_path / "runs").exists()


def test_the_figures_of_finished_runs_outlive_their_directories(place: Path, tmp_path: Path):
    study = tmp_path / "runs" / "study"
    shutil.copytree(place / "runs" / "study" / "figures", study / "figures")
    shutil.copy(place / "study.yaml", tmp_path)
    promof("compare", "study.yaml", cwd=place)
    promof("compare", "study.yaml", cwd=tmp_path)
    assert not list(study.rglob("config.yaml"))
    assert (study / "comparison.json").read_text() == (place / "runs" / "study" / "comparison.json").read_text()
    write(tmp_path, design={**STUDY["design"], "budget": 12})
    assert "another configuration" in promof("compare", "study.yaml", cwd=tmp_path, code=2)
