"""`promof design` and what reads and resumes a campaign, as a user runs them, with a cheap strategy and potential."""

import json
import shutil

import pandas as pd
import pytest

from promof_hpc.config import DesignConfig, load_config
from promof_hpc.store.run_dir import RunDir
from tests.campaigns import SMALL
from tests.commands import ROOT, promof
from tests.runs import new_run

QUICK = tuple(word for setting in SMALL for word in ("--set", setting))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a finished campaign of 24 evaluations on two ranks."""
    folder = tmp_path_factory.mktemp("design")
    (folder / "said.txt").write_text(promof("design", "--run", "runs/one", "--ranks", 2, *QUICK, cwd=folder))
    return folder


def _ledger(place, run):
    return json.loads(promof("budget", run, "--json", cwd=place))


def test_a_campaign_spends_its_budget_exactly_and_says_so(place):
    assert "done: 24/24 evaluated" in (place / "said.txt").read_text()
    ledger = _ledger(place, "runs/one")
    outcomes = ledger.pop("outcomes")
    assert ledger == {"budget": 24, "issued": 24, "committed": 24, "uncharged": 0, "in_flight": 0, "wasted": 0}
    assert sum(outcomes.values()) == 24
    assert json.loads(promof("verify", "runs/one", "--json", cwd=place))["sound"]


def test_status_tells_rounds_gate_and_best(place):
    status = json.loads(promof("status", "runs/one", "--json", cwd=place))
    assert status["state"] == "done"
    assert status["ending"] == "the budget is spent"
    assert status["budget"]["committed"] == 24
    rounds = status["rounds"]
    assert [r["round"] for r in rounds] == list(range(len(rounds)))
    assert sum(r["evaluations"] for r in rounds) == 24
    assert sum(r["proposals"] for r in rounds) == status["entries"]
    assert status["gate_pass_share"] == pytest.approx(sum(r["passed"] for r in rounds) / status["entries"])
    assert 0.7 < status["gate_pass_share"] < 0.9  # every fifth is refused
    assert all(r["learned"] and r["signals"]["rounds_seen"] == r["round"] + 1 for r in rounds)
    assert status["best"]["reward"] == pytest.approx(max(r["reward_max"] for r in rounds))
    assert status["best"]["pld_ang"] > 0
    assert "passed the gate" in promof("status", "runs/one", "--watch", cwd=place)  # a finished run is not waited for


def test_provenance_names_what_the_numbers_come_from(place):
    record = RunDir(place / "runs/one").provenance_record()
    assert (record["kind"], record["strategy"]) == ("design", "tests.strategies:Drift")
    assert len(record["potential"]["weights_sha256"]) == 64
    assert {"policies", "libraries", "reference_sha256", "commit", "versions"} <= set(record)
    assert all(len(digest) == 64 for digest in record["libraries"].values())


def test_the_report_has_a_row_for_every_proposal(place):
    table = pd.read_parquet(place / "runs/one/report/table.parquet")
    assert len(table) == json.loads(promof("status", "runs/one", "--json", cwd=place))["entries"]
    assert (table["outcome"].isin(["converged", "max_steps"])).sum() == 24
    (place / "runs/one/report/index.html").unlink()
    promof("report", "runs/one", cwd=place)
    assert (place / "runs/one/report/index.html").stat().st_size > 10_000
    promof("export", "runs/one", "--out", "cifs", cwd=place)
    assert len(list((place / "cifs").glob("*.cif"))) == 24


def test_going_on_with_a_finished_campaign_changes_nothing(place):
    files = {p: p.stat().st_mtime_ns for p in (place / "runs/one").rglob("*") if "report" not in p.parts}
    for command in (("resume", "runs/one"), ("design", "--run", "runs/one", *QUICK), ("resume", "runs/one")):
        assert "done: 24/24" in promof(*command, cwd=place)
    folders = {"claims", "one", "logs", "events"}  # a lease came and went
    now = {p: p.stat().st_mtime_ns for p in (place / "runs/one").rglob("*") if "report" not in p.parts}
    assert now.keys() == files.keys()
    assert {p.name for p in files if files[p] != now[p]} <= folders
    assert _ledger(place, "runs/one")["committed"] == 24


def test_a_larger_budget_needs_an_act_of_its_own_that_is_recorded(place):
    shutil.copytree(place / "runs/one", place / "runs/more")
    larger = (*QUICK, "--set", "budget=30")
    message = promof("design", "--run", "runs/more", *larger, cwd=place, code=2)
    assert "promof resume runs/more --raise-budget" in message
    for too_small in (24, 3):
        assert "larger" in promof("resume", "runs/more", "--raise-budget", too_small, cwd=place, code=2)
    assert _ledger(place, "runs/more")["issued"] == 24
    before = {p: p.read_bytes() for p in (place / "runs/more/rounds").rglob("*") if p.is_file()}
    assert "done: 30/30" in promof("resume", "runs/more", "--raise-budget", 30, cwd=place)
    assert all(p.read_bytes() == content for p, content in before.items())
    ledger = _ledger(place, "runs/more")
    assert (ledger["budget"], ledger["issued"], ledger["committed"]) == (30, 30, 30)
    (act,) = RunDir(place / "runs/more").provenance_record()["budget_raised"]
    assert (act["from"], act["to"]) == (24, 30)
    assert act["time"][:2] == "20"
    assert "done: 30/30" in promof("resume", "runs/more", cwd=place)
    assert "done: 30/30" in promof("design", "--run", "runs/more", *larger, cwd=place)  # now it is the run's


def test_what_a_filter_stops_is_not_charged_and_the_budget_is_spent_all_the_same(place):
    # the pores of these crystals scatter around 2.03 Å
    settings = ["rounds.sets=1", "rounds.lookahead=1", "evaluation.where=['pld_ang > 2.03']"]
    settings = [word for setting in settings for word in ("--set", setting)]
    said = promof("design", "--run", "runs/filtered", *QUICK, *settings, cwd=place)
    for budget in (24, 31):
        assert f"done: {budget}/{budget} evaluated" in said
        ledger = _ledger(place, "runs/filtered")
        assert (ledger["budget"], ledger["committed"], ledger["in_flight"]) == (budget, budget, 0)
        assert ledger["uncharged"] == ledger["outcomes"]["filtered"] > 4
        assert ledger["issued"] == ledger["committed"] + ledger["uncharged"]
        if budget == 24:
            said = promof("resume", "runs/filtered", "--raise-budget", 31, cwd=place)
    assert "ended before the potential and cost nothing" in (place / "runs/filtered/report/index.html").read_text()


def test_only_campaigns_can_be_given_a_larger_budget(tmp_path):
    run = new_run(tmp_path / "screen")
    run.provenance.write_text('{"kind": "screen"}')
    assert "larger budget" in promof("resume", run.path, "--raise-budget", 9, cwd=tmp_path, code=2)


def test_a_run_of_another_kind_or_configuration_is_refused(place):
    message = promof("design", "--run", "runs/one", *QUICK, "--set", "seed=5", cwd=place, code=2)
    assert "another configuration" in message
    message = promof("screen", "demo", "--run", "runs/one", cwd=place, code=2)
    assert "kind design" in message
    assert "--run" in message


def test_a_cap_on_proposals_ends_a_campaign_as_incomplete_with_its_reason(place):
    settings = ("--set", "strategy=tests.strategies:Rejected", "--set", "rounds.proposals_per_evaluation=1")
    said = promof("design", "--run", "runs/rejected", *QUICK, *settings, cwd=place, code=3)
    assert "cap on proposals" in said
    ledger = _ledger(place, "runs/rejected")
    assert (ledger["issued"], ledger["committed"]) == (0, 0)  # what the gate rejects is not charged
    said = promof("resume", "runs/rejected", cwd=place, code=3)
    assert "cap on proposals" in said


def test_failing_evaluations_count_and_are_never_tried_again(place):
    # a third of the groups is of a composition that this potential fails for
    settings = ("--set", "evaluation.potential.name=tests.potentials:SometimesNaN", "--set", "rounds.sets=3")
    promof("design", "--run", "runs/failing", *QUICK, *settings, cwd=place)
    for _ in range(2):
        ledger = _ledger(place, "runs/failing")
        assert (ledger["budget"], ledger["issued"], ledger["committed"]) == (24, 24, 24)
        assert (ledger["in_flight"], ledger["wasted"]) == (0, 0)
        assert ledger["outcomes"]["nan"] >= 4
        promof("resume", "runs/failing", cwd=place)


def test_a_strategy_that_cannot_be_built_leaves_nothing_behind(place):
    settings = ("--set", "strategy=tests.strategies:Unbuildable")
    assert "promof pretrain" in promof("design", "--run", "runs/none", *QUICK, *settings, cwd=place, code=2)
    assert not (place / "runs/none").exists()


def test_without_a_reference_set_the_command_that_makes_one_is_named(place):
    settings = ("--set", "reference=shipped", "--set", "reward.stability_weight=1")
    message = promof("design", "--run", "runs/none", *QUICK, *settings, cwd=place, code=2)
    assert "promof reference build" in message
    assert "lennard-jones" in message
    assert not (place / "runs/none").exists()


def test_a_dry_run_checks_everything_and_makes_nothing(place):
    said = promof("design", "--dry-run", "--run", "runs/dry", *QUICK, cwd=place)
    assert "24 evaluations" in said
    assert "pld_ang 6" in said
    assert not (place / "runs/dry").exists()
    settings = ("--set", "strategy=tests.strategies:Unbuildable")
    promof("design", "--dry-run", *QUICK, *settings, cwd=place, code=2)


def test_the_commented_configuration_is_the_default_one(place):
    said = promof("init", "design.yaml", "--design", cwd=place)
    assert "promof design design.yaml" in said
    assert load_config(DesignConfig, place / "design.yaml") == DesignConfig()
    assert "exists already" in promof("init", "design.yaml", "--design", cwd=place, code=1)


MISTAKES = """task:
  name: pore
  pld_ang: 6,0
