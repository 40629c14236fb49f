"""Processes that learn together: whose rows are whose, and that a team learns what one process learns."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from promof_hpc.config import DesignConfig, TrainingSettings
from promof_hpc.design.learning.engine import AdamEngine
from promof_hpc.design.learning.team import ALONE, Alone, in_turn, own_rows
from promof_hpc.design.registry import build
from promof_hpc.design.strategies.promof import Promof
from promof_hpc.design.strategy import Judged
from promof_hpc.errors import UsageError
from promof_hpc.store.shard import Shard
from tests.unit.test_promof import ASKED, config, round_of  # noqa: F401  (fixtures)


class Meeting:
    """Where the threads of a test meet, each as if it were a process."""

    def __init__(self, size: int):
        self.size = size
        self._barrier = threading.Barrier(size, timeout=60)
        self._parts: list[object] = [None] * size

    def gather(self, rank: int, part: object) -> list[object]:
        self._parts[rank] = part
        self._barrier.wait()
        parts = list(self._parts)
        self._barrier.wait()
        return parts


class Member:
    """One of the threads; its engine adds up the gradients of all before it steps."""

    device = torch.device("cpu")

    def __init__(self, meeting: Meeting, rank: int):
        self._meeting, self.rank, self.size = meeting, rank, meeting.size

    def gather(self, part):
        return self._meeting.gather(self.rank, part)

    def engine(self, name, network, learning_rate, gradient_norm):
        return _Summed(self, name, network, learning_rate, gradient_norm)


class _Summed(AdamEngine):
    def __init__(self, member: Member, name: str, network: nn.Module, learning_rate: float, gradient_norm: float):
        super().__init__(name, network, learning_rate, gradient_norm)
        self._member, self._parameters = member, list(network.parameters())

    def step(self, losses):
        pieces = 0
        self._optimiser.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
            pieces += 1
        assert len(set(self._member.gather(pieces))) == 1  # or processes that meet in backward passes would hang
        summed = self._member.gather([None if p.grad is None else p.grad.clone() for p in self._parameters])
        for p, *grads in zip(self._parameters, *summed, strict=True):
            p.grad = None if grads[0] is None else torch.stack(grads).sum(0)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._gradient_norm)
        self._optimiser.step()
        return float(norm)


def together(size: int, work: Callable[[Member], object]) -> list[object]:
    """What `work` returns in each of `size` threads."""
    meeting, results = Meeting(size), {}

    def run(rank: int) -> None:
        results[rank] = work(Member(meeting, rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(size)]


class _Place:
    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


@given(st.integers(1, 40), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 9)))
def test_every_row_counts_once_and_all_processes_have_pieces_of_the_same_lengths(count, size, at_once):
    shares = [list(own_rows(count, _Place(rank, size), at_once)) for rank in range(size)]
    counted = [k for share in shares for rows in share for k, yes in zip(rows.index, rows.counted, strict=True) if yes]
    assert sorted(counted) == list(range(count))
    assert len({tuple(len(rows.index) for rows in share) for share in shares}) == 1
    assert all(len(rows.index) <= (at_once or count) for share in shares for rows in share)
    assert all(0 <= k < count for share in shares for rows in share for k in rows.index)


def test_items_are_taken_in_turn():
    assert [in_turn("abcdefg", _Place(r, 3)) for r in range(3)] == [list("adg"), list("be"), list("cf")]


@pytest.fixture(scope="module")
def alone(config, round_of):  # noqa: F811
    strategy = Promof(config)
    signals = strategy.learn(ASKED, *round_of)
    return strategy, signals


def test_a_team_proposes_what_one_process_proposes(config, round_of):  # noqa: F811
    made = together(3, lambda member: Promof(config, member).propose(ASKED))
    for proposals in made:
        assert [p.name for p in proposals.items] == [p.name for p in round_of[0].items]
        assert Shard(proposals.trace).digest() == Shard(round_of[0].trace).digest()


@pytest.mark.parametrize(("size", "at_once"), [(1, 1), (1, 3), (2, None), (3, 1)])
def test_a_team_learns_what_one_process_learns_with_and_without_pieces(config, round_of, alone, size, at_once):  # noqa: F811
    settings = config.model_copy(update={"learning": config.learning.model_copy(update={"rows_at_once": at_once})})

    def learn(member):
        strategy = Promof(settings, member)
        return strategy, strategy.learn(ASKED, *round_of)

    for strategy, signals in together(size, learn):
        # the rounding of a log-prob depends on the batch's shape
        assert signals == pytest.approx(alone[1], rel=1e-4, abs=5e-5)
        assert strategy.memory == alone[0].memory
        for mine, theirs, before in zip(_weights(strategy), _weights(alone[0]), _weights(Promof(config)), strict=True):
            # Adam's first step is as large where a gradient is rounding as anywhere else
            assert (mine - theirs).norm() < 0.02 * (theirs - before).norm()


def _weights(strategy):
    networks = (strategy.chemist.network, strategy.engineer.network)
    return [nn.utils.parameters_to_vector(network.parameters()).detach() for network in networks]


def test_a_strategy_without_a_team_is_refused_one():
    class Two(Alone):
        size = 2

    with pytest.raises(UsageError, match="'random' does not learn in a team"):
        build(DesignConfig(strategy="random"), Two())
    assert build(DesignConfig(strategy="random"), ALONE)


def test_rewards_that_are_nan_teach_a_team_nothing(config, round_of):  # noqa: F811
    nothing = [Judged(np.nan) for _ in round_of[1]]
    for signals in together(2, lambda member: Promof(config, member).learn(ASKED, round_of[0], nothing)):
        assert signals["chemist_updates"] == signals["engineer_updates"] == 0


def test_what_another_engine_saved_goes_on_with_the_weights_and_says_so(tmp_path, caplog):
    network = nn.Linear(3, 1)
    (tmp_path / "toy" / "state").mkdir(parents=True)  # DeepSpeed's
    engine = AdamEngine("toy", network, 1e-2, 1.0)
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    engine.load(tmp_path)
    assert torch.equal(nn.utils.parameters_to_vector(network.parameters()), before)
    assert "toy: Adam begins anew with the saved weights" in caplog.text
    assert engine.step([network(torch.ones(2, 3)).sum()]) > 0


@pytest.mark.parametrize("stage", [-1, 3])
def test_weights_are_never_spread_over_processes(stage):
    with pytest.raises(ValueError, match="zero_stage"):
        TrainingSettings(zero_stage=stage)
