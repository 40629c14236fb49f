"""The campaign loop: an exact budget, exactly the promised policy, and the same decisions whatever dies when."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promof_hpc.design.campaign.issuing import cut_groups, issue, with_entry
from promof_hpc.design.campaign.learned import learned_rounds, read_learned
from promof_hpc.design.campaign.loop import Ending, Phase
from promof_hpc.design.campaign.proposal_shard import read_proposals
from promof_hpc.design.strategy import Proposal, Proposals
from promof_hpc.errors import PromofError, Refused
from promof_hpc.physics.evaluate import Unscorable
from promof_hpc.store.budget import fold
from promof_hpc.store.candidates import read_entries
from promof_hpc.store.run_dir import RunDir, raise_budget, read_round
from promof_hpc.store.shard import publish_text
from promof_hpc.store.verify import verify
from promof_hpc.structure import Structure
from tests.campaigns import Interrupted, a_third, campaign, small_design, what_was_decided
from tests.runs import crystal
from tests.strategies import Drift, Exhausted, Rejected, Repeating, dimer


def _run(path) -> RunDir:
    run = RunDir.create(path)
    publish_text(run.provenance, "{}")
    return run


def _pursue(path, config, strategy=Drift):
    run = _run(path)
    pursued = campaign(run, config, strategy(config))
    return run, pursued, pursued.pursue()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run, _, ending = _pursue(tmp_path_factory.mktemp("calm") / "run", small_design())
    assert ending is Ending.SPENT
    return what_was_decided(run)


def test_the_budget_is_spent_to_the_last_evaluation_and_not_beyond(tmp_path):
    run, _, ending = _pursue(tmp_path / "run", small_design())
    ledger = fold(run, 24)
    assert ending is Ending.SPENT
    assert (ledger.issued, ledger.committed, ledger.wasted) == (24, 24, 0)
    assert verify(run).sound
    assert learned_rounds(run) == run.round_numbers()


@settings(deadline=None, max_examples=6)
@given(budget=st.integers(1, 20), sets=st.integers(1, 4), assemblies=st.integers(1, 7), lookahead=st.integers(0, 2))
def test_any_round_size_spends_any_budget_exactly(tmp_path_factory, budget, sets, assemblies, lookahead):
    config = small_design(f"budget={budget}", f"rounds.sets={sets}", f"rounds.assemblies={assemblies}",
                          f"rounds.lookahead={lookahead}")  # fmt: skip
    run, pursued, ending = _pursue(tmp_path_factory.mktemp("any") / "run", config)
    assert ending is Ending.SPENT
    assert fold(run, budget).committed == budget
    assert pursued.room == 0


@pytest.mark.parametrize("dies_at", range(0, 14, 2))
def test_a_campaign_that_dies_anywhere_goes_on_as_if_nothing_had_been(tmp_path, undisturbed, dies_at):
    run, config = _run(tmp_path / "run"), small_design()
    with pytest.raises(Interrupted):
        campaign(run, config, Drift(config), dies_at=dies_at).pursue()
    assert campaign(run, config, Drift(config)).pursue() is Ending.SPENT
    assert what_was_decided(run) == undisturbed


def test_a_campaign_that_dies_at_every_step_ends_all_the_same(tmp_path, undisturbed):
    run, config = _run(tmp_path / "run"), small_design()
    for deaths in range(200):
        try:  # restoring takes a wait for every round that was learned; then each life takes up to three steps
            campaign(run, config, Drift(config), dies_at=len(learned_rounds(run)) + deaths % 4).pursue()
            break
        except Interrupted:
            continue
    assert deaths > 10
    assert what_was_decided(run) == undisturbed


@pytest.mark.parametrize("method", ["learn", "save", "load", "propose"])
def test_a_strategy_that_fails_in_the_middle_of_a_step_leaves_nothing_half_done(tmp_path, undisturbed, method):
    run, config = _run(tmp_path / "run"), small_design()

    class Failing(Drift):
        calls = 0

    def fail_at_first(self, *arguments):
        Failing.calls += 1
        result = getattr(Drift, method)(self, *arguments)
        if Failing.calls == (1 if method == "load" else 2):
            raise Interrupted
        return result

    setattr(Failing, method, fail_at_first)
    for _ in range(3):
        try:
            campaign(run, config, Failing(config), dies_at=9 if Failing.calls < 1 else None).pursue()
            break
        except Interrupted:
            continue
    assert what_was_decided(run) == undisturbed


def test_a_finished_campaign_does_nothing_when_it_is_pursued_again(tmp_path):
    run, config = _run(tmp_path / "run"), small_design()
    campaign(run, config, Drift(config)).pursue()
    stamps = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}
    phases = []
    again = campaign(run, config, Drift(config))
    again.hands = type(again.hands)(again.hands.wait, lambda phase, number: phases.append(phase))
    assert again.pursue() is Ending.SPENT
    assert phases == []
    assert stamps == {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()}


class Watching(Drift):
    """Notes how much it had learned whenever it proposed."""

    def __init__(self, config):
        super().__init__(config)
        self.noted = []

    def propose(self, asked):
        self.noted.append((asked.number, len(self.history)))
        return super().propose(asked)


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_a_round_is_proposed_by_exactly_the_policy_that_lookahead_says(tmp_path, lookahead):
    config = small_design(f"rounds.lookahead={lookahead}")
    strategy = Watching(config)
    campaign(_run(tmp_path / "run"), config, strategy).pursue()
    assert len(strategy.noted) >= 4
    assert strategy.noted == [(r, max(0, r - lookahead)) for r in range(len(strategy.noted))]


@pytest.mark.parametrize("dies_at", [5, 8])
def test_lookahead_survives_a_death(tmp_path, dies_at):
    config = small_design("rounds.lookahead=1")
    calm, _, _ = _pursue(tmp_path / "calm", config)
    run = _run(tmp_path / "run")
    with pytest.raises(Interrupted):
        campaign(run, config, Drift(config), dies_at=dies_at).pursue()
    campaign(run, config, Drift(config)).pursue()
    assert what_was_decided(run) == what_was_decided(calm)


class Asking(Drift):
    """Checks what it is told of the budget, which it would overspend if nobody cut it."""

    def propose(self, asked):
        assert asked.room == self._config.budget - asked.spent
        assert asked.room > 0
        proposals = super().propose(asked)
        passed = sum(not p.refusal for p in proposals.items)
        self.asked_for = getattr(self, "asked_for", 0) + passed
        return proposals


def test_room_is_what_is_left_and_a_strategy_that_asks_for_more_is_cut(tmp_path):
    config = small_design("budget=10")
    strategy = Asking(config)
    run = _run(tmp_path / "run")
    campaign(run, config, strategy).pursue()
    assert strategy.asked_for > 10
    assert fold(run, 10).issued == 10


def test_a_group_that_the_budget_cuts_is_evaluated_but_not_learned_from(tmp_path):
    config = small_design("budget=15", "rounds.sets=3")  # 12 proposals a round, every fifth refused
    seen = {}

    class Learning(Drift):
        def learn(self, asked, proposals, judged):
            seen[asked.number] = (proposals, judged)
            return super().learn(asked, proposals, judged)

    run, _, _ = _pursue(tmp_path / "run", config, Learning)
    last = max(seen)
    proposals, judged = seen[last]
    cut = cut_groups(proposals.items)
    assert cut
    for item, verdict in zip(proposals.items, judged, strict=True):
        assert np.isnan(verdict.reward) == (item.group in cut)
    record = read_learned(run, last)
    partial = [j.reward for p, j in zip(proposals.items, record.judged, strict=True) if p.group in cut and p.structure]
    assert partial
    assert np.isfinite(partial).all()  # judged for the report all the same
    assert record.used == tuple(p.group not in cut for p in proposals.items)


def test_rounds_without_any_candidate_are_learned_from_until_the_cap(tmp_path):
    config = small_design("budget=4", "rounds.proposals_per_evaluation=5")
    run, pursued, ending = _pursue(tmp_path / "run", config, Rejected)
    assert ending is Ending.PROPOSAL_CAP
    assert pursued.proposals == 24  # three rounds of 8: the first to reach 20 is the last
    assert learned_rounds(run) == [0, 1, 2]
    assert fold(run, 4).issued == 0
    assert read_learned(run, 0).signals["rounds_seen"] == 1


def test_a_strategy_with_nothing_left_ends_the_campaign(tmp_path):
    run, _, ending = _pursue(tmp_path / "run", small_design(), Exhausted)
    assert ending is Ending.NOTHING_LEFT
    assert fold(run, 24).committed < 24
    assert _pursue(tmp_path / "run", small_design(), Exhausted)[2] is Ending.NOTHING_LEFT


@settings(deadline=None, max_examples=12)
@given(budget=st.integers(1, 20), sets=st.integers(1, 3), assemblies=st.integers(1, 7), lookahead=st.integers(0, 2))
def test_what_a_filter_stops_is_given_back_and_exactly_the_budget_is_charged(
    tmp_path_factory, budget, sets, assemblies, lookahead
):
    config = small_design(f"budget={budget}", f"rounds.sets={sets}", f"rounds.assemblies={assemblies}",
                          f"rounds.lookahead={lookahead}")  # fmt: skip
    run = _run(tmp_path_factory.mktemp("filtered") / "run")
    assert campaign(run, config, Drift(config), filtered=a_third).pursue() is Ending.SPENT
    ledger = fold(run, budget)
    assert ledger.committed == budget
    assert ledger.issued == budget + ledger.uncharged
    assert learned_rounds(run) == run.round_numbers()


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_no_round_is_given_more_than_the_budget_leaves_by_the_rounds_that_it_may_know_of(tmp_path, lookahead):
    config = small_design(f"rounds.lookahead={lookahead}", "rounds.sets=1")
    run = _run(tmp_path / "run")
    campaign(run, config, Drift(config), filtered=a_third).pursue()
    issued = [[str(e) for e in read_round(run, n).arrays["evaluation_id"]] for n in run.round_numbers()]
    given_back = [sum(map(a_third, ids)) for ids in issued]
    assert sum(given_back) == fold(run, 24).uncharged > 4
    for number in run.round_numbers():
        facts = read_round(run, number).attrs
        rooms = [24 - sum(map(len, issued[:number])) + sum(given_back[:known]) for known in range(number + 1)]
        # without room, a round waits for one more to be learned from
        assert facts["room"] == next(room for room in rooms[max(0, number - lookahead) :] if room > 0)
        assert facts["spent"] == 24 - facts["room"]
        assert len(issued[number]) <= facts["room"]


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("dies_at", range(1, 24, 3))
def test_a_death_changes_nothing_of_what_is_given_back(tmp_path, lookahead, dies_at):
    config = small_design(f"rounds.lookahead={lookahead}")
    calm, run = _run(tmp_path / "calm"), _run(tmp_path / "run")
    campaign(calm, config, Drift(config), filtered=a_third).pursue()
    for moment in (dies_at, dies_at + 1, None):
        try:
            campaign(run, config, Drift(config), dies_at=moment, filtered=a_third).pursue()
        except Interrupted:
            continue
    assert what_was_decided(run) == what_was_decided(calm)
    assert fold(run, 24).committed == 24


def test_a_campaign_whose_evaluations_are_all_stopped_before_the_potential_ends_at_the_cap(tmp_path):
    config = small_design("budget=4", "rounds.proposals_per_evaluation=5")
    run = _run(tmp_path / "run")
    assert campaign(run, config, Drift(config), filtered=lambda e: True).pursue() is Ending.PROPOSAL_CAP
    assert fold(run, 4).committed == 0


def _raise(run, config, budget):
    """What `promof resume --raise-budget` does before the campaign goes on."""
    raise_budget(run, config.budget, budget, "now")
    return config.model_copy(update={"budget": budget})


@pytest.mark.parametrize("lookahead", [0, 1, 2])
@pytest.mark.parametrize("stopped_at", [None, 7])
def test_a_raised_budget_is_charged_exactly_and_no_death_or_lost_checkpoint_changes_a_round(
    tmp_path, lookahead, stopped_at
):
    config = small_design(f"rounds.lookahead={lookahead}")
    calm, run = _run(tmp_path / "calm"), _run(tmp_path / "run")
    for one in (calm, run):
        try:
            campaign(one, config, Drift(config), dies_at=stopped_at, filtered=a_third).pursue()
        except Interrupted:
            assert stopped_at is not None
    larger = _raise(calm, config, 37)
    assert campaign(calm, larger, Drift(config), filtered=a_third).pursue() is Ending.SPENT
    assert fold(calm, 37).committed == 37
    _raise(run, config, 37)
    for moment in (5, 9, 13, None):
        shutil.rmtree(run.checkpoints)  # everything is learned again, and no round is proposed before its time
        try:
            campaign(run, larger, Drift(config), dies_at=moment, filtered=a_third).pursue()
        except Interrupted:
            continue
    assert what_was_decided(run) == what_was_decided(calm)


def test_duplicates_take_the_earlier_result_and_cost_nothing(tmp_path):
    config = small_design("rounds.proposals_per_evaluation=1")
    seen = []

    class Learning(Repeating):
        def learn(self, asked, proposals, judged):
            seen.append((proposals, judged))
            return super().learn(asked, proposals, judged)

    run, _, ending = _pursue(tmp_path / "run", config, Learning)
    assert ending is Ending.PROPOSAL_CAP
    assert fold(run, 24).issued == 4  # four members, the same in both groups and in every round
    assert len(read_round(run, 1).arrays["evaluation_id"]) == 0
    (first, _), (second, judged) = seen[0], seen[1]
    for a, b, verdict in zip(first.items, second.items, judged, strict=True):
        assert (a.structure is None) == (b.structure is None)
        if b.structure is not None:
            assert a.structure.digest() == b.structure.digest()
            assert np.isfinite(verdict.reward)


def test_a_damaged_checkpoint_is_passed_over_said_and_nothing_changes(tmp_path, undisturbed):
    run, config = _run(tmp_path / "run"), small_design()
    with pytest.raises(Interrupted):
        campaign(run, config, Drift(config), dies_at=12).pursue()
    newest = max(run.checkpoints.iterdir())
    (newest / "state.json").write_text("[0.5, []]")
    told = []
    campaign(run, config, Drift(config), told=told).pursue()
    assert any(str(newest) in text and "damaged" in text for text in told)
    assert what_was_decided(run) == undisturbed


def test_without_any_checkpoint_everything_is_learned_again_and_nothing_evaluated_again(tmp_path, undisturbed):
    run, config = _run(tmp_path / "run"), small_design()
    with pytest.raises(Interrupted):
        campaign(run, config, Drift(config), dies_at=12).pursue()
    shutil.rmtree(run.checkpoints)
    results = {p: p.stat().st_mtime_ns for p in run.rounds.rglob("results/*.h5")}
    campaign(run, config, Drift(config)).pursue()
    assert what_was_decided(run) == undisturbed
    assert results.items() <= {p: p.stat().st_mtime_ns for p in run.rounds.rglob("results/*.h5")}.items()


def test_the_scorer_remembers_what_was_judged_before_a_restart(tmp_path):
    run, config = _run(tmp_path / "run"), small_design()
    with pytest.raises(Interrupted):
        campaign(run, config, Drift(config), dies_at=9).pursue()
    before = len(learned_rounds(run))
    again = campaign(run, config, Drift(config), dies_at=before)
    with pytest.raises(Interrupted):
        again.pursue()
    assert len(again.scorer.remembered) == before > 0


def test_a_removed_result_of_an_old_round_is_asked_for_again(tmp_path):
    run, config = _run(tmp_path / "run"), small_design()
    campaign(run, config, Drift(config)).pursue()
    run.result("00000-00000").unlink()
    campaign(run, config, Drift(config)).pursue()
    assert verify(run).sound  # the seal stands: the repeated batch says the same
    assert verify(run).redo == []


def test_missing_rounds_are_an_error_with_a_remedy(tmp_path):
    run, config = _run(tmp_path / "run"), small_design()
    campaign(run, config, Drift(config)).pursue()
    shutil.rmtree(run.round(1))
    with pytest.raises(PromofError, match="restore the missing folder"):
        campaign(run, config, Drift(config))
    for number in run.round_numbers():
        shutil.rmtree(run.round(number))
    with pytest.raises(PromofError, match="has a checkpoint of"):
        campaign(run, config, Drift(config)).pursue()


def test_phases_come_in_order_for_every_round(tmp_path):
    run, config = _run(tmp_path / "run"), small_design()
    seen = []
    pursued = campaign(run, config, Drift(config))
    pursued.hands = type(pursued.hands)(pursued.hands.wait, lambda phase, number: seen.append((number, phase)))
    pursued.pursue()
    assert seen == [(n, phase) for n in run.round_numbers() for phase in (Phase.PROPOSE, Phase.EVALUATE, Phase.LEARN)]


def _items(groups):
    """Proposals of groups that are lists of kinds; equal kinds are equal structures."""
    return [
        Proposal(f"p{g}-{k}", g, 0, "", crystal(kind, 3))
        for g, kinds in enumerate(groups)
        for k, kind in enumerate(kinds)
    ]


def _identify(structure: Structure) -> str:
    return structure.digest()[:16]


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=5),
    before=st.lists(st.integers(0, 9), max_size=4),
    room=st.integers(0, 12),
)
def test_issuing_keeps_to_the_room_and_cuts_at_most_one_group_in_the_middle(groups, before, room):
    items = _items(groups)
    earlier = {e.evaluation_id for e in issue(_items([before]), _identify, set(), 99).entries}
    issued = issue(items, _identify, earlier, room)
    fresh = {c.evaluation_id for c in issued.candidates}
    assert len(issued.candidates) == len(fresh) <= room
    assert not fresh & earlier
    wanted = {e.evaluation_id for e in issue(items, _identify, earlier, 99).entries} - earlier
    assert len(fresh) == min(room, len(wanted))  # nothing is left over while somebody still wants it
    assert len(issued.entries) == len(items)
    after = [with_entry(item, entry, None) for item, entry in zip(items, issued.entries, strict=True)]
    cut = cut_groups(after)
    whole = {e.evaluation_id for i, e in zip(items, issued.entries, strict=True) if i.group not in cut}
    first_to_ask = {}
    for item, entry in zip(items, issued.entries, strict=True):
        first_to_ask.setdefault(entry.evaluation_id, item.group)
    assert len({first_to_ask[key] for key in fresh - whole}) <= 1
    for item, entry in zip(items, issued.entries, strict=True):
        assert bool(entry.evaluation_id) != bool(entry.refusal)
        if entry.refusal:
            assert (entry.refusal, item.group in cut) == ("over_budget", True)


def test_whole_groups_go_before_a_partial_one():
    issued = issue(_items([[0, 1, 2, 3], [4, 5]]), _identify, set(), 3)
    refusals = [e.refusal for e in issued.entries]
    assert refusals == ["", "over_budget", "over_budget", "over_budget", "", ""]


def test_what_the_potential_cannot_score_is_refused_before_it_costs_anything():
    def identify(structure):
        if 18 in structure.numbers:
            raise Refused(Unscorable.UNSUPPORTED_ELEMENT, "not trained on Ar")
        return _identify(structure)

    bad = Structure(np.array([10], np.int32), np.array([[np.nan, 0, 0]]), np.eye(3) * 5)
    items = [
        Proposal("a", 0, 0, "", dimer(1)), Proposal("b", 0, 0, "", bad), Proposal("c", 0, 0, "", None),
        Proposal("d", 0, 0, "", dimer(0)),
    ]  # fmt: skip
    issued = issue(items, identify, set(), 9)
    assert [e.refusal for e in issued.entries] == ["unsupported_element", "not_a_number", "no_structure", ""]
    assert len(issued.candidates) == 1


def test_two_proposals_of_one_name_are_the_strategys_fault_and_said_so():
    twice = [Proposal("same", 0, 0, "", dimer(0)), Proposal("same", 0, 0, "", dimer(1))]
    with pytest.raises(PromofError, match="'same'"):
        issue(twice, _identify, set(), 9)


def test_what_the_strategy_learns_from_is_what_it_proposed(tmp_path):
    given_back = {}

    class Learning(Drift):
        def propose(self, asked):
            given_back[asked.number] = super().propose(asked)
            return given_back[asked.number]

        def learn(self, asked, proposals, judged):
            sent = given_back[asked.number]
            assert isinstance(proposals, Proposals)
            for name, column in sent.trace.items():
                assert np.array_equal(np.asarray(column), np.asarray(proposals.trace[name]))
            assert [p.name for p in proposals.items] == [p.name for p in sent.items]
            assert [p.gate_score for p in proposals.items] == [p.gate_score for p in sent.items]
            return super().learn(asked, proposals, judged)

    run, pursued, _ = _pursue(tmp_path / "run", small_design(), Learning)
    shard = read_round(run, 0)
    items = read_proposals(shard, pursued.evaluated.structure).items
    assert [i.name for i in items] == [e.name for e in read_entries(shard)]
