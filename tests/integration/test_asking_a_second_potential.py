"""The second opinion on a campaign's successes as a user sees it: after the end, not charged, resumable, told."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from promof_hpc.design.campaign.learned import success_ids
from promof_hpc.store.results import content_digest
from promof_hpc.store.run_dir import RunDir, how_ended
from promof_hpc.store.shard import read_shard
from tests.campaigns import SMALL, lenient_reference
from tests.commands import COMMAND, ENVIRONMENT, promof
from tests.processes import kill_everything, wait_for

BUDGET = 12


def settings(place: Path, *more: str, second: str = "tests.potentials:Wide") -> list[str]:
    chosen = (
        *SMALL, f"budget={BUDGET}", f"reference={place / 'lenient.json'}", "task.pld_ang=2", "task.width_ang=0.5",
        f"second_opinion={second}", *more,
    )  # fmt: skip
    return [word for setting in chosen for word in ("--set", setting)]


def status(run: RunDir, cwd: Path) -> dict:
    return json.loads(promof("status", run.path, "--json", cwd=cwd))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished campaign, half of whose evaluations are successes."""
    folder = tmp_path_factory.mktemp("opinion")
    lenient_reference(folder / "lenient.json")
    said = promof("design", "--run", "runs/one", "--ranks", 2, *settings(folder), cwd=folder)
    (folder / "said.txt").write_text(said)
    return folder


def test_every_success_has_an_opinion_that_is_not_charged(place):
    run = RunDir(place / "runs/one")
    successes = success_ids(run)
    assert len(successes) >= 4
    assert run.opinions_given() == sorted(successes)
    ledger = json.loads(promof("budget", run.path, "--json", cwd=place))
    assert (ledger["issued"], ledger["committed"], ledger["wasted"]) == (BUDGET, BUDGET, 0)
    shard = read_shard(run.opinion(successes[0]))
    assert shard.attrs["potential"] == "lennard-jones-wide"
    assert len(shard.attrs["weights_sha256"]) == 64
    assert json.loads(promof("verify", run.path, "--json", cwd=place))["sound"]


def test_status_and_page_tell_the_share(place):
    run = RunDir(place / "runs/one")
    count = len(success_ids(run))
    told = f"second opinion of lennard-jones-wide: {count} of {count} successes stable too (100 %)"
    assert told in (place / "said.txt").read_text()
    assert told in promof("status", run.path, cwd=place)
    opinion = status(run, place)["second_opinion"]
    assert (opinion["successes"], opinion["asked"], opinion["stable"], opinion["percent"]) == (count, count, count, 100)
    page = (run.report / "index.html").read_text()
    assert "S" + told[1:] in page
    assert "judged by forces, bonds and volume; it has no reference set for energies." in page


def test_resuming_an_ended_campaign_asks_only_about_what_is_missing(place):
    shutil.copytree(place / "runs/one", place / "runs/missing")
    run = RunDir(place / "runs/missing")
    removed, *kept = run.opinions_given()
    content = content_digest(read_shard(run.opinion(removed)))
    run.opinion(removed).unlink()
    stamps = {key: run.opinion(key).stat().st_mtime_ns for key in kept}
    assert status(run, place)["state"] == "idle"
    assert "1 not asked about yet" in promof("status", run.path, cwd=place)
    logs = list(run.logs.iterdir())
    assert f"done: {BUDGET}/{BUDGET}" in promof("resume", run.path, cwd=place)
    assert list(run.logs.iterdir()) == logs  # no farm was needed
    assert content_digest(read_shard(run.opinion(removed))) == content
    assert {key: run.opinion(key).stat().st_mtime_ns for key in kept} == stamps


def test_a_larger_budget_asks_about_the_new_successes_too(place):
    shutil.copytree(place / "runs/one", place / "runs/more")
    run = RunDir(place / "runs/more")
    before = set(run.opinions_given())
    promof("resume", run.path, "--raise-budget", 20, cwd=place)
    assert before < set(run.opinions_given()) == set(success_ids(run))


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_death_while_it_is_asked_loses_only_what_was_in_hand(place, how):
    run = RunDir(place / f"runs/{how}")
    command = [*COMMAND, "design", "--run", str(run.path), *settings(place, second="tests.potentials:WideAndSlow")]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(run.opinions_given, 120, "the first opinion")
    if how == "killed":
        kill_everything(run, process)
    else:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    successes = success_ids(run)
    kept = {key: run.opinion(key).stat().st_mtime_ns for key in run.opinions_given()}
    assert 0 < len(kept) < len(successes)
    assert how_ended(run) is not None
    assert status(run, place)["state"] == "idle"
    promof("resume", run.path, cwd=place)
    assert set(run.opinions_given()) == set(successes)
    assert {key: run.opinion(key).stat().st_mtime_ns for key in kept} == kept
    assert status(run, place)["second_opinion"]["percent"] == 100


