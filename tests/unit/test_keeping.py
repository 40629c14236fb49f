"""Keeping a campaign's state: it stands still for the copy only, and a failed write is not overlooked."""

import math
import threading

import pytest

from promof_hpc.design.campaign.keeping import Keeper, interval_s
from promof_hpc.errors import PromofError
from promof_hpc.store.checkpoint import newest_checkpoint
from promof_hpc.store.run_dir import RunDir


@pytest.fixture
def run(tmp_path):
    return RunDir.create(tmp_path / "run")


class State:
    """A state that is written only once the test lets it."""

    def __init__(self):
        self.value, self.may_write = "first", threading.Event()

    def save(self, folder):
        value = self.value

        def write():
            assert self.may_write.wait(30)
            (folder / "state").write_text(value)

        return write


def test_a_campaign_goes_on_while_what_it_was_is_written(run):
    state, told = State(), []
    keeper = Keeper(run, state.save, told=told.append)
    keeper.offer(1)
    state.value = "second"
    assert newest_checkpoint(run).number == 0
    state.may_write.set()
    keeper.wait()
    found = newest_checkpoint(run)
    assert (found.number, (found.folder / "state").read_text()) == (1, "first")
    assert [k.number for k in told] == [1]
    assert told[0].copy_s >= 0
    assert told[0].write_s >= 0


def test_a_write_that_fails_is_raised_by_the_next_call(run):
    def save(folder):
        def write():
            raise OSError(28, "No space left on device")

        return write

    keeper = Keeper(run, save)
    keeper.offer(1)
    with pytest.raises(PromofError, match="disk is full"):
        keeper.offer(2)
    keeper.wait()  # said once


def test_states_are_kept_as_often_as_young_says_and_the_last_on_request(run):
    assert interval_s(2.0, 3600.0) == math.sqrt(2 * 2.0 * 3600.0)
    assert interval_s(2.0, None) == 0.0
    copies = []

    def save(folder):
        copies.append(folder.name)
        return lambda: (folder / "state").write_text("x")

    keeper = Keeper(run, save, between_deaths_s=1e12)
    keeper.offer(1)  # nothing is known yet of how long it takes
    for number in (2, 3):
        keeper.offer(number)
    keeper.wait()
    assert newest_checkpoint(run).number == 1
    keeper.keep()
    keeper.keep()
    keeper.wait()
    assert newest_checkpoint(run).number == 3
    assert len(copies) == 2
