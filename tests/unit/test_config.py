"""Configuration: what YAML surprises with is read as meant or refused with line, key and hint."""

import pytest

from promof_hpc.config import EvaluationSettings, ScreenConfig, Threshold, commented, dump_config, load_config
from promof_hpc.errors import UsageError


def _load(tmp_path, text, overrides=()):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(ScreenConfig, path, overrides)


def test_the_commented_file_is_the_default_configuration(tmp_path):
    assert _load(tmp_path, commented(ScreenConfig)) == ScreenConfig()


def test_a_dumped_configuration_is_read_back_equal(tmp_path):
    config = load_config(ScreenConfig, None, ["evaluation.where=[pld_ang > 3.3, atoms < 200]", "budget=7"])
    assert _load(tmp_path, dump_config(config)) == config


def test_every_key_has_a_comment():
    for line in commented(ScreenConfig).splitlines():
        key = line.strip()
        if not key.startswith("#"):
            previous = commented(ScreenConfig).splitlines()[commented(ScreenConfig).splitlines().index(line) - 1]
            assert previous.strip().startswith("#"), f"{key} has no comment"


def test_all_mistakes_are_listed_at_once_with_line_and_hint(tmp_path):
    text = """library: demo
budgett: 64
farm:
  ranks: -2
evaluation:
  potential:
    name: sevenet-0
  relax:
    fmax_ev_per_ang: 0,05
    max_steps: -3
"""
    with pytest.raises(UsageError) as raised:
        _load(tmp_path, text)
    message = str(raised.value)
    assert "5 mistakes" in message
    assert "line 2" in message
    assert "did you mean 'budget'" in message
    assert "line 4" in message
    assert "did you mean 'sevennet-0'" in message
    assert "decimal point" in message
    assert "line 10" in message
    assert raised.value.exit_code == 2


def test_duplicate_key_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"line 2: 'budget' stands twice \(first on line 1\)"):
        _load(tmp_path, "budget: 3\nbudget: 4\n")


def test_tab_is_named(tmp_path):
    with pytest.raises(UsageError, match="line 2: a tab"):
        _load(tmp_path, "farm:\n\tranks: 2\n")


@pytest.mark.parametrize(("written", "value"), [("1e-4", 1e-4), ("5e-2", 5e-2), ("0.05", 0.05), (".5", 0.5)])
def test_numbers_of_every_spelling(tmp_path, written, value):
    config = _load(tmp_path, f"evaluation:\n  relax:\n    fmax_ev_per_ang: {written}\n")
    assert config.evaluation.relax.fmax_ev_per_ang == pytest.approx(value)


@pytest.mark.parametrize("word", ["NO", "0123", "12:30:00", "1e3"])
def test_text_stays_text(tmp_path, word):
    assert _load(tmp_path, f"library: {word}\n").library == word


def test_sexagesimal_is_not_a_number(tmp_path):
    with pytest.raises(UsageError, match=r"farm\.hang_s"):
        _load(tmp_path, "farm:\n  hang_s: 12:30:00\n")


def test_set_overrides_the_file_and_reports_its_own_mistakes(tmp_path):
    assert _load(tmp_path, "budget: 3\n", ["budget=9"]).budget == 9
    with pytest.raises(UsageError, match="did you mean 'max_steps'"):
        _load(tmp_path, "", ["evaluation.relax.max_step=9"])
    with pytest.raises(UsageError, match="key=value"):
        _load(tmp_path, "", ["budget"])


def test_gate_on_a_column_that_comes_too_late_is_refused():
    with pytest.raises(ValueError, match="known before relaxation"):
        Threshold.model_validate("e_rel_ev_per_atom < 0.1")
    with pytest.raises(ValueError, match="needs stage 'pores'"):
        EvaluationSettings(stages="read,relax", where=("pld_ang > 3",))


@pytest.mark.parametrize(("gate", "value", "holds"), [
    ("pld_ang > 3.3", 3.4, True), ("pld_ang > 3.3", 3.3, False), ("pld_ang >= 3.3", 3.3, True),
    ("atoms != 5", 5, False), ("pld_ang < 1", float("nan"), False),
])  # fmt: skip
def test_gate_holds(gate, value, holds):
    assert Threshold.model_validate(gate).holds(value) is holds


def test_digest_ignores_where_it_runs_and_follows_what_it_computes(tmp_path):
    base = ScreenConfig()
    moved = load_config(ScreenConfig, None, ["evaluation.potential.device=cuda", "farm.ranks=8"])
    other = load_config(ScreenConfig, None, ["evaluation.relax.max_steps=299"])
    assert base.evaluation.digest() == moved.evaluation.digest()
    assert base.evaluation.digest() != other.evaluation.digest()


def test_uma_head_without_trained_stress_cannot_relax_the_cell():
    with pytest.raises(UsageError, match="no trained stress"):
        load_config(ScreenConfig, None, ["evaluation.potential.name=uma", "evaluation.potential.task=odac"])
    load_config(ScreenConfig, None, ["evaluation.potential.name=uma", "evaluation.potential.task=odac",
                                     "evaluation.relax.cell=fixed"])  # fmt: skip