def test_a_structure_that_kills_the_second_potential_is_known_by_name_and_no_agreement(place):
    shutil.copytree(place / "runs/one", place / "runs/crashing")
    run = RunDir(place / "runs/crashing")
    shutil.rmtree(run.opinions)
    text = run.config.read_text().replace("tests.potentials:Wide", "tests.potentials:WideCrashing")
    run.config.write_text(text)
    promof("resume", run.path, cwd=place)
    outcomes = [read_shard(run.opinion(key)).arrays["outcome"][0] for key in success_ids(run)]
    assert set(outcomes) == {"converged", "crashed"}
    opinion = status(run, place)["second_opinion"]
    assert opinion["asked"] == len(outcomes)
    assert opinion["stable"] == outcomes.count("converged")


def test_without_successes_it_says_that_there_are_none_to_ask_about(place):
    said = promof("design", "--run", "runs/hopeless", *settings(place, "task.pld_ang=9", "budget=4"), cwd=place)
    assert "second opinion of tests.potentials:Wide: no successes to ask about" in said
    run = RunDir(place / "runs/hopeless")
    assert not run.opinions.exists()
    found = status(run, place)
    assert (found["state"], found["second_opinion"]["percent"]) == ("done", None)
    assert "no successes to ask about" in (run.report / "index.html").read_text()


@pytest.mark.parametrize(("second", "words"), [
    ("chgnet", ("unknown potential 'chgnet'", "known: sevennet-0, chgnet-0.3.0")),
    ("lennard-jones", ("the potential of the campaign itself",)),
    ("tests.potentials:TheSame", ("the campaign's own potential",)),
    ("tests.potentials:Absent", ("Cannot load the potential 'tests.potentials:Absent'",)),
    ("uma", ("weights",)),
])  # fmt: skip
def test_a_second_potential_that_cannot_be_had_is_refused_at_the_start(place, second, words):
    for dry in ((), ("--dry-run",)):
        message = promof("design", *dry, "--run", "runs/wrong", *settings(place, second=second), cwd=place, code=2)
        assert all(word in message for word in words), message
    assert not (place / "runs/wrong").exists()


def test_a_dry_run_names_it(place):
    assert "second opinion: lennard-jones-wide" in promof("design", "--dry-run", *settings(place), cwd=place)


def test_other_weights_than_those_of_earlier_opinions_are_refused(place):
    shutil.copytree(place / "runs/one", place / "runs/mixed")
    run = RunDir(place / "runs/mixed")
    run.opinion(run.opinions_given()[0]).unlink()
    run.config.write_text(run.config.read_text().replace("tests.potentials:Wide", "tests.potentials:Wider"))
    assert "never mixed" in promof("resume", run.path, cwd=place, code=1)


def test_a_pretrained_potential_of_a_wheel_can_be_asked(place):
    said = promof("design", "--run", "runs/real", *settings(place, "budget=2", second="chgnet-0.3.0"), cwd=place)
    opinion = status(RunDir(place / "runs/real"), place)["second_opinion"]
    assert opinion["potential"] == "chgnet-0.3.0"
    assert 0 < opinion["asked"] == opinion["successes"]
    assert f"{opinion['stable']} of {opinion['asked']} successes stable too" in said


def test_a_study_has_a_column_of_it(place):
    design = yaml.safe_load((place / "runs/one/config.yaml").read_text())
    for key in ("strategy", "task", "seed"):
        design.pop(key)
    tasks = [{"name": "pore", "pld_ang": 2.0, "width_ang": 0.5}, {"name": "pore", "pld_ang": 9.0}]
    study = {"design": design | {"budget": 6}, "strategies": [{"name": "tests.strategies:Drift"}], "tasks": tasks}
    (place / "study.yaml").write_text(yaml.safe_dump(study | {"seeds": 1}))
    promof("compare", "study.yaml", cwd=place)
    text = (place / "runs/study/comparison.md").read_text()
    header, _, line = [row for row in text.splitlines() if row.startswith("|")][:3]
    column = header.split("|").index(" 2nd opinion, % ")
    assert line.split("|")[column] == " 100 "
    assert "no successes to ask about" in text
    with_some, without = json.loads((place / "runs/study/comparison.json").read_text())["lines"]
    assert with_some["runs"][0]["second_opinion_percent"] == 100
    assert without["runs"][0]["second_opinion_percent"] is None
    assert without["runs"][0]["finished"]