budgett: 64
budget: 64
budget: 640
evaluation:
  potential:
    name: sevenet-0
  relax:
    fmax_ev_per_ang: 5e-2
    max_steps: -1
learning:
  learning_rate_chemist: 1e-4
  kk: 3
rounds:
\tassemblies: 16
"""


def test_every_mistake_of_a_configuration_is_listed_with_line_and_hint(place):
    (place / "wrong.yaml").write_text(MISTAKES)
    message = promof("design", "wrong.yaml", "--run", "runs/wrong", cwd=place, code=2)
    for words in (
        ("line 3", "task.pld_ang", "decimal point"), ("line 4", "budgett", "did you mean 'budget'"),
        ("line 6", "'budget' stands twice"), ("line 9", "did you mean 'sevennet-0'"),
        ("line 12", "evaluation.relax.max_steps"), ("line 15", "learning.kk"), ("line 17", "tab"),
    ):  # fmt: skip
        (line,) = [text for text in message.splitlines() if f"{words[0]}:" in text]
        assert all(word in line for word in words[1:]), line
    assert not (place / "runs/wrong").exists()
    assert "fmax" not in message  # 5e-2 is a number
    assert "learning_rate" not in message


@pytest.mark.parametrize(("settings", "words"), [
    (("learning.k=16", "strategy=promof"), ("learning.k is 16", "rounds.assemblies")),
    (("learning.k_final=20", "strategy=promof"), ("learning.k_final is 20",)),
    (("learning.k_sets=64", "strategy=promof"), ("learning.k_sets is 64", "rounds.sets")),
    (("budget=none",), ("a campaign needs a budget",)),
    (("strategy=genetc",), ("did you mean 'genetic'",)),
    (("task.name=co2",), ("co2 needs adsorption",)),
    (("evaluation.stages=read,relax,energy",), ("needs the stages pores",)),
    (("strategy=external",), ("needs `external`",)),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(place, settings, words):
    overrides = [word for setting in settings for word in ("--set", setting)]
    message = promof("design", "--run", "runs/wrong", *overrides, cwd=place, code=2)
    for word in words:
        assert word in message
    assert not (place / "runs/wrong").exists()


def test_two_configurations_are_one_too_many(place):
    (place / "a.yaml").write_text("budget: 3\n")
    message = promof("design", "a.yaml", "--config", "a.yaml", cwd=place, code=2)
    assert "Two configurations" in message


def test_changed_policies_or_libraries_are_refused(place):
    shutil.copytree(place / "runs/one", place / "runs/changed")
    run = RunDir(place / "runs/changed")
    record = run.provenance_record()
    record["libraries"]["nodes.h5"] = "0" * 64
    run.provenance.write_text(json.dumps(record))
    run.ended.unlink()
    message = promof("resume", "runs/changed", cwd=place, code=1)
    assert "nodes.h5" in message
    assert "put the old ones back" in message


def test_a_campaign_needs_no_checkout_as_its_working_folder(place, tmp_path):
    shutil.copytree(place / "runs/one", tmp_path / "moved")
    (tmp_path / "moved/ended.json").unlink()
    shutil.rmtree(tmp_path / "moved/rounds/00003/results")
    shutil.rmtree(tmp_path / "moved/checkpoints")
    (tmp_path / "moved/rounds/00003/results").mkdir()
    assert ROOT not in (tmp_path, *tmp_path.parents)
    assert "done: 24/24" in promof("resume", tmp_path / "moved", cwd=tmp_path)
