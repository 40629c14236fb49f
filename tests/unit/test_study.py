import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from promof_hpc.config.reading import load_config
from promof_hpc.config.study import StudyConfig, slug
from promof_hpc.design.comparing.study import RunFigures, paired_permutation, spread, table
from promof_hpc.errors import UsageError
from promof_hpc.report.comparison import Study, as_json, html, interval, markdown

ROOT = Path(__file__).parents[2]
STUDY = """
design:
  budget: 64
  rounds: {assemblies: 8, sets: 2, targets: 1}
strategies:
  - {name: promof, label: "PRO-MOF, Pass@3"}
  - name: promof
    label: Pass@1
    set: {learning.k: 1, learning: {credit: mean}}
  - name: random
tasks:
  - {name: pore, pld_ang: 5.0}
  - {name: energy}
seeds: 2
"""


def study(tmp_path: Path, *overrides: str) -> StudyConfig:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return load_config(StudyConfig, path, overrides)


def test_a_study_is_every_strategy_at_every_task_and_seed_with_its_own_settings(tmp_path: Path):
    runs = study(tmp_path).runs()
    assert len({r.name for r in runs}) == len(runs) == 3 * 2 * 2
    assert {(r.config.learning.k, r.config.learning.credit) for r in runs if r.strategy == "Pass@1"} == {(1, "mean")}
    assert {r.config.learning.k for r in runs if r.strategy != "Pass@1"} == {3}
    assert [r.seed for r in runs] == sorted(r.seed for r in runs)  # a study that was cut short still compares


def test_everything_that_makes_a_comparison_fair_is_the_same_in_all_runs(tmp_path: Path):
    for key in ("budget", "evaluation", "reference", "farm"):
        assert len({str(getattr(r.config, key)) for r in study(tmp_path).runs()}) == 1


@pytest.mark.parametrize("key", ["budget", "evaluation.relax.max_steps", "reference", "task", "seed", "strategy"])
def test_a_strategy_that_wants_to_be_judged_otherwise_is_refused(tmp_path: Path, key: str):
    with pytest.raises(UsageError, match=r"strategy 'random' .*design\.") as refusal:
        study(tmp_path, f"strategies=[{{name: random, set: {{{key}: 5}}}}]")
    assert ("budget of its own" in str(refusal.value)) == (key == "budget")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("strategies=[{name: randm}]", "did you mean 'random'"),
        ("strategies=[{name: random, set: {learning.q: 5}}]", r"strategy 'random': learning\.q"),
        ("strategies=[{name: promof, set: {rounds.assemblies: 3}}]", r"learning\.k is 3.*3 assemblies"),
        ("strategies=[{name: random}, {name: Random}]", "several strategies are called 'Random'"),
        ("strategies=[]", "at least 1"),
        ("tasks=[{name: energy}, {name: energy}]", "stands twice in tasks"),
        ("seeds=[1, 1]", "stands twice in seeds"),
        ("seeds=0", "at least 1"),
    ],
)
def test_a_study_that_cannot_be_run_says_why(tmp_path: Path, override: str, told: str):
    with pytest.raises(UsageError, match=told):
        study(tmp_path, override)


@settings(deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=9))
def test_the_permutation_test_is_that_of_scipy(differences: list[int]):
    d = np.array(differences, float)

    def statistic(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.abs(np.sum(x, axis=axis))

    exact = stats.permutation_test(
        (d,), statistic, permutation_type="samples", n_resamples=np.inf, alternative="greater", vectorized=True
    )
    assert paired_permutation(differences) == pytest.approx(float(exact.pvalue), abs=1e-9)


def test_many_pairs_are_tested_by_drawing_signs_close_to_the_normal_limit():
    d = np.random.default_rng(0).normal(0.3, 1.0, 40)
    z = abs(d.sum()) / math.sqrt((d**2).sum())
    assert paired_permutation(d.tolist()) == pytest.approx(2 * stats.norm.sf(z), abs=0.02)


def test_pairs_that_are_missing_or_equal_say_nothing():
    assert math.isnan(paired_permutation([]))
    assert math.isnan(paired_permutation([math.nan]))
    assert paired_permutation([0.0, 0.0]) == 1.0
    assert paired_permutation([1.0, math.nan, 0.0, 1.0]) == paired_permutation([1.0, 1.0])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 12))
def test_the_bootstrap_interval_is_that_of_scipy(seed: int, count: int):
    values = np.random.default_rng(seed).normal(3, 2, count)
    ours = spread(values.tolist(), 20_000)
    # of few values the distribution has few steps, so places in it are compared and not the ends themselves
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).bootstrap_distribution
    assert ours.mean == pytest.approx(values.mean())
    for end, below in ((ours.low, 0.025), (ours.high, 0.975)):
        rounding = 1e-9 * abs(end)
        assert np.mean(theirs < end - rounding) - 0.006 <= below <= np.mean(theirs <= end + rounding) + 0.006


