import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promof_hpc.policy.batches import BatchOrder, step_generator

sizes = st.lists(st.integers(1, 300), min_size=1, max_size=120)


@given(sizes, st.integers(0, 5), st.sampled_from([1.0, 2.0]), st.floats(1, 1e5), st.integers(0, 3))
def test_every_item_comes_once_an_epoch_and_no_batch_is_over_its_budget(sizes, seed, power, budget, epoch):
    batches = BatchOrder(sizes, budget, power, seed).epoch(epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(sizes[k] for k in batch) ** power <= budget


@given(sizes, st.integers(0, 5), st.integers(0, 60))
def test_a_step_has_the_same_batch_whatever_was_asked_before(sizes, seed, step):
    used, fresh = (BatchOrder(sizes, 600, 1.0, seed) for _ in range(2))
    walked = [used.batch(k) for k in range(step + 1)]
    used.batch(step + 7)
    assert np.array_equal(used.batch(step), fresh.batch(step))
    assert np.array_equal(walked[step], fresh.batch(step))


def test_batches_hold_items_of_similar_size_and_epochs_differ():
    sizes = np.random.default_rng(0).integers(10, 300, 2000)
    order = BatchOrder(sizes.tolist(), 4000, 1.0, 0)
    padded = sum(len(b) * sizes[b].max() for b in order.epoch(0))
    assert padded < 1.15 * sizes.sum()
    assert {frozenset(b) for b in order.epoch(0)}.isdisjoint(frozenset(b) for b in order.epoch(1) if len(b) > 1)
    assert [len(b) for b in order.epoch(0)] != sorted(len(b) for b in order.epoch(0))


def test_no_items_are_an_error():
    with pytest.raises(ValueError, match="no items"):
        BatchOrder([], 10, 1.0, 0)


def test_random_numbers_differ_by_seed_purpose_and_step_only():
    draws = [
        torch.rand(4, generator=step_generator(*key)).tolist()
        for key in [(0, "a", 1), (0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(d) for d in draws}) == 4
