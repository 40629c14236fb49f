"""The second opinion: who is asked about, what counts as stable, what is said where there is nothing to say."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hpc.cluster.site import load_site
from hpc.cluster.wanted import wanted_jobs
from hpc.kinds import is_done, is_evaluated
from hpc.preemption import Asked, Interrupted, Parting
from hpc.second_opinion import ask as ask_in_children
from hpc.training.job import Place, train
from promof_hpc.config import DesignConfig, Stage, dump_config, load_config
from promof_hpc.design.campaign.learned import LearnedRound, publish_learned, read_learned, success_ids
from promof_hpc.design.judging.reward import GATES, stability_checks
from promof_hpc.design.judging.second_opinion import (
    SecondOpinion,
    count_stable,
    identity,
    not_asked_about,
    opinion_shard,
    read_second_opinion,
    require_another,
    require_same,
)
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.physics.energies import ReferenceSet
from promof_hpc.physics.evaluate import evaluate
from promof_hpc.physics.lennard_jones import LennardJones
from promof_hpc.store.budget import fold
from promof_hpc.store.run_dir import Ended, RunDir, end, how_ended
from promof_hpc.store.schema import Outcome, Row
from promof_hpc.store.shard import publish_text, write_shard
from promof_hpc.store.verify import verify
from tests.campaigns import QuickScorer, campaign, lenient_reference, small_design
from tests.potentials import TheSame, Wide, Wider, WideWithoutNeon
from tests.strategies import Repeating

SECOND = "second_opinion=tests.potentials:Wide"


class SuccessfulScorer(QuickScorer):
    """Calls a success what is of neon."""

    def judge(self, asked, proposals, evaluations):
        judged = super().judge(asked, proposals, evaluations)
        good = [e is not None and set(e.structure.numbers) == {10} for e in evaluations]
        return [replace(j, success=g) for j, g in zip(judged, good, strict=True)]


@pytest.fixture
def ended(tmp_path):
    """A campaign that proposed one neon crystal, among others, in two groups of each of many rounds."""
    run = RunDir.create(tmp_path / "run")
    publish_text(run.provenance, '{"kind": "design"}')
    config = small_design(SECOND, "rounds.proposals_per_evaluation=1")
    pursued = campaign(run, config, Repeating(config))
    pursued.scorer = SuccessfulScorer()
    pursued.pursue()
    return run, config


def ask(run, config, potential):
    made_with = identity(potential, config.second_evaluation)
    run.make_opinions()
    for evaluation in evaluate(not_asked_about(run), config.second_evaluation, potential):
        write_shard(run.opinion(evaluation.row.evaluation_id), opinion_shard(evaluation, made_with))


def test_each_success_is_asked_about_once_with_its_relaxed_structure_and_nothing_is_charged(ended):
    run, config = ended
    proposed = sum(j.success for n in run.round_numbers() for j in read_learned(run, n).judged)
    (key,) = success_ids(run)
    assert proposed > 2
    (candidate,) = not_asked_about(run)
    assert candidate.evaluation_id == key
    before = fold(run, 24)
    ask(run, config, Wide())
    assert fold(run, 24) == before
    assert not_asked_about(run) == []
    opinion = read_second_opinion(run, config.second_opinion)
    assert (opinion.successes, opinion.asked, opinion.stable, opinion.percent) == (1, 1, 1, 100.0)
    assert (opinion.potential, opinion.weights_sha256) == ("lennard-jones-wide", Wide().weights_sha256)
    assert not opinion.energy_judged
    assert opinion.complete


def test_an_ended_campaign_is_done_only_when_all_is_said_and_until_then_wants_ranks_alone(ended, monkeypatch):
    run, config = ended
    publish_text(run.config, dump_config(config))
    assert [one.what for one in wanted_jobs(run, config, load_site("generic"), "design")] == ["train", "evaluate"]
    end(run, Ended("SPENT", "the budget is spent"))
    assert is_evaluated(run)
    assert not is_done(run)
    for layout in ("split", "one_job"):
        site = load_site("generic").model_copy(update={"layout": layout})
        assert [one.what for one in wanted_jobs(run, config, site, "design")] == ["evaluate"]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    requests = SimpleNamespace(asked=Asked.NOTHING)
    assert train(run, config, requests, Place()) == Parting()
    assert how_ended(run) is not None
    ask(run, config, Wide())
    assert is_done(run)


def test_who_asks_heeds_a_signal_and_what_was_said_stays(ended):
    run, config = ended
    publish_text(run.config, dump_config(config))

    def heed():
        raise Interrupted(Asked.REQUEUE)

    with pytest.raises(Interrupted):
        ask_in_children(run, 1, lambda done, total: None, heed)
    assert run.opinions_given() == []


def test_another_lennard_jones_contradicts_where_it_moves_the_cell_by_more_than_the_gate_allows(ended):
    run, config = ended
    ask(run, config, Wider())
    opinion = read_second_opinion(run, config.second_opinion)
    assert (opinion.asked, opinion.stable, opinion.percent) == (1, 0, 0.0)


def test_what_the_second_potential_cannot_score_is_no_agreement_and_is_told(ended):
    run, config = ended
    ask(run, config, WideWithoutNeon())
    opinion = read_second_opinion(run, config.second_opinion)
    assert (opinion.asked, opinion.stable, opinion.unscorable) == (1, 0, 1)
    assert "1 cannot be scored by it" in opinion.in_words()


def test_it_is_asked_with_the_relaxation_of_the_campaign_and_without_its_filters():
    config = small_design(SECOND, "evaluation.where=['density_g_per_cm3 > 9']", "evaluation.relax.max_steps=7")
    asked = config.second_evaluation
    assert asked.relax == config.evaluation.relax
    assert asked.where == ()
    assert asked.stages == (Stage.READ, Stage.RELAX, Stage.ENERGY)
    assert asked.potential.name == "tests.potentials:Wide"


def test_opinions_of_other_weights_are_never_mixed(ended):
    run, config = ended
    ask(run, config, Wide())
    require_same(run, identity(Wide(), config.second_evaluation))
    with pytest.raises(PromofError, match="never mixed") as refusal:
        require_same(run, identity(Wider(), config.second_evaluation))
    assert str(run.opinions) in str(refusal.value)


def test_a_damaged_opinion_is_found_by_verify(ended):
    run, config = ended
    ask(run, config, Wide())
    assert verify(run).sound
    path = run.opinion(*run.opinions_given())
    path.write_bytes(path.read_bytes()[:-200])
    (finding,) = verify(run).findings
    assert finding.path == str(path)


GOOD = Row(
    "a", Outcome.CONVERGED, formula="Ne2", atoms=2, energy_ev_per_atom=0.0, fmax_ev_per_ang=0.04, volume_change=0.05,
    bonds_broken=0,
)  # fmt: skip


@pytest.mark.parametrize(("change", "gate"), [
    ({}, ""),
    ({"outcome": Outcome.MAX_STEPS, "fmax_ev_per_ang": 0.09}, ""),
    ({"outcome": Outcome.MAX_STEPS, "fmax_ev_per_ang": 0.11}, "relaxed"),
    ({"outcome": Outcome.EXPLODED, "fmax_ev_per_ang": math.nan}, "relaxed"),
    ({"outcome": Outcome.CRASHED, "fmax_ev_per_ang": math.nan, "volume_change": math.nan}, "relaxed"),
    ({"bonds_broken": 1}, "bonded"),
    ({"volume_change": -0.21}, "volume"),
    ({"volume_change": math.nan}, "volume"),
])  # fmt: skip
def test_the_gates_are_those_of_the_campaign(change, gate):
    row = replace(GOOD, **change)
    assert count_stable([row, GOOD], None) == (1 if gate else 2)
    checks = stability_checks(row)
    assert tuple(checks) == GATES[1:-1]
    assert not gate or not checks[gate]


def test_energies_are_judged_only_where_there_is_a_reference_set(tmp_path):
    reference = ReferenceSet.from_json(lenient_reference(tmp_path / "r.json").read_text())
    high = replace(GOOD, energy_ev_per_atom=50.0)
    unknown = replace(GOOD, formula="Xe2")
    assert count_stable([GOOD, high, unknown], None) == 3
    assert count_stable([GOOD, high, unknown], reference) == 1
    assert math.isnan(high.e_rel_ev_per_atom)  # what is counted is left as it was


def test_without_successes_it_says_so_and_divides_nothing(tmp_path):
    run = RunDir.create(tmp_path / "run")
    opinion = read_second_opinion(run, "chgnet-0.3.0")
    assert opinion == SecondOpinion("chgnet-0.3.0")
    assert opinion.complete
    assert math.isnan(opinion.percent)
    assert json.dumps(opinion.as_dict(), allow_nan=False)
    assert opinion.in_words() == "second opinion of chgnet-0.3.0: no successes to ask about"
    assert read_second_opinion(run, None) is None


def test_words_tell_how_far_it_is():
    assert SecondOpinion("x", successes=3).in_words() == "second opinion of x: 3 successes not asked about yet"
    half = SecondOpinion("x", "w", successes=5, asked=4, stable=2, unscorable=1)
    assert half.in_words() == (
        "second opinion of x: 2 of 4 successes stable too (50 %), 1 cannot be scored by it, 1 not asked about yet"
    )


def test_a_round_without_successes_needs_no_candidates_to_be_read(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.make_round(0)
    publish_text(run.candidates(0), "not a shard")
    publish_learned(run, LearnedRound(0, (), (), (), {}))
    assert success_ids(run) == []


def test_the_same_potential_is_no_second_one():
    with pytest.raises(UsageError, match="repeat"):
        require_another(TheSame(), LennardJones())
    require_another(Wide(), LennardJones())


@pytest.mark.parametrize(("settings", "words"), [
    (("second_opinion=chgnet-0.3",), ("unknown potential 'chgnet-0.3'", "did you mean 'chgnet-0.3.0'", "sevennet-0")),
    (("second_opinion=sevennet-0",), ("second_opinion is sevennet-0", "the potential of the campaign itself")),
    (("second_opinion=uma", "evaluation.potential.task=odac"), ("no trained stress",)),
])  # fmt: skip
def test_a_second_opinion_that_cannot_be_one_is_refused_with_the_configuration(settings, words):
    with pytest.raises(UsageError) as refusal:
        load_config(DesignConfig, None, settings)
    assert all(word in str(refusal.value) for word in words)


def test_a_campaign_may_do_without():
    config = load_config(DesignConfig, None, ["second_opinion=none"])
    assert config.second_opinion is None
    with pytest.raises(ValueError, match="no second opinion"):
        _ = config.second_evaluation