def test_one_seed_has_no_interval_and_missing_figures_are_left_out():
    assert interval(spread([2.0]), 1) == "2.0"
    assert interval(spread([math.nan]), 1) == "–"
    assert spread([1.0, math.nan, 3.0]).mean == 2.0


def figures(strategy: str, seed: int, success: float) -> RunFigures:
    return RunFigures(
        strategy=strategy, task="pore 6 ± 0.2 Å", seed=seed, path=f"pore/{slug(strategy)}/seed-{seed:04d}",
        finished=True, evaluations=64, proposals=90, gates={"gate": 64, "target": 3}, success_percent=success,
        stable_percent=20.0, gate_pass_percent=70.0, top1=6.1, top1_error=0.1, diversity=0.5,
        success_diversity=math.nan, materials=2, force_calls=640.0, wall_s=12.0, config_sha256="c" * 64,
        weights_sha256="w" * 64, policy_sha256="p" * 64, successes=("e1", "e2"), best="e1",
    )  # fmt: skip


@pytest.fixture
def runs() -> list[RunFigures]:
    better = [figures("promof", s, 10.0 + s) for s in range(6)]
    worse = [figures("<b>rand|om</b>", s, 2.0 + 1.1 * s) for s in range(6)]
    return [run for pair in zip(better, worse, strict=True) for run in pair]


def test_the_table_tests_every_strategy_against_the_first_by_pairs_of_seeds(runs: list[RunFigures]):
    first, second = table(runs)
    assert first.spreads["success_percent"].mean == 12.5
    assert math.isnan(first.p_values["success_percent"])
    # six differences of one sign: 2 of 2^6 assignments are as extreme
    assert second.p_values["success_percent"] == pytest.approx(2 / 64)
    assert math.isnan(second.p_values["success_diversity"])
    assert second.gates == {"gate": 6 * 64, "target": 18}


def test_the_second_opinion_is_a_mean_over_the_runs_that_have_successes(runs: list[RunFigures]):
    asked = [
        replace(r, second_opinion="chgnet-0.3.0", second_opinion_percent=p)
        for r, p in zip(runs[:3], (50, 70, math.nan), strict=True)
    ]
    heading = "| 2nd opinion, % |"
    made = Study("A study", table([replace(r, strategy="promof", seed=k) for k, r in enumerate(asked)]), 3, 64, "")
    assert heading in markdown(made)
    assert "| 60 [50, 70] |" in markdown(made)
    hopeless = [replace(r, successes=(), second_opinion_percent=math.nan) for r in asked]
    assert "| no successes to ask about |" in markdown(replace(made, lines=table(hopeless)))
    assert "no successes" not in markdown(replace(made, lines=table(runs)))  # nobody was asked for an opinion


def test_only_runs_of_equal_seed_are_pairs(runs: list[RunFigures]):
    lonely = [r for r in runs if r.strategy == "promof" or r.seed < 3]
    assert table(lonely)[1].p_values["success_percent"] == pytest.approx(2 / 8)


def test_every_figure_can_be_traced_to_runs_digests_and_evaluations(runs: list[RunFigures]):
    made = Study("A study", table(runs), 12, 64, "promof compare study.yaml")
    content = json.loads(as_json(made))
    traced = [run for line in content["lines"] for run in line["runs"]]
    assert {r["path"] for r in traced} == {r.path for r in runs}
    assert all(r["config_sha256"] and r["weights_sha256"] and r["successes"] == ["e1", "e2"] for r in traced)
    assert traced[0]["success_diversity"] is None  # JSON has no NaN
    text = markdown(made)
    assert all(r.path in text for r in runs)
    assert "12 of 12 runs finished" in text


def test_tables_keep_their_columns_and_pages_their_markup_whatever_a_label_holds(runs: list[RunFigures]):
    made = Study("A <study>", table(runs), 12, 64, "promof compare study.yaml")
    rows = [line for line in markdown(made).splitlines() if line.startswith("| ")]
    for _, lines in itertools.groupby(rows, key=lambda line: len(line.replace("\\|", "").split("|"))):
        assert len(list(lines)) > 1
    page = html(made)
    assert "<b>rand" not in page
    assert "A &lt;study&gt;" in page
    assert page.count("<svg") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "promof_hpc" / "configs").glob("study-*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_study_can_be_read_and_names_runs(path: Path):
    runs = load_config(StudyConfig, path).runs()
    assert len(runs) >= 8
    assert f"promof compare promof_hpc/configs/{path.name}" in path.read_text()
